"""Several processes that train one model in step, as torchrun starts them; alone, every function here does nothing.

Each rank draws batches of its own; gradients are averaged and the codebooks' statistics summed over ranks before
anything is changed by them, so weights and codebooks stay equal bit for bit on every rank.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from archive.errors import ConfigError

LEAVE_SECONDS = 10  # a rank waits so long for the others before it leaves them


def active() -> bool:
    """Whether a process group of more than one rank is up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and world() > 1


def world() -> int:
    """Ranks that train together; 1 alone."""
    up = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if up else 1


def rank() -> int:
    """This process's number, 0 alone; rank 0 is the one that writes."""
    up = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if up else 0


def launched() -> tuple[int, int, int]:
    """RANK, LOCAL_RANK and WORLD_SIZE as torchrun sets them; 0, 0, 1 where it did not start this process.

    Raises ConfigError BAD_VALUE for values that are no numbers, or a rank of no known number of ranks: each process would
    take itself for the one that writes.
    """
    if "RANK" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError("BAD_VALUE", "RANK is set and WORLD_SIZE is not", hint="start ranks with torchrun")
    try:
        first, local, every = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
        )
    except ValueError:
        raise ConfigError("BAD_VALUE", "RANK, LOCAL_RANK and WORLD_SIZE are numbers that torchrun sets") from None
    return first, local, every


def local_world() -> int:
    """Ranks on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if active() else 1


def join(device: torch.device) -> None:
    """Join the process group of torchrun's environment, once a process: nccl on CUDA, gloo elsewhere.

    A group that is up already is used as it is; without torchrun this does nothing.
    """
    _, local, every = launched()
    if every == 1 or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(leave)


def leave() -> None:
    """End the process group, once its last training is done; without one this does nothing.

    At exit it is late: a rank whose threads still look for the others when the interpreter goes is aborted.
    """
    if torch.distributed.is_initialized():
        if torch.distributed.get_backend() == "gloo":
            with contextlib.suppress(RuntimeError):  # another rank is gone: nobody to leave with
                torch.distributed.monitored_barrier(timeout=timedelta(seconds=LEAVE_SECONDS))
        torch.distributed.destroy_process_group()


def reduced(tensor: Tensor) -> Tensor:
    """The tensor summed over ranks, in place."""
    if active():
        torch.distributed.all_reduce(tensor)
    return tensor


def shared(tensor: Tensor) -> Tensor:
    """Rank 0's tensor on every rank, in place."""
    if active():
        torch.distributed.broadcast(tensor, 0)
    return tensor


def agreed(good: bool, device: torch.device) -> bool:
    """Whether it is so on every rank."""
    if not active():
        return good
    bad = torch.tensor([0.0 if good else 1.0], device=device)
    return float(reduced(bad)) == 0.0


def decided(number: float, device: torch.device) -> float:
    """Rank 0's number: for what depends on a clock, which ranks do not share."""
    if not active():
        return number
    return float(shared(torch.tensor([number], dtype=torch.float64, device=device)))


def told(thing: Any) -> Any:
    """Rank 0's object on every rank; it is pickled on the way."""
    if not active():
        return thing
    box = [thing]
    torch.distributed.broadcast_object_list(box, 0)
    torch.distributed.barrier()  # rank 0 holds the store: it must not go while others still read
    return box[0]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients averaged over ranks, in one message; parameters without one count as zero there."""
    if not active():
        return
    every = list(parameters)
    for parameter in every:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in every if parameter.grad is not None])
    reduced(flat).div_(world())
    at = 0
    for parameter in every:
        count = parameter.numel()
        # In the weight's own layout: fused optimisers walk through the memory of both.
        parameter.grad = torch.empty_like(parameter).copy_(flat[at : at + count].view(parameter.shape))
        at += count

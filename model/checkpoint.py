"""Where a training stands, on disk: enough to go on exactly, since batches depend on seed and step alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "checkpoint.safetensors"
FORMAT = 3  # 3: the spread of codes without a price; another one is not gone on with


@dataclass(frozen=True)
class Checkpoint:
    """tensors: weights, codebooks, averaged weights and optimiser moments, and the states kept in memory; step: the
    next to take; seconds: spent on training so far; state: numbers beside the tensors, JSON-ready."""

    tensors: dict[str, Tensor]
    step: int
    seconds: float
    state: dict[str, Any] = field(default_factory=dict)


def collect(model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that training goes on from, by name; copies, where they are."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for (name, parameter), mean in zip(model.named_parameters(), average, strict=True):
        tensors[f"average.{name}"] = mean
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{name}.{key}"] = value
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Put what `collect` gave back; the three must be of the same config."""
    model.load_state_dict(under("model.", tensors))
    optimiser.state.clear()
    for (name, parameter), mean in zip(model.named_parameters(), average, strict=True):
        mean.copy_(tensors[f"average.{name}"])
        state: dict[str, Any] = {}
        for key, found in under(f"optimiser.{name}.", tensors).items():
            if "." in key:  # of another parameter whose name goes on from this one's
                continue
            # The moments lie with the weights and in their layout, the step count as it was.
            same = found.shape == parameter.shape
            moment = same and key != "step"  # fused optimisers want the count on the device, too
            state[key] = (
                torch.empty_like(parameter) if moment else torch.empty_like(found, device=parameter.device)
            ).copy_(found)
        if state:
            optimiser.state[parameter] = state


def under(head: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `head`, without it."""
    return {name[len(head) :]: tensor for name, tensor in tensors.items() if name.startswith(head)}


def write(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint of a folder; a reader sees the old or the new one, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE}.{os.getpid()}"
    about = {
        "format": FORMAT,
        "key": key,
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "state": checkpoint.state,
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(plain, draft, metadata={"voxbook": json.dumps(about)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(folder / FILE)


def read(folder: Path, key: str) -> Checkpoint | None:
    """The checkpoint of a folder, where there is one of this very training (`key`); else None."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("voxbook", "{}"))
            if (about.get("format"), about.get("key")) != (FORMAT, key):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, SafetensorError):  # none, or of another kind: start anew
        return None
    return Checkpoint(tensors, int(about["step"]), float(about["seconds"]), about.get("state", {}))

"""Batches on their way to the device: one ahead, so that copying hides behind computing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def on_device(batches: Iterator[np.ndarray], device: torch.device, channels_last: bool) -> Iterator[Tensor]:
    """Batches float32 [B, C, *patch] as tensors on the device.

    For CUDA through pinned memory on a stream of its own, the next batch while this one is learned from: two are on
    the device at a time. On the CPU they are the arrays themselves.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if device.type != "cuda":
        for batch in batches:
            yield torch.from_numpy(batch).to(device).contiguous(memory_format=layout)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming = None
    for batch in batches:
        pinned = torch.from_numpy(batch).contiguous(memory_format=layout).pin_memory()
        with torch.cuda.stream(stream):
            copied = pinned.to(device, non_blocking=True)
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record(stream)
        if coming is not None:
            yield _arrived(*coming)
        coming = copied, there
    if coming is not None:
        yield _arrived(*coming)


def _arrived(batch: Tensor, there: torch.cuda.Event) -> Tensor:
    """The batch, safe to use on the current stream and kept until that is done with it.

    Waits for this batch's own copy: the next one's is under way on the same stream and must go on beside computing.
    """
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(there)
    batch.record_stream(current)
    return batch

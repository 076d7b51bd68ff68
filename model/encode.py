"""Volumes to codes: windows of many series in batches of fixed shapes that follow from each volume alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archive.codes import Codes
from archive.errors import InputError, MismatchError
from model import intensity
from model.ahead import ahead
from model.device import arithmetic, pick
from model.quantize import Found
from model.quick import quick
from model.source import as_source, channels
from model.tiling import batch_size
from model.unlike import BINS, binned, counted
from model.vqvae import VQVAE
from model.windows import Layout, Window, read_windows

AHEAD_BYTES = 2**27


@dataclass(frozen=True)
class Request:
    """A volume to encode. open: gives a Volume or StoredVolume, called by the thread that reads; name: of the result.

    source_version, source_digest: what the codes say of it.
    """

    name: Hashable
    open: Callable[[], Any] = field(repr=False)
    source_version: str = ""
    source_digest: str = ""


@dataclass(frozen=True)
class Encoded:
    """What became of a request: its codes and the volume as it was opened, or the error why there are none.

    distances: int64 [L, bins], how far the latents lie from their codes (model.unlike).
    """

    name: Hashable
    codes: Codes | None
    volume: Any = field(default=None, repr=False)
    error: Exception | None = None
    distances: np.ndarray | None = field(default=None, repr=False)


def encode_volume(
    model: VQVAE,
    volume: Any,
    *,
    profile: str = "exact",
    levels: int | None = None,
    device: str | None = None,
    model_id: str = "",
    source_version: str = "",
    source_digest: str = "",
) -> Codes:
    """The codes of a Volume or StoredVolume.

    array: uint16 [level, (t), z, y, x] over cells of `downsample` voxels; what does not fill a cell at the end of an
    axis is padded by its edge. profile exact: float32, byte-identical on a kind of device whatever worker, order or
    company; fast: bfloat16. Memory is bounded by windows and slabs, not by the volume. device: None leaves the model
    where it is. Raises InputError NON_FINITE; MismatchError WRONG_MODEL where grey and colour do not fit.
    """
    if device is not None:
        model.to(pick(device))
    request = Request("volume", lambda: volume, source_version, source_digest)
    (found,) = encode_volumes(model, [request], profile=profile, levels=levels, model_id=model_id, ahead_bytes=0)
    if found.error is not None:
        raise found.error
    assert found.codes is not None  # one or the other
    return found.codes


def encode_volumes(
    model: VQVAE,
    requests: Iterable[Request],
    *,
    profile: str = "exact",
    levels: int | None = None,
    model_id: str = "",
    ahead_bytes: int = AHEAD_BYTES,
) -> Iterator[Encoded]:
    """The codes of many volumes, each given as soon as it is whole, in no promised order.

    Windows of equal shape go through the network together, whichever series they are of; a batch is always as large
    as device and window shape alone say, so company changes nothing. ahead_bytes: of voxels read and mapped ahead by a
    thread, and of those that wait for their batch to fill; 0 reads in this thread. An exception that belongs to one
    volume is its `error`; raises MismatchError WRONG_MODEL where the model has not so many levels.
    """
    count = levels or model.config.code_levels
    if not 1 <= count <= model.config.code_levels:
        raise MismatchError("WRONG_MODEL", f"the model has {model.config.code_levels} levels, not {count}")
    model.eval()
    network = _Network(model, profile, count)
    windows: Iterator[_Piece] = _pieces(model, requests, count)
    if ahead_bytes:
        windows = ahead(windows, _bytes, ahead_bytes)
    waiting: dict[tuple[int, ...], list[_Piece]] = {}
    held = 0
    for piece in windows:
        if piece.window is None:
            piece.work.error, piece.work.left = piece.error, 0
            yield piece.work.result(model, profile, model_id)
            continue
        shape = piece.window.voxels.shape
        group = waiting.setdefault(shape, [])
        group.append(piece)
        held += _bytes(piece)
        if len(group) == network.batch(shape) or held > max(ahead_bytes, 2**24):
            # Whatever the batch lacks is filled up with zeros, so it may go at any time.
            if len(group) < network.batch(shape):
                shape = max(waiting, key=lambda one: sum(map(_bytes, waiting[one])))
            group = waiting.pop(shape)
            held -= sum(map(_bytes, group))
            yield from network.run(group, model_id)
    for group in waiting.values():
        yield from network.run(group, model_id)


@dataclass
class _Work:
    """One series while it is being encoded: codes as far as they are, and how many windows are still to come."""

    request: Request
    source: Any = None
    volume: Any = None
    layout: Layout | None = None
    mapping: intensity.Mapping | None = None
    array: np.ndarray | None = None  # uint16 [L, t, z, y, x]
    distances: np.ndarray | None = None  # int64 [L, bins]
    left: int = 0
    error: Exception | None = None

    def put(self, window: Window, codes: np.ndarray, bins: np.ndarray) -> None:
        """Keep the inner part of the codes [L, z, y, x] of a window, and count that of their distances' bins."""
        assert self.array is not None and self.distances is not None  # it had a layout, else it had no window
        z, y, x = window.tile.inner
        inside = window.tile.inside
        self.array[:, window.t, z, y, x] = codes[:, inside[0], inside[1], inside[2]]
        self.distances += counted(bins[:, inside[0], inside[1], inside[2]])

    def result(self, model: VQVAE, profile: str, model_id: str) -> Encoded:
        """What became of it."""
        if self.error is not None:
            return Encoded(self.request.name, None, self.volume, self.error)
        assert self.array is not None and self.layout is not None and self.mapping is not None  # no error: opened
        config, source = model.config, self.source
        pads = [size - real for size, real in zip(self.layout.size, source.shape[-3:], strict=True)]
        codes = Codes(
            array=self.array if source.axes.startswith("t") else self.array[:, 0],
            model=model_id or model.model_id,
            levels=len(self.array),
            codebook_size=config.codebook_size,
            downsample=config.downsample,
            source=source.attributes,
            source_version=self.request.source_version,
            source_digest=self.request.source_digest,
            pad=(pads[0], pads[1], pads[2]),
            mapping=self.mapping.as_dict(),
            profile=profile,
        )
        return Encoded(self.request.name, codes, self.volume, distances=self.distances)


@dataclass(frozen=True)
class _Piece:
    """A window of a series, or what ended its reading."""

    work: _Work
    window: Window | None
    error: Exception | None = None


def _pieces(model: VQVAE, requests: Iterable[Request], levels: int) -> Iterator[_Piece]:
    """Windows of all volumes in turn; what a volume raises ends that volume only."""
    for request in requests:
        work = _Work(request)
        try:
            work.volume = request.open()
            work.source = source = as_source(work.volume)
            if channels(source) != model.config.channels:
                raise MismatchError(
                    "WRONG_MODEL", f"the model takes {model.config.channels} channels, not {channels(source)}"
                )
            work.mapping = intensity.fit(source, model.config.intensity)
            work.layout = Layout.of(model, source)
            work.array = np.empty((levels, work.layout.frames, *work.layout.grid), np.uint16)
            work.distances = np.zeros((levels, BINS), np.int64)
            work.left = work.layout.frames * len(work.layout.tiles)
            for window in read_windows(source, work.layout, work.mapping):
                yield _Piece(work, window)  # `left` and `array` are the other thread's from here on
        except Exception as error:  # each belongs to its volume; the caller knows which of them stop everything
            yield _Piece(work, None, error)


class _Network:
    """The encoder on batches of fixed shapes."""

    def __init__(self, model: VQVAE, profile: str, levels: int) -> None:
        self.model, self.profile, self.levels = model, profile, levels
        self.find = self._quickly if profile == "fast" else model.find

    def batch(self, shape: tuple[int, ...]) -> int:
        """Windows [c, z, y, x] of this shape that go through together."""
        return batch_size(self.model.device.type, math.prod(shape[1:]))

    def run(self, pieces: list[_Piece], model_id: str) -> Iterator[Encoded]:
        """Encode windows of one shape, as many as a batch holds at most; the series that are whole now."""
        groups = [pieces]
        while groups:
            group = groups.pop(0)
            try:
                found = self._found([piece.window.voxels for piece in group if piece.window is not None])
            except InputError as error:  # one of them has values that the network cannot stand
                if len(group) > 1:
                    groups += [[piece] for piece in group]
                    continue
                group[0].work.error, found = error, None
            for number, piece in enumerate(group):
                work = piece.work
                if found is not None and piece.window is not None and work.error is None:
                    work.put(piece.window, found[0][number], found[1][number])
                work.left -= 1
                if work.left == 0:
                    yield work.result(self.model, self.profile, model_id)

    def _quickly(self, x: Tensor, levels: int) -> Found:
        found = quick(self.model).find(x, min(levels, self.model.config.levels))
        return self.model.corrected(found, x, levels)  # in float32: of what decoding will give

    def _found(self, voxels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Codes [B, L, z, y, x] of windows float32 [c, z, y, x], and the bins of their distances."""
        shape = voxels[0].shape
        batch: Tensor = torch.zeros(self.batch(shape), *shape)
        for place, one in enumerate(voxels):
            batch[place] = torch.from_numpy(np.ascontiguousarray(one))
        flat = self.model.config.dims == 2
        with arithmetic(self.model.device, self.profile):
            found = self.find((batch[:, :, 0] if flat else batch).to(self.model.device), self.levels)
        codes = found.codes[: len(voxels)].to(torch.int32).cpu().numpy()
        bins = binned(found.squares[: len(voxels)]).cpu().numpy()
        return (codes[:, :, None], bins[:, :, None]) if flat else (codes, bins)


def _bytes(piece: _Piece) -> int:
    return piece.window.voxels.nbytes if piece.window is not None else 0

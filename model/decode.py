"""Codes back to volumes: whole, or any part of one, which is the same to the bit as the crop of the whole."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from archive.codes import Codes
from archive.errors import MismatchError, StoreError
from archive.volume import Volume
from model import intensity
from model.device import arithmetic
from model.source import unscaled
from model.tiling import Tile, batch_size, groups, tiles, windows
from model.vqvae import VQVAE

Region = tuple[slice, slice, slice]


def decode_codes(model: VQVAE, codes: Codes, levels: int | None = None) -> Volume:
    """The volume of codes, with the source's shape, dtype, geometry, units, slope and intercept.

    levels: use only the first so many, a coarser picture; None: all, or the layer that bounds the error where the codes
    have one (archive.bounded), which owes nothing to the network. Only the result is of the volume's size; floats are kept
    for one window at a time. Raises MismatchError WRONG_MODEL; StoreError DAMAGED for a code outside the codebook.
    """
    timed = codes.array.ndim == 5

    def slab(t: int, z0: int, z1: int) -> np.ndarray:
        array = codes.array[:levels, t] if timed else codes.array[:levels]
        return array[:, z0:z1]

    decoder = Decoder(model, codes, slab)
    voxels = np.empty(decoder.shape, decoder.dtype)
    pixels = codes.bounded if levels is None and codes.bounded is not None else decoder
    for t in range(decoder.frames):
        pixels.into(voxels[t] if decoder.axes.startswith("t") else voxels, t, decoder.everything)
    return Volume.from_attributes(voxels, codes.source)


@dataclass(frozen=True)
class Decoder:
    """Decodes windows of one series.

    about: a Codes, of which only what describes the source is used; slab(t, z0, z1): codes uint16 [L, z, y, x] of
    rows z0 to z1 of the code grid.
    """

    model: VQVAE = field(repr=False)
    about: Any
    slab: Callable[[int, int, int], np.ndarray] = field(repr=False)

    def __post_init__(self) -> None:
        config = self.model.config
        fits = config.codebook_size == self.about.codebook_size and config.downsample == tuple(self.about.downsample)
        named = not self.model.model_id or self.about.model == self.model.model_id
        if not fits or not named or self.about.levels > config.code_levels:
            raise MismatchError("WRONG_MODEL", "the codes were made by another model")

    @property
    def axes(self) -> str:
        """Of the source."""
        return self.about.source["axes"]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the source."""
        return tuple(self.about.source["shape"])

    @cached_property
    def dtype(self) -> np.dtype:
        """Of the source's stored values."""
        return np.dtype(self.about.source["dtype"])

    @property
    def frames(self) -> int:
        """Time points."""
        return self.shape[0] if self.axes.startswith("t") else 1

    @property
    def everything(self) -> Region:
        """All voxels z y x."""
        z, y, x = (slice(0, size) for size in self.shape[-3:])
        return z, y, x

    @cached_property
    def mapping(self) -> intensity.Mapping:
        """The inverse of how the source was mapped."""
        return intensity.Mapping.from_dict(self.about.mapping)

    @property
    def together(self) -> int:
        """Neighbouring slices that cost as much to decode as one of them."""
        first = self._plan[0].outer[0]
        across = {(tile.spans[1].start, tile.spans[2].start) for tile in self._plan}
        deep = (first.stop - first.start) * self.about.downsample[0]
        return max(1, min(self.shape[-3], deep * max(1, self._batch // len(across))))

    @cached_property
    def cuts(self) -> tuple[list[int], list[int], list[int]]:
        """Voxels along z, y, x where windows meet, both ends included: what lies between them costs least to decode."""
        ends = [
            sorted({min(tile.inner[axis].stop * d, size) for tile in self._plan} | {0})
            for axis, (d, size) in enumerate(zip(self.about.downsample, self.shape[-3:], strict=True))
        ]
        deep, size = self.together, self.shape[-3]
        if self._batch == 1:
            return ends[0], ends[1], ends[2]
        return [*range(0, size, deep), size], [0, ends[1][-1]], [0, ends[2][-1]]

    @property
    def _batch(self) -> int:
        """Windows that go through the network at once."""
        shape = [
            (part.stop - part.start) * d for part, d in zip(self._plan[0].outer, self.about.downsample, strict=True)
        ]
        return batch_size(self.model.device.type, math.prod(shape))

    @cached_property
    def _plan(self) -> list[Tile]:
        cell = self.model.config.downsample
        grid = tuple(math.ceil(size / d) for size, d in zip(self.shape[-3:], cell, strict=True))
        return tiles((grid[0], grid[1], grid[2]), *windows(self.model.config.dims, cell, self.model.decoder_halo))

    def into(self, target: np.ndarray, t: int, region: Region) -> None:
        """Write stored values of one time point's region (voxels z y x) into [(c), z, y, x] of the region's size."""
        slope, intercept = self.about.source["slope"], self.about.source["intercept"]
        depth = self.shape[-3]
        for place, x in self.windows(t, region):
            values = self.mapping.to_values(x)  # [c, z, y, x]
            first = t * depth + place[0].start
            stored = np.moveaxis(unscaled(np.moveaxis(values, 1, 0), slope, intercept, first, self.dtype), 0, 1)
            z, y, column = (
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(place, region, strict=True)
            )
            target[..., z, y, column] = stored if "c" in self.axes else stored[0]

    def windows(self, t: int, region: Region) -> Iterator[tuple[Region, np.ndarray]]:
        """Parts of the region as (voxels z y x, float32 [c, z, y, x] in the model's range).

        A group of windows that the region touches is decoded as a whole decode would, so the bits are the same.
        """
        config = self.model.config
        cell = config.downsample
        shape = [part.stop - part.start for part in self._plan[0].outer]
        size = batch_size(self.model.device.type, math.prod(shape) * math.prod(cell))
        plan = list(groups(self._plan, size))
        depths = [group[-1].inner[0].stop * cell[0] for group in plan]  # never falling: z is slowest
        for group in plan[bisect.bisect_right(depths, region[0].start) :]:
            if group[0].inner[0].start * cell[0] >= region[0].stop:
                break
            touched = [_overlap(tile, cell, region) for tile in group]
            if not any(touched):
                continue
            pictures = self._run(group, t, size, shape)
            for tile, place, picture in zip(group, touched, pictures, strict=False):
                if place is None:
                    continue
                z, y, x = (
                    slice(part.start - o.start * d, part.stop - o.start * d)
                    for part, o, d in zip(place, tile.outer, cell, strict=True)
                )
                yield place, picture[:, z, y, x]

    def _run(self, group: list[Tile], t: int, size: int, shape: list[int]) -> np.ndarray:
        first, last = min(tile.outer[0].start for tile in group), max(tile.outer[0].stop for tile in group)
        rows = self.slab(t, first, last)
        if rows.size and int(rows.max()) >= self.about.codebook_size:
            raise StoreError("DAMAGED", "a code lies outside the codebook")
        batch = np.zeros((size, len(rows), *shape), np.int64)
        for place, tile in enumerate(group):
            z, y, x = tile.outer
            batch[place] = rows[:, z.start - first : z.stop - first, y, x]
        codes = torch.from_numpy(batch)
        codes = (codes[:, :, 0] if self.model.config.dims == 2 else codes).to(self.model.device)
        with arithmetic(self.model.device, "exact"):
            pictures = self.model.decode(codes).float().cpu().numpy()
        return pictures[:, :, None] if self.model.config.dims == 2 else pictures


def _overlap(tile: Tile, cell: tuple[int, int, int], region: Region) -> Region | None:
    """The voxels of the region that are the tile's own; None where there are none."""
    parts = [
        slice(max(own.start * d, want.start), min(own.stop * d, want.stop))
        for own, d, want in zip(tile.inner, cell, region, strict=True)
    ]
    return (parts[0], parts[1], parts[2]) if all(part.start < part.stop for part in parts) else None

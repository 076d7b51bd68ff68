"""The windows of a volume on the canonical tiling, read slab by slab in the model's range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model import intensity
from model.source import Source, channel_slab, channels
from model.tiling import Tile, tiles, windows
from model.vqvae import VQVAE

READ = 8  # slices read together, the stores' chunk along z
SLAB_BYTES = 2**26  # float32 of the slices read together, where one slice is not more


@dataclass(frozen=True)
class Layout:
    """How a volume is cut for a model: cells of `cell` voxels, a grid of them per time point, and the tiles.

    cell, grid: along z, y, x. frames: time points. tiles: z slowest; all windows are of one shape.
    """

    cell: tuple[int, int, int]
    grid: tuple[int, int, int]
    frames: int
    tiles: list[Tile]

    @classmethod
    def of(cls, model: VQVAE, source: Source) -> Layout:
        """Follows from the volume's shape and the model alone."""
        config = model.config
        cell = config.downsample
        z, y, x = (math.ceil(size / d) for size, d in zip(source.shape[-3:], cell, strict=True))
        reach = tuple(math.ceil(r / d) for r, d in zip(model.encoder_halo, config.axes(cell), strict=True))
        plan = tiles((z, y, x), *windows(config.dims, cell, reach))
        return cls(cell, (z, y, x), source.slices // source.shape[-3], plan)

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels z y x with the padding that fills the last cells."""
        z, y, x = (n * d for n, d in zip(self.grid, self.cell, strict=True))
        return z, y, x

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels z y x of every window."""
        z, y, x = (span.length * d for span, d in zip(self.tiles[0].spans, self.cell, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Window:
    """What the network sees of one tile at time point t: voxels float32 [c, z, y, x] in its range."""

    tile: Tile
    t: int
    voxels: np.ndarray


def read_windows(source: Source, layout: Layout, mapping: intensity.Mapping) -> Iterator[Window]:
    """Every window, t slowest, then z; one slab of slices is held at a time. Raises InputError NON_FINITE."""
    for t in range(layout.frames):
        slabs = _Slabs(source, mapping, t, layout.size)
        for tile in layout.tiles:
            z, y, x = (slice(part.start * d, part.stop * d) for part, d in zip(tile.outer, layout.cell, strict=True))
            yield Window(tile, t, np.moveaxis(slabs.read(z.start, z.stop)[:, :, y, x], 1, 0))


class _Slabs:
    """Slices of one time point in the model's range, padded by their edges to `size`; the last slab read is kept."""

    def __init__(self, source: Source, mapping: intensity.Mapping, t: int, size: tuple[int, int, int]) -> None:
        self.source, self.mapping, self.size = source, mapping, size
        self.depth = source.shape[-3]
        self.first = t * self.depth
        slice_bytes = 4 * channels(source) * size[1] * size[2]
        self.step = max(1, min(READ, SLAB_BYTES // slice_bytes))
        self.start = self.stop = 0
        self.held: np.ndarray = np.empty(0, np.float32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, c, y, x]; slices beyond the last repeat it."""
        if not self.start <= start < stop <= self.stop:
            a = start // self.step * self.step
            b = min(self.size[0], -(-stop // self.step) * self.step)
            real = min(b, self.depth)
            values = channel_slab(self.source, self.first + a, self.first + real)
            rows, columns = values.shape[-2:]
            # A new array: windows of the slab before may still be waiting for their batch.
            held = np.empty((b - a, values.shape[1], self.size[1], self.size[2]), np.float32)
            for number, one in enumerate(values):  # one at a time: its float64 stays in the cache
                held[number, :, :rows, :columns] = self.mapping.to_model(one)
            held[: real - a, :, rows:, :columns] = held[: real - a, :, rows - 1 : rows, :columns]
            held[: real - a, :, :, columns:] = held[: real - a, :, :, columns - 1 : columns]
            held[real - a :] = held[real - a - 1]
            self.held, self.start, self.stop = held, a, b
        return self.held[start - self.start : stop - self.start]

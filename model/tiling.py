"""The canonical tiling: which windows a volume is coded in follows from its shape and the model alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

TILE = {2: (1, 512, 512), 3: (48, 192, 192)}  # voxels of the largest window
BATCH_VOXELS = {"cpu": 2**14, "cuda": 2**23}  # what goes through the network at once, one window at least


@dataclass(frozen=True)
class Span:
    """One window along one axis, in cells: the window starts at `start`; cells keep_from to keep_to are its own."""

    start: int
    length: int
    keep_from: int
    keep_to: int


@dataclass(frozen=True)
class Tile:
    """A window of a code grid, z y x: `outer` is what the network sees, `inner` the cells that are kept of it."""

    spans: tuple[Span, Span, Span]

    @property
    def outer(self) -> tuple[slice, slice, slice]:
        """Cells of the window."""
        z, y, x = (slice(span.start, span.start + span.length) for span in self.spans)
        return z, y, x

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """Cells kept, counted in the whole grid."""
        z, y, x = (slice(span.keep_from, span.keep_to) for span in self.spans)
        return z, y, x

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """Cells kept, counted in the window."""
        z, y, x = (slice(span.keep_from - span.start, span.keep_to - span.start) for span in self.spans)
        return z, y, x


def spans(cells: int, window: int, halo: int) -> list[Span]:
    """Windows along one axis of `cells`: the whole axis where it is at most `window`, else windows of one size.

    They lie evenly, flush at both ends, so that zero padding happens at true borders only; neighbours overlap by at
    least 2 * halo and are cut in the middle of the overlap, so that every kept cell has its whole reach.
    """
    if cells <= window:
        return [Span(0, cells, 0, cells)]
    if window <= 2 * halo:
        raise ValueError(f"a window of {window} cells is not larger than twice its halo of {halo}")
    step = window - 2 * halo
    count = -(-(cells - window) // step) + 1
    starts = [round(i * (cells - window) / (count - 1)) for i in range(count)]
    cuts = [0, *((left + window + right) // 2 for left, right in itertools.pairwise(starts)), cells]
    return [Span(start, window, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def tiles(grid: tuple[int, int, int], window: tuple[int, int, int], halo: tuple[int, int, int]) -> list[Tile]:
    """All tiles of a code grid (z, y, x), z slowest; every cell is in the inner part of exactly one."""
    along = [spans(cells, size, edge) for cells, size, edge in zip(grid, window, halo, strict=True)]
    return [Tile((z, y, x)) for z, y, x in itertools.product(*along)]


def windows(
    dims: int, downsample: tuple[int, int, int], halo: tuple[int, ...]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The window and the halo in cells (z, y, x) of a model; halo: its reach in cells, one per axis of `dims`."""
    edge = (0,) * (3 - len(halo)) + tuple(halo)
    size = [max(t // d, 2 * e + 1) for t, d, e in zip(TILE[dims], downsample, edge, strict=True)]
    return (size[0], size[1], size[2]), (edge[0], edge[1], edge[2])


def batch_size(device: str, voxels: int) -> int:
    """Windows of so many voxels that go through together: fixed by them and the kind of device, whoever's they are."""
    return max(1, BATCH_VOXELS["cuda" if device.startswith("cuda") else "cpu"] // max(1, voxels))


def groups(tiles: list[Tile], size: int) -> Iterator[list[Tile]]:
    """Tiles in batches of `size`, the last one shorter (callers fill it up to the fixed shape)."""
    for at in range(0, len(tiles), size):
        yield tiles[at : at + size]

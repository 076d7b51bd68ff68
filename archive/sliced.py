"""A volume whose slices are read when they are needed: what is written elsewhere need not be in memory first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from archive.volume import Volume, rescaled

SLAB_BYTES = 16 * 2**20  # of stored values that are read at once


@dataclass(frozen=True)
class Sliced:
    """A Volume by slices: one in memory, a stored or decoded one, or a region of one.

    header: all of the Volume but its voxels, for which a read-only array of zeros stands. slab(start, stop): stored
    values of slices of one time point, counted t-major and z-minor; [n, y, x], or [n, c, y, x] in colour. together:
    neighbouring slices that cost as much to read as one of them, counted from `before` slices before the first.
    """

    header: Volume
    slab: Callable[[int, int], np.ndarray] = field(repr=False)
    together: int = 1
    before: int = 0

    @classmethod
    def of(cls, volume: Volume | Sliced) -> Sliced:
        """What is sliced already, or a volume in memory."""
        if isinstance(volume, Sliced):
            return volume
        voxels = volume.voxels if volume.axes.startswith("t") else volume.voxels[None]
        voxels = np.moveaxis(voxels, 1, 2) if "c" in volume.axes else voxels  # t z (c) y x
        depth = volume.geometry.shape[0]

        def slab(start: int, stop: int) -> np.ndarray:
            t, z = divmod(start, depth)
            return voxels[t, z : z + stop - start]

        return cls(volume.with_voxels(_nothing(volume.voxels.shape, volume.voxels.dtype)), slab)

    @property
    def depth(self) -> int:
        """Slices of a time point."""
        return self.header.geometry.shape[0]

    def slabs(self, budget: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Everything in order, as (first slice, stored values); budget: bytes at once, SLAB_BYTES where none is given."""
        for t in range(self.header.timepoints):
            for start, stop in self.spans(0, self.depth, budget):
                yield t * self.depth + start, self.slab(t * self.depth + start, t * self.depth + stop)

    def spans(self, start: int, stop: int, budget: int | None = None) -> Iterator[tuple[int, int]]:
        """Slices start to stop of a time point, cut where reading them costs least."""
        one = self.header.voxels.dtype.itemsize * self.header.channels * math.prod(self.header.geometry.shape[1:])
        step = max(1, (budget or SLAB_BYTES) // (one * self.together)) * self.together
        while start < stop:
            end = min(stop, (start + self.before) // self.together * self.together + step - self.before)
            yield start, end
            start = end

    def values(self, start: int, stored: np.ndarray) -> np.ndarray:
        """Stored values [n, ...] of slices from `start` on, in units: float32, computed as Volume.values does."""
        return rescaled(stored, self.header.slope, self.header.intercept, start)


def _nothing(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)

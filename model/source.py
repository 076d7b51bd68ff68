"""Where voxels come from: a stored volume, or one in memory that answers the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from archive.geometry import Geometry
from archive.volume import Volume, per_slice, rescaled


class Source(Protocol):
    """What training and encoding ask of a volume; archive.volumes.StoredVolume has it."""

    @property
    def attributes(self) -> dict[str, Any]: ...
    @property
    def axes(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def units(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def slices(self) -> int: ...

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Stored values of slices (t-major, z-minor): [n, y, x], or [n, c, y, x] in colour."""
        ...

    def slab_values(self, start: int, stop: int) -> np.ndarray:
        """The same in `units`, float32."""
        ...


@dataclass(frozen=True)
class MemoryVolume:
    """A Volume as a Source."""

    volume: Volume

    @property
    def attributes(self) -> dict[str, Any]:
        """What Volume.attributes gives."""
        return self.volume.attributes()

    @property
    def axes(self) -> str:
        """One of zyx, tzyx, czyx, tczyx."""
        return self.volume.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along `axes`."""
        return self.volume.voxels.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the stored values."""
        return self.volume.voxels.dtype

    @property
    def units(self) -> str:
        """Of the values."""
        return self.volume.units

    @property
    def geometry(self) -> Geometry:
        """Shape zyx and affine."""
        return self.volume.geometry

    @property
    def slices(self) -> int:
        """Slices over all time points."""
        return self.volume.slices

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Stored values of slices start to stop."""
        voxels = self.volume.voxels
        depth = voxels.shape[-3]
        picked = []
        for number in range(start, stop):
            t, z = divmod(number, depth)
            picked.append((voxels[t] if "t" in self.axes else voxels)[..., z, :, :])
        return np.stack(picked) if picked else np.empty((0, *voxels.shape[-2:]), voxels.dtype)

    def slab_values(self, start: int, stop: int) -> np.ndarray:
        """Values in `units`, float32."""
        return rescaled(self.slab(start, stop), self.volume.slope, self.volume.intercept, start)


def as_source(volume: Any) -> Source:
    """A Volume wrapped, anything else as it is."""
    return MemoryVolume(volume) if isinstance(volume, Volume) else volume


def channel_slab(source: Source, start: int, stop: int) -> np.ndarray:
    """Values of slices start to stop as float32 [n, c, y, x], grey with c = 1."""
    values = source.slab_values(start, stop)
    return values if "c" in source.axes else values[:, None]


def channels(source: Source) -> int:
    """Colour channels; 1 for grey."""
    return source.shape[source.axes.index("c")] if "c" in source.axes else 1


def unscaled(values: np.ndarray, slope: Any, intercept: Any, start: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `rescaled`: rounded and clipped for integer dtypes."""
    a, b = (per_slice(numbers, start, values) for numbers in (slope, intercept))
    stored = (values.astype(np.float64) - b) / a
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # float64 cannot hold the largest int64: clip below it, never above.
        stored = np.clip(np.rint(stored), float(limits.min), np.nextafter(float(limits.max) + 1.0, 0.0))
    return stored.astype(dtype)

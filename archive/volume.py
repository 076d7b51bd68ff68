"""One image series as an array with everything needed to give it back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from archive.errors import InputError
from archive.geometry import Geometry

AXES = ("zyx", "tzyx", "czyx", "tczyx")
UNITS = ("HU", "Bq/ml", "SUVbw", "counts", "a.u.", "rgb")


@dataclass(frozen=True)
class Volume:
    """Stored values exactly as the source wrote them, and what they mean.

    voxels: native integers or floats, axes as `axes` says. value = stored * slope + intercept, in `units`.
    axes: one of zyx, tzyx, czyx, tczyx.
    modality: DICOM Modality (0008,0060), or NIFTI, or PICTURE.
    slope, intercept: one number each, or one per slice (t-major, z-minor) where they vary, as in PET.
    photometric: MONOCHROME1, MONOCHROME2 or RGB. bits_stored: DICOM (0028,0101), else the dtype's.
    frames: one dict of numbers per t (time_s, phase, b_value); empty without a t axis.
    acquisition: allow-listed numbers and enums only (archive.acquisition.ALLOWED); never free text.
    flags: what a reader should know: TILTED, SPACING_VARIES, LOSSY_SOURCE, SINGLE_SLICE, ...
    """

    voxels: np.ndarray
    axes: str
    geometry: Geometry
    modality: str
    slope: tuple[float, ...] = (1.0,)
    intercept: tuple[float, ...] = (0.0,)
    units: str = "a.u."
    photometric: str = "MONOCHROME2"
    bits_stored: int = 16
    frames: tuple[dict[str, float], ...] = ()
    acquisition: dict[str, float | int | str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.axes not in AXES or self.voxels.ndim != len(self.axes) or self.units not in UNITS:
            raise InputError("BAD_HEADER", f"axes {self.axes!r} or units {self.units!r} do not fit the array")
        if tuple(self.voxels.shape[-3:]) != self.geometry.shape:
            raise InputError("NO_GEOMETRY", f"array {self.voxels.shape} and geometry {self.geometry.shape} differ")
        if self.voxels.dtype.kind not in "iuf":
            raise InputError("UNSUPPORTED_PIXELS", f"dtype {self.voxels.dtype} is not stored")
        if len(self.slope) != len(self.intercept) or len(self.slope) not in (1, self.slices):
            raise InputError("BAD_HEADER", "slope and intercept must be one number, or one per slice")
        if not np.isfinite([*self.slope, *self.intercept]).all() or 0.0 in self.slope:
            raise InputError("NON_FINITE", "slope or intercept is not finite, or the slope is zero")

    @property
    def channels(self) -> int:
        """Colour channels; 1 for grey."""
        return self.voxels.shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def timepoints(self) -> int:
        """Length of t; 1 without it."""
        return self.voxels.shape[0] if self.axes.startswith("t") else 1

    @property
    def slices(self) -> int:
        """Slices over all time points (t times z)."""
        return self.timepoints * self.geometry.shape[0]

    def values(self) -> np.ndarray:
        """Voxels in `units`, float32, same axes."""
        return self.to_values(self.voxels)

    def to_values(self, stored: np.ndarray) -> np.ndarray:
        """Stored values to `units`, float32; same shape as `voxels`."""
        slope, intercept = self._per_voxel(self.slope), self._per_voxel(self.intercept)
        return (stored * slope + intercept).astype(np.float32)

    def from_values(self, values: np.ndarray) -> np.ndarray:
        """Values in `units` back to stored ones: rounded and clipped for integer dtypes; same shape as `voxels`."""
        stored = (np.asarray(values, dtype=np.float64) - self._per_voxel(self.intercept)) / self._per_voxel(self.slope)
        dtype = self.voxels.dtype
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            stored = np.clip(np.rint(stored), limits.min, limits.max)
        return stored.astype(dtype)

    def with_voxels(self, voxels: np.ndarray) -> Volume:
        """The same series with other stored values of the same shape."""
        return replace(self, voxels=voxels)

    def _per_voxel(self, numbers: tuple[float, ...]) -> np.ndarray | float:
        if len(numbers) == 1:
            return numbers[0]
        shape = [self.timepoints] * self.axes.startswith("t") + [1] * ("c" in self.axes)
        return np.asarray(numbers, dtype=np.float64).reshape(*shape, self.geometry.shape[0], 1, 1)

    def attributes(self) -> dict[str, Any]:
        """Everything but the voxels, JSON-ready; `from_attributes` reads it back."""
        return {
            "axes": self.axes,
            "shape": list(self.voxels.shape),
            "dtype": self.voxels.dtype.name,
            "geometry": self.geometry.as_dict(),
            "modality": self.modality,
            "slope": list(self.slope),
            "intercept": list(self.intercept),
            "units": self.units,
            "photometric": self.photometric,
            "bits_stored": self.bits_stored,
            "frames": [dict(frame) for frame in self.frames],
            "acquisition": dict(self.acquisition),
            "flags": list(self.flags),
        }

    @classmethod
    def from_attributes(cls, voxels: np.ndarray, data: dict[str, Any]) -> Volume:
        """Voxels and what `attributes` wrote, as a Volume."""
        return cls(
            voxels=voxels,
            axes=data["axes"],
            geometry=Geometry.from_dict(data["geometry"]),
            modality=data["modality"],
            slope=tuple(data["slope"]),
            intercept=tuple(data["intercept"]),
            units=data["units"],
            photometric=data["photometric"],
            bits_stored=data["bits_stored"],
            frames=tuple(data["frames"]),
            acquisition=data["acquisition"],
            flags=tuple(data["flags"]),
        )


def rescaled(stored: np.ndarray, slope: Any, intercept: Any, start: int) -> np.ndarray:
    """stored * slope + intercept of slices [n, ...] from `start` on, float32; one number each, or one per slice."""
    a, b = (per_slice(numbers, start, stored) for numbers in (slope, intercept))
    return (stored * a + b).astype(np.float32)


def per_slice(numbers: Any, start: int, slab: np.ndarray) -> Any:
    """One number for all, or those of slices from `start` on, float64, shaped to go with a slab [n, ...]."""
    if len(numbers) == 1:
        return float(numbers[0])
    return np.asarray(numbers[start : start + len(slab)], np.float64).reshape(-1, *(1 for _ in slab.shape[1:]))

"""Intensity mappings: values in a volume's units to the model's range and exactly back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archive.errors import InputError
from model.source import Source, as_source, channel_slab

HU = (-1024.0, 3071.0)
# HU where a companded scale is finest, and how far from there it is coarser by the root of two (docs/decisions/0011).
SOFT_TISSUE = (40.0, 600.0)
FIT_SLICES = 24  # slices looked at to fit a mapping, spread evenly


@dataclass(frozen=True)
class Mapping:
    """An invertible map of values to about [-1, 1]: linear in value, or in asinh((value - centre) / knee).

    low, high: the values that become -1 and 1. clip: whether values beyond them are clipped before the model (CT:
    the 12-bit HU range; 8-bit pictures) or kept. knee: 0 for linear, else how far from centre asinh turns from linear to
    logarithmic.
    """

    low: float
    high: float
    clip: bool = False
    knee: float = 0.0
    centre: float = 0.0

    def to_model(self, values: np.ndarray) -> np.ndarray:
        """Values in units to the model's range, float32. Raises InputError NON_FINITE."""
        if not np.isfinite(values).all():
            raise InputError("NON_FINITE", "the volume holds values that are not finite")
        if self.clip:
            values = np.clip(values, self.low, self.high)
        low, high = self._bent(self.low), self._bent(self.high)
        return ((self._bent(values) - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)

    def to_values(self, x: np.ndarray) -> np.ndarray:
        """The model's range back to values in units, float32; clipped to low and high where `clip`."""
        low, high = self._bent(self.low), self._bent(self.high)
        bent = (np.asarray(x, np.float64) + 1.0) * ((high - low) / 2.0) + low
        values = self.centre + self.knee * np.sinh(np.clip(bent, -80, 80)) if self.knee else bent
        return (np.clip(values, self.low, self.high) if self.clip else values).astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        found = {"low": self.low, "high": self.high, "clip": self.clip, "knee": self.knee}
        return {**found, "centre": self.centre} if self.centre else found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Mapping:
        """Read what `as_dict` wrote."""
        return cls(
            float(data["low"]),
            float(data["high"]),
            bool(data["clip"]),
            float(data["knee"]),
            float(data.get("centre", 0)),
        )

    def _bent(self, values: Any) -> Any:
        values = np.asarray(values, np.float64)
        return np.arcsinh((values - self.centre) / self.knee) if self.knee else values


def fit(volume: Any, kind: str) -> Mapping:
    """The mapping of one volume.

    kind: hu (fixed, clipped), hu-companded (the same, soft tissue with nearly twice its share of the range), bytes
    (0 to 255 clipped where the dtype is 8 bits, else by its values), robust (0.1 and 99.9 percentiles, values beyond
    kept), asinh (0 to the 99.9 percentile, the knee at a twentieth of it).
    Percentiles are of slices spread evenly, so that the fit costs the same for any size. Raises InputError NON_FINITE.
    """
    source = as_source(volume)
    if kind == "hu":
        return Mapping(*HU, clip=True)
    if kind == "hu-companded":
        centre, knee = SOFT_TISSUE
        return Mapping(*HU, clip=True, knee=knee, centre=centre)
    if kind == "bytes" and source.dtype == np.uint8:
        return Mapping(0.0, 255.0, clip=True)
    low, high = percentiles(source)
    if kind == "asinh":
        top = high if high > 0 else max(abs(low), 1.0)
        return Mapping(min(0.0, low), top, knee=top / 20.0)
    return Mapping(low, high)


def percentiles(source: Source, percent: tuple[float, float] = (0.1, 99.9)) -> tuple[float, float]:
    """Two percentiles of a volume's values from evenly spread slices; always apart by more than nothing."""
    values = spread(source, FIT_SLICES)
    if not np.isfinite(values).all():
        raise InputError("NON_FINITE", "the volume holds values that are not finite")
    low, high = (float(value) for value in np.percentile(values, percent))
    if high - low < 1e-6 * max(1.0, abs(low)):  # a constant, or a few bright voxels on nothing
        low, high = float(values.min()), float(values.max())
    return (low, high) if high - low > 1e-6 * max(1.0, abs(low)) else (low, low + max(1.0, abs(low)))


def spread(source: Source, most: int) -> np.ndarray:
    """Values of at most `most` slices spread evenly over the volume, float32 [n, c, y, x]."""
    picks = np.unique(np.linspace(0, source.slices - 1, min(most, source.slices)).round().astype(int))
    return np.concatenate([channel_slab(source, int(at), int(at) + 1) for at in picks])

"""What a model reaches on a fixed, small sample of volumes, measured through the same code that encodes archives."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archive.errors import InputError
from archive.geometry import Geometry
from archive.volume import Volume
from model.decode import decode_codes
from model.encode import encode_volume
from model.intensity import HU, percentiles
from model.metrics import entropy, histogram, psnr, ssim, use
from model.source import Source, as_source
from model.vqvae import VQVAE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peak:
    """The range that PSNR and SSIM refer to: values are clipped to low and high first where `clip`."""

    low: float
    high: float
    clip: bool

    @property
    def range(self) -> float:
        """high - low."""
        return self.high - self.low

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Values as they are compared, float64."""
        wide = np.asarray(values, np.float64)
        return np.clip(wide, self.low, self.high) if self.clip else wide


def peak_of(source: Source) -> Peak:
    """4,095 HU for CT after clipping to [-1024, 3071]; 255 for 8 bits; else the 0.1 to 99.9 percentile range."""
    if source.units == "HU":
        return Peak(*HU, clip=True)
    if source.dtype == np.uint8 and source.attributes["slope"] == [1.0] and source.attributes["intercept"] == [0.0]:
        return Peak(0.0, 255.0, clip=False)
    return Peak(*percentiles(source), clip=False)


@dataclass(frozen=True)
class Fidelity:
    """Means over series. worst_decile: mean PSNR of the worst tenth of the series, one at least. bits_per_voxel:
    zero-order entropy of the codes; codebook_use: share of codes that occur. by_series: PSNR of each; counts: int64
    [L, K], how often each code occurred."""

    psnr: float
    worst_decile: float
    ssim: float | None
    bits_per_voxel: float
    codebook_use: float
    series: int
    slices: int
    sample: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)
    by_series: list[float] = field(default_factory=list, repr=False)
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64), repr=False)


def sample_fidelity(
    model: VQVAE, volumes: Mapping[str, Any], deadline: float, most: int = 48, per_series: int = 6
) -> Fidelity:
    """Encode and decode evenly spread slices (blocks, for a 3D model) of the volumes until `deadline`.

    deadline: time.monotonic() not to pass; at least one piece is measured. Series take turns, so a short time still
    sees several. Pieces that are not finite are left out; raises InputError NOTHING_FOUND where all are.
    """
    model.eval()
    names = sorted(volumes)
    sources = [as_source(volumes[name]) for name in names]
    order = np.random.default_rng(0).permutation(len(names))[:most]
    turns = [(int(i), turn) for turn in range(per_series) for i in order]
    errors: dict[int, list[float]] = {}
    similar: dict[int, list[float]] = {}
    peaks: dict[int, Peak] = {}
    counts = np.zeros((model.config.code_levels, model.config.codebook_size), np.int64)
    voxels, slices, longest = 0, 0, 0.0
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    for i, turn in turns:
        began = time.monotonic()
        if slices and (slices >= most or began + 1.5 * longest > deadline):
            break
        source = sources[i]
        if turn and turn >= source.slices:
            continue
        piece = _piece(source, turn, per_series, model.config.patch[0])
        try:
            codes = encode_volume(model, piece)
            decoded = decode_codes(model, codes)
            peak = peaks[i] if i in peaks else peak_of(source)
        except InputError as error:  # encoding the archive will refuse the series and name it
            log.warning("a piece of a series is not measured (%s): voxbook verify tells which", error.code)
            continue
        peaks[i] = peak
        a, b = peak.cut(piece.values()), peak.cut(decoded.values())
        errors.setdefault(i, []).append(float(np.square(a - b).mean()))
        planes = list(zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *a.shape[-2:]), strict=True))
        found = [ssim(x, y, peak.range) for x, y in planes[:4]]
        similar.setdefault(i, []).extend(value for value in found if value is not None)
        counts += histogram(codes.array, model.config.codebook_size)
        voxels += math.prod(piece.voxels.shape) // model.config.channels
        slices += 1
        if len(shown) < 4 and turn == per_series // 2 % max(1, source.slices):
            shown.append(planes[0])
        longest = max(longest, time.monotonic() - began)
    if not errors:
        raise InputError("NOTHING_FOUND", "no series to measure on")
    psnrs = [psnr(float(np.mean(values)), peaks[i].range) for i, values in errors.items()]
    ssims = [float(np.mean(values)) for values in similar.values() if values]
    bits = sum(entropy(level) * level.sum() for level in counts) / max(1, voxels)
    return Fidelity(
        float(np.mean(psnrs)),
        worst_decile(psnrs),
        float(np.mean(ssims)) if ssims else None,
        float(bits),
        float(np.mean([use(level) for level in counts[: model.config.levels]])),
        len(errors),
        slices,
        shown or planes[:1],
        psnrs,
        counts,
    )


def worst_decile(values: Sequence[float]) -> float:
    """Mean of the lowest tenth of the values, rounded up to one at least."""
    return float(np.mean(sorted(values)[: -(-len(values) // 10)]))


def _piece(source: Source, turn: int, turns: int, depth_wanted: int) -> Volume:
    """A few neighbouring slices as a Volume of their own; turn 0 to turns - 1 walk through the series evenly."""
    depth = source.shape[-3]
    take = min(depth_wanted, depth)
    at = int((turn + 0.5) / turns * source.slices)
    start = at // depth * depth + min(at % depth, depth - take)
    stored = source.slab(start, start + take)
    colour = "c" in source.axes
    about = source.attributes
    slope, intercept = (
        tuple(about[key]) if len(about[key]) == 1 else tuple(about[key][start : start + take])
        for key in ("slope", "intercept")
    )
    rows, columns = source.shape[-2:]
    return Volume(
        np.moveaxis(stored, 1, 0) if colour else stored,
        "czyx" if colour else "zyx",
        Geometry.pixels((take, rows, columns)),
        about["modality"],
        units=source.units,
        photometric=about["photometric"],
        slope=slope,
        intercept=intercept,
    )

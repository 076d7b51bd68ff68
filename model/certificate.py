"""What an encoded series is worth: measured slab by slab against its source, and judged by the gate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from archive.codes import Codes
from archive.errors import MismatchError
from archive.jpeg2000 import round_trip
from archive.settings import GateSettings
from archive.volume import Volume
from model.fidelity import Peak, peak_of
from model.metrics import entropy, histogram, perplexity, psnr, ssim, use
from model.source import Source, as_source, channel_slab, channels, rescaled

SLAB = 8  # slices measured at once
PEER_SLICES = 4  # slices that also go through JPEG 2000


@dataclass(frozen=True)
class Certificate:
    """The measured fidelity and cost of one version of codes.

    psnr: dB over all voxels (999 where exact), peak `peak` after clipping to it where `clipped` (CT). ssim: mean over
    slices, window 7, the same range; None where slices are smaller than the window. mean_error, max_error: absolute,
    in `units`, unclipped. perplexity: per level. codebook_use: share of codes that occur, mean over levels.
    bits_per_voxel: fixed length, zero-order entropy, and bytes on disk with everything counted. ratio: bytes of the
    stored values over bytes on disk. jpeg2000_psnr and codes_psnr_there: of JPEG 2000 and of the codes on the same
    few slices at the same bytes; None where slices are too small or the bytes too few for it. reasons: codes of what
    the gate found.
    """

    psnr: float
    ssim: float | None
    peak: float
    peak_low: float
    peak_high: float
    clipped: bool
    mean_error: float
    max_error: float
    units: str
    perplexity: tuple[float, ...]
    codebook_use: float
    bits_per_voxel: dict[str, float]
    ratio: float
    jpeg2000_psnr: float | None
    codes_psnr_there: float | None
    passed: bool
    reasons: tuple[str, ...]
    model: str
    levels: int
    profile: str
    source_version: str
    voxels: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "perplexity": list(self.perplexity), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Read what `as_dict` wrote."""
        return cls(**{**data, "perplexity": tuple(data["perplexity"]), "reasons": tuple(data["reasons"])})


def certify(
    volume: Any,
    decoded: Volume,
    codes: Codes,
    bytes_on_disk: int,
    gate: GateSettings | None = None,
    *,
    peer: bool = True,
) -> Certificate:
    """Measure a decoded volume against its source, a few slices at a time, and judge it.

    volume: Volume or StoredVolume; decoded: of the same shape; bytes_on_disk: the codes' version with everything in
    it; peer False leaves JPEG 2000 out. Raises MismatchError WRONG_MODEL where the shapes differ.
    """
    source, other = as_source(volume), as_source(decoded)
    if source.shape != other.shape or source.axes != other.axes:
        raise MismatchError("WRONG_MODEL", "the decoded volume and its source differ in shape")
    peak = peak_of(source)
    squares, absolute, largest, similar, count = 0.0, 0.0, 0.0, [], 0
    for a, b in _slabs(source, decoded):
        difference = np.abs(a.astype(np.float64) - b)
        absolute += float(difference.sum())
        largest = max(largest, float(difference.max()))
        count += difference.size
        a, b = peak.cut(a), peak.cut(b)
        squares += float(np.square(a - b).sum())
        for x, y in zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True):
            value = ssim(x, y, peak.range)
            if value is not None:
                similar.append(value)
    counts = histogram(codes.array, codes.codebook_size)
    voxels = count // channels(source)
    fixed = codes.array.size * (codes.codebook_size - 1).bit_length() / voxels
    bits = {
        "fixed": fixed,
        "entropy": sum(entropy(level) * int(level.sum()) for level in counts) / voxels,
        "disk": 8 * bytes_on_disk / voxels,
    }
    theirs, ours = _peer(source, decoded, peak, bits["disk"]) if peer else (None, None)
    found = psnr(squares / count, peak.range)
    mean_ssim = float(np.mean(similar)) if similar else None
    reasons = judge(gate or GateSettings(), found, mean_ssim, largest)
    return Certificate(
        psnr=found,
        ssim=mean_ssim,
        peak=peak.range,
        peak_low=peak.low,
        peak_high=peak.high,
        clipped=peak.clip,
        mean_error=absolute / count,
        max_error=largest,
        units=source.units,
        perplexity=tuple(perplexity(level) for level in counts),
        codebook_use=float(np.mean([use(level) for level in counts])),
        bits_per_voxel=bits,
        ratio=count * source.dtype.itemsize / bytes_on_disk,
        jpeg2000_psnr=theirs,
        codes_psnr_there=ours,
        passed=not reasons,
        reasons=reasons,
        model=codes.model,
        levels=codes.levels,
        profile=codes.profile,
        source_version=codes.source_version,
        voxels=voxels,
    )


def judge(gate: GateSettings, psnr: float, ssim: float | None, max_error: float) -> tuple[str, ...]:
    """Reason codes of what misses the gate; empty where it passes or nothing is set."""
    reasons = []
    if gate.min_psnr is not None and psnr < gate.min_psnr:
        reasons.append("BELOW_MIN_PSNR")
    if gate.min_ssim is not None:
        if ssim is None:
            reasons.append("NOT_MEASURABLE")
        elif ssim < gate.min_ssim:
            reasons.append("BELOW_MIN_SSIM")
    if gate.max_error is not None and max_error > gate.max_error:
        reasons.append("ABOVE_MAX_ERROR")
    return tuple(reasons)


def _slabs(source: Source, decoded: Volume) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of float32 [n, c, y, x] in units, a few slices at a time, in whole z of one t."""
    depth = source.shape[-3]
    for first in range(0, source.slices, depth):
        for start in range(first, first + depth, SLAB):
            stop = min(start + SLAB, first + depth)
            yield channel_slab(source, start, stop), _values(decoded, start, stop)


def _values(volume: Volume, start: int, stop: int) -> np.ndarray:
    """What `channel_slab` gives, of a Volume, without copying more than the slab."""
    t, z = divmod(start, volume.voxels.shape[-3])
    frame = volume.voxels[t] if volume.axes.startswith("t") else volume.voxels
    block = frame[..., z : z + stop - start, :, :]
    block = np.moveaxis(block, 1, 0) if "c" in volume.axes else block[:, None]
    return rescaled(block, volume.slope, volume.intercept, start)


def _peer(source: Source, decoded: Volume, peak: Peak, bits: float) -> tuple[float | None, float | None]:
    """PSNR of JPEG 2000 and of the codes on the same sampled slices, at the codes' bits per voxel on disk."""
    theirs, ours = [], []
    picks = np.unique(np.linspace(0, source.slices - 1, min(PEER_SLICES + 2, source.slices)).round().astype(int))
    for at in picks[1:-1] if len(picks) > 2 else picks:
        a = peak.cut(channel_slab(source, int(at), int(at) + 1)[0])
        b = peak.cut(_values(decoded, int(at), int(at) + 1)[0])
        after = _through(a, peak, bits)
        if after is None:
            return None, None
        theirs.append(float(np.square(after - a).mean()))
        ours.append(float(np.square(b - a).mean()))
    return psnr(float(np.mean(theirs)), peak.range), psnr(float(np.mean(ours)), peak.range)


def _through(image: np.ndarray, peak: Peak, bits: float) -> np.ndarray | None:
    """One slice [c, y, x] through JPEG 2000 at `bits` per voxel."""
    size = bits * image.shape[-2] * image.shape[-1] / 8
    if len(image) == 3:
        pixels = np.clip(np.rint(np.moveaxis(image, 0, -1)), 0, 255).astype(np.uint8)
        after = round_trip(pixels, size, 8)
        return None if after is None else np.moveaxis(after.astype(np.float64), -1, 0)
    # Whole HU fit 12 bits exactly; other values are spread over 16, far finer than any error at these rates.
    low, high = (peak.low, peak.high) if peak.clip else (float(image.min()), float(image.max()))
    steps = 4095 if peak.clip else 65535
    step = (high - low) / steps or 1.0
    after = round_trip(np.rint((image[0] - low) / step).astype(np.uint16), size, math.ceil(math.log2(steps + 1)))
    return None if after is None else after[None] * step + low

"""What an encoded series is worth: measured slab by slab against its source, and judged by the gate."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from archive.codes import Codes
from archive.errors import MismatchError
from archive.jpeg2000 import round_trip
from archive.settings import GateSettings
from model.fidelity import Peak, peak_of
from model.metrics import entropy, histogram, perplexity, psnr, ssim, use
from model.source import as_source, channel_slab, channels

SLAB = 8  # slices measured at once
PEER_SLICES = 4  # slices that also go through JPEG 2000,
PEER_SHARE = 4  # and at most one in so many of those measured
FEW = 8  # slices of a series that are always measured,
SHARE = 8  # and one in so many of a long one


LISTS = ("perplexity", "level_use", "reasons", "rungs")


@dataclass(frozen=True)
class Certificate:
    """The measured fidelity and cost of one version of codes.

    psnr: dB over the voxels checked (999 where exact), peak `peak` after clipping to it where `clipped` (CT). ssim:
    mean over slices, window 7, the same range; None where slices are smaller than the window. mean_error, max_error:
    absolute, in `units`, unclipped. perplexity: per codebook. codebook_use: share of codes that occur, mean over
    codebooks; level_use: of each.
    bits_per_voxel: fixed length, zero-order entropy, and bytes on disk with everything counted. ratio: bytes of the
    stored values over bytes on disk. jpeg2000_psnr and codes_psnr_there: of JPEG 2000 and of the codes on the same
    few slices at the same bytes; None where slices are too small or the bytes too few for it. reasons: codes of what
    the gate found. voxels, slices: of the series; checked_voxels, checked_slices: of them measured against the source;
    sampled_by: what seeded their choice, empty where all were. Bits, perplexity and use are of all codes.
    rung: what a reader is given to pass the gate: codes, bounded (the layer of archive.bounded), or volume where nothing
    passes; rungs: each one tried, with levels, bytes and figures (model.ladder). unlike: Jensen-Shannon divergence in
    bits, 0 to 1, of how often the codes occur here and in training, mean over levels; unlike_distances: the same of how
    far the latents lie from their codes (model.unlike). None for models whose tables do not say.
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
    slices: int
    checked_slices: int
    checked_voxels: int
    sampled_by: str
    rung: str = "codes"
    rungs: tuple[dict[str, Any], ...] = ()
    unlike: float | None = None
    unlike_distances: float | None = None
    level_use: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in LISTS}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Read what `as_dict` wrote."""
        return cls(**{**data, **{name: tuple(data.get(name, ())) for name in LISTS}})


def certify(
    volume: Any,
    decoded: Any,
    codes: Codes,
    bytes_on_disk: int,
    gate: GateSettings | None = None,
    *,
    peer: bool = True,
    sample: int | None = None,
    seed: str = "",
) -> Certificate:
    """Measure a decoded volume against its source, a few slices at a time, and judge it.

    volume: Volume or StoredVolume; decoded: Volume, or DecodedVolume, which decodes what is looked at only; of the same
    shape. bytes_on_disk: the codes' version with everything in it; peer False leaves JPEG 2000 out. sample: measure
    `sampled` slices of the volume with at most this number, drawn by `seed`; None, and a gate with max_error: all (a
    bound is no sample). Raises MismatchError WRONG_MODEL where the shapes differ.
    """
    source, other = as_source(volume), as_source(decoded)
    if source.shape != other.shape or source.axes != other.axes:
        raise MismatchError("WRONG_MODEL", "the decoded volume and its source differ in shape")
    gate = gate or GateSettings()
    if gate.max_error is not None:
        sample = None
    parts = _parts(source.slices, source.shape[-3], getattr(decoded, "together", 1), sample, seed)
    peak = peak_of(source)
    measured = _Sums()
    wanted = _peer_slices(parts) if peer else frozenset()
    bits_on_disk = 8 * bytes_on_disk / (math.prod(source.shape) // channels(source))
    theirs, ours = _Sums(), _Sums()
    for start, stop in parts:
        pairs = zip(channel_slab(source, start, stop), channel_slab(other, start, stop), strict=True)
        for number, (a, b) in enumerate(pairs, start):
            measured.add(a, b, peak, similar=True)
            if number in wanted:
                after = _through(peak.cut(a), peak, bits_on_disk)
                if after is not None:
                    theirs.add(a, after, peak)
                    ours.add(a, b, peak)
    counts = histogram(codes.array, codes.codebook_size)
    learned = counts[: getattr(decoded, "codebooks", None)]  # of corrections, most codes are of nothing
    count = math.prod(source.shape)
    voxels = count // channels(source)
    bits = {
        "fixed": codes.array.size * (codes.codebook_size - 1).bit_length() / voxels,
        "entropy": sum(entropy(level) * int(level.sum()) for level in counts) / voxels,
        "disk": bits_on_disk,
    }
    found = psnr(measured.squares / measured.count, peak.range)
    mean_ssim = float(np.mean(measured.similar)) if measured.similar else None
    reasons = judge(gate, found, mean_ssim, measured.largest)
    return Certificate(
        psnr=found,
        ssim=mean_ssim,
        peak=peak.range,
        peak_low=peak.low,
        peak_high=peak.high,
        clipped=peak.clip,
        mean_error=measured.absolute / measured.count,
        max_error=measured.largest,
        units=source.units,
        perplexity=tuple(perplexity(level) for level in learned),
        codebook_use=float(np.mean([use(level) for level in learned])),
        level_use=tuple(use(level) for level in learned),
        bits_per_voxel=bits,
        ratio=count * source.dtype.itemsize / bytes_on_disk,
        jpeg2000_psnr=psnr(theirs.squares / theirs.count, peak.range) if theirs.count else None,
        codes_psnr_there=psnr(ours.squares / ours.count, peak.range) if ours.count else None,
        passed=not reasons,
        reasons=reasons,
        model=codes.model,
        levels=codes.levels,
        profile=codes.profile,
        source_version=codes.source_version,
        voxels=voxels,
        slices=source.slices,
        checked_slices=sum(stop - start for start, stop in parts),
        checked_voxels=measured.count // channels(source),
        sampled_by="" if sample is None else seed,
    )


@dataclass
class _Sums:
    """What adds up over slices; `count` values of them."""

    squares: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    count: int = 0
    similar: list[float] = field(default_factory=list)

    def add(self, a: np.ndarray, b: np.ndarray, peak: Peak, similar: bool = False) -> None:
        """Take in one slice [c, y, x] in units and what stands for it."""
        difference = np.abs(np.subtract(a, b, dtype=np.float64))
        self.absolute += float(difference.sum())
        self.largest = max(self.largest, float(difference.max()))
        self.count += difference.size
        if peak.clip:
            a, b = np.clip(a, peak.low, peak.high), np.clip(b, peak.low, peak.high)
            difference = np.subtract(a, b, dtype=np.float64)
        flat = difference.ravel()
        self.squares += float(np.dot(flat, flat))
        for x, y in zip(a, b, strict=True) if similar else ():
            value = ssim(x, y, peak.range)
            if value is not None:
                self.similar.append(value)


def sampled(slices: int, most: int) -> int:
    """How many slices of a series are measured where not all are: an eighth, within 8 and `most`; all of a short one."""
    return min(slices, max(1, min(most, max(FEW, slices // SHARE))))


def _parts(slices: int, depth: int, together: int, sample: int | None, seed: str) -> list[tuple[int, int]]:
    """Runs of slices (start, stop) to measure, each within one time point and at most `together` long or a few.

    Of a sample: one run at random out of each of as many equal shares of the series (stratified; Cochran 1977).
    """
    step = max(together, SLAB if sample is None else 1)
    runs = [
        (first + at, first + min(at + step, depth)) for first in range(0, slices, depth) for at in range(0, depth, step)
    ]
    if sample is None:
        return runs
    wanted = sampled(slices, sample)
    draws = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    for count in range(-(-wanted // step), len(runs)):
        picks = ((np.arange(count) + draws.random(count)) * len(runs) / count).astype(int)
        chosen = [runs[at] for at in dict.fromkeys(np.minimum(picks, len(runs) - 1).tolist())]
        if sum(stop - start for start, stop in chosen) >= wanted:  # the last run of a time point may be a short one
            return chosen
    return runs


def _peer_slices(parts: list[tuple[int, int]]) -> frozenset[int]:
    """Slices of those measured that also go through JPEG 2000: few, and away from both ends where there are more."""
    measured = [number for part in parts for number in range(*part)]
    count = max(1, min(PEER_SLICES, len(measured) // PEER_SHARE))
    return frozenset(measured[(2 * at + 1) * len(measured) // (2 * count)] for at in range(count))


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

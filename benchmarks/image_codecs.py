"""JPEG 2000, JPEG-LS near-lossless and JPEG XL on the pictures of one series: fidelity against bytes, headers counted.

A codec is swept over its own quality setting, the same for all pictures of a series, so that it spends its bits where
the series needs them; between the points measured the curve is read by straight lines over the logarithm of the rate.
Bytes are those of bare codestreams; what all streams of a series have in common at their start (the main header) is
counted once, since a store could write it once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scores import Scorer

from model.fidelity import Peak

Encode = Callable[[np.ndarray, int, float], bytes]
Decode = Callable[[bytes, tuple[int, ...]], np.ndarray]
ROUNDS = 12  # of halving a codec's settings until its bytes are those asked for,
ENOUGH = 0.99  # or nearly
LEAST_SIDE = 32  # smaller pictures hold too few wavelet levels to say anything about a rate


@dataclass(frozen=True)
class Point:
    """One setting over one series. bits: per voxel, headers counted; largest: error of any value in the peak's range."""

    bits: float
    psnr: float
    ssim: float | None
    setting: float
    largest: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        ssim = None if self.ssim is None else round(self.ssim, 4)
        found = {"bits": round(self.bits, 4), "psnr": round(self.psnr, 2), "ssim": ssim, "setting": self.setting}
        return found if self.largest is None else {**found, "largest": round(self.largest, 3)}


@dataclass(frozen=True)
class Steps:
    """Values as unsigned integers and back: sample = (value - low) / step, in `bits` bits."""

    low: float
    step: float
    bits: int

    def samples(self, values: np.ndarray) -> np.ndarray:
        """uint8 or uint16, [y, x] or [y, x, 3] of values [c, y, x]."""
        found = np.clip(np.rint((values - self.low) / self.step), 0, 2**self.bits - 1)
        found = found.astype(np.uint8 if self.bits <= 8 else np.uint16)
        return np.ascontiguousarray(found[0] if len(found) == 1 else np.moveaxis(found, 0, -1))

    def values(self, samples: np.ndarray) -> np.ndarray:
        """float64 [c, y, x]."""
        wide = samples.astype(np.float64) * self.step + self.low
        return wide[None] if wide.ndim == 2 else np.moveaxis(wide, -1, 0)


def steps_of(pictures: Sequence[np.ndarray], peak: Peak, step: float | None) -> Steps:
    """CT: whole HU in 12 bits; other whole-numbered series their own steps in as many bits as their range needs;
    the rest (slopes that vary, floats) 16 bits over their range, far finer than any error at these rates.

    step: between two stored values, None where it varies.
    """
    if peak.clip:
        return Steps(peak.low, 1.0, 12)
    low = min(float(picture.min()) for picture in pictures)
    high = max(float(picture.max()) for picture in pictures)
    if step is not None and (high - low) / step < 65536:
        return Steps(low, step, max(8, math.ceil(math.log2((high - low) / step + 1.5))))
    return Steps(low, (high - low) / 65535 or 1.0, 16)


@dataclass(frozen=True)
class Codec:
    """A way to code pictures: a name for tables, the settings to sweep, and the two directions.

    limits: the settings of the fewest bytes and of the most, between which bytes only grow; whole: only whole ones.
    """

    name: str
    settings: tuple[float, ...]
    encode: Encode
    decode: Decode
    limits: tuple[float, float]
    whole: bool = False


def codecs() -> tuple[Codec, ...]:
    """The peers. Two of one name are two ways of one standard, of which the better counts at every rate."""
    return (
        Codec("JPEG 2000", (24, 27, 30, 33, 36, 39, 42, 45, 48, 52, 56, 60, 66), _j2k_quality, _j2k_decode, (15, 110)),
        Codec(
            "JPEG 2000",
            (0.02, 0.03, 0.05, 0.08, 0.125, 0.18, 0.25, 0.4, 0.6, 1.0, 1.5),
            _j2k_rate,
            _j2k_decode,
            (0.005, 16),
        ),
        Codec(
            "JPEG-LS", (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 127, 180, 255), _jls(0), _jls_decode(0), (255, 0), True
        ),
        # 4 bits coarser: lower rates still
        Codec("JPEG-LS", (12, 18, 27, 40, 60, 90, 120), _jls(4), _jls_decode(4), (255, 0), True),
        Codec("JPEG XL", (0.3, 0.6, 1, 1.7, 2.5, 3.5, 5, 7, 9, 12, 15, 19, 25), _jxl, _jxl_decode, (25, 0.01)),
    )  # fmt: skip


def curves(
    pictures: Sequence[np.ndarray], peak: Peak, step: float | None, chosen: Sequence[Codec] = ()
) -> dict[str, list[list[Point]]]:
    """Name = one curve per way of that codec, points by rising rate.

    pictures: float [c, y, x] each, in the series' units. A setting that a codec refuses is left out.
    """
    steps = steps_of(pictures, peak, step)
    found: dict[str, list[list[Point]]] = {}
    for codec in chosen or codecs():
        # One after the other: imagecodecs' JPEG 2000 crashes the process when two threads code at once.
        points = [_point(codec, setting, pictures, peak, steps) for setting in codec.settings]
        there = sorted((point for point in points if point is not None), key=lambda point: point.bits)
        found.setdefault(codec.name, []).append(there)
    return found


def at_rate(ways: Sequence[Sequence[Point]], bits: float, figure: str) -> float | None:
    """The best `figure` (psnr or ssim) that any way of a codec reaches with at most `bits` per voxel; None below its
    lowest rate. Above its highest rate, that one's figure."""
    best: float | None = None
    for points in ways:
        there = [(point.bits, getattr(point, figure)) for point in points if getattr(point, figure) is not None]
        if not there or bits < there[0][0] * (1 - 1e-9):
            continue
        rates, figures = np.array([rate for rate, _ in there]), np.array([value for _, value in there])
        # A larger stream that looks worse is nobody's choice.
        value = float(np.interp(math.log(bits), np.log(rates), np.maximum.accumulate(figures)))
        best = value if best is None else max(best, value)
    return best


def at_bytes(
    pictures: Sequence[np.ndarray], peak: Peak, step: float | None, bits: float, chosen: Sequence[Codec] = ()
) -> dict[str, Point | None]:
    """Name = what that codec makes of the pictures in at most `bits` per voxel, its settings searched until they are
    used up, by its better way; None where it cannot go so low. Otherwise as `curves`."""
    steps = steps_of(pictures, peak, step)
    found: dict[str, Point | None] = {}
    for codec in chosen or codecs():
        point, best = _within(codec, pictures, peak, steps, bits), found.get(codec.name)
        found[codec.name] = point if best is None or (point is not None and point.psnr > best.psnr) else best
    return found


def _within(codec: Codec, pictures: Sequence[np.ndarray], peak: Peak, steps: Steps, bits: float) -> Point | None:
    """The point of the most bytes that are within bits, by halving; a refused setting counts as too few bytes."""
    low, high = codec.limits
    best: Point | None = None
    for _ in range(ROUNDS):
        # By ratio: rates, distances and bounds span decades; a decibel is a ratio already.
        middle = (low + high) / 2 if codec.encode is _j2k_quality else math.sqrt((low + 0.25) * (high + 0.25)) - 0.25
        setting = float(round(middle)) if codec.whole else middle
        point = _point(codec, setting, pictures, peak, steps)
        if point is not None and point.bits > bits:
            high = middle
            continue
        if point is not None and (best is None or point.bits > best.bits):
            best = point
        if point is not None and point.bits > bits * ENOUGH:
            break
        low = middle
    return best


def _point(codec: Codec, setting: float, pictures: Sequence[np.ndarray], peak: Peak, steps: Steps) -> Point | None:
    scorer, streams, voxels = Scorer(peak), [], 0
    for picture in pictures:
        if min(picture.shape[-2:]) < LEAST_SIDE:
            return None
        samples = steps.samples(picture)
        try:
            stream = codec.encode(samples, steps.bits, setting)
            decoded = codec.decode(stream, samples.shape)
        except (RuntimeError, ValueError, TypeError):
            return None  # a setting that this codec does not take for such pictures
        streams.append(bytes(stream))
        scorer.add(picture, steps.values(decoded))
        voxels += picture.shape[-1] * picture.shape[-2]
    total = sum(map(len, streams)) - (len(streams) - 1) * common(streams)
    score = scorer.score()
    return Point(8 * total / voxels, score.psnr, score.ssim, setting, score.largest)


def common(streams: Sequence[bytes]) -> int:
    """Bytes that all the streams start with."""
    first, last = min(streams), max(streams)  # whatever these two share, all between them share
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _resolutions(samples: np.ndarray) -> int:
    """Five wavelet levels, fewer where the picture is small."""
    return min(6, max(1, int(math.log2(min(samples.shape[:2]))) - 2))


def _j2k_quality(samples: np.ndarray, bits: int, setting: float) -> bytes:
    """To a PSNR per picture; 9/7 wavelet, one tile, one layer, colour transform for colour alone."""
    import imagecodecs

    return imagecodecs.jpeg2k_encode(
        samples,
        level=setting,
        codecformat="j2k",
        bitspersample=bits,
        resolutions=_resolutions(samples),
        reversible=False,
        mct=samples.ndim == 3,
        numthreads=1,
    )


def _j2k_rate(samples: np.ndarray, bits: int, setting: float) -> bytes:
    """To the same bytes for every picture."""
    from openjpeg.utils import encode_array

    colours = samples.shape[2] if samples.ndim == 3 else 1
    return encode_array(
        samples,
        bits_stored=bits,
        photometric_interpretation=1 if colours == 3 else 2,
        use_mct=colours == 3,
        compression_ratios=[max(1.0, bits * colours / setting)],
    )


def _j2k_decode(stream: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg2k_decode(stream)).reshape(shape)


def _jls(shift: int) -> Encode:
    """Near-lossless by CharLS, told the bits that are used, so that its contexts fit them."""

    def encode(samples: np.ndarray, bits: int, setting: float) -> bytes:
        import jpeg_ls

        kept = max(2, bits - shift)
        near = int(setting)
        if near > min(255, (2**kept - 1) // 2) or (shift and bits < 12):
            raise ValueError("beyond what JPEG-LS allows")
        coarse = (samples >> shift).astype(np.uint8 if kept <= 8 else np.uint16)
        colours = samples.shape[2] if samples.ndim == 3 else 1
        return bytes(
            jpeg_ls.encode_buffer(
                coarse.tobytes(),
                samples.shape[0],
                samples.shape[1],
                colours,
                kept,
                lossy_error=near,
                interleave_mode=2 if colours == 3 else 0,
            )
        )

    return encode


def _jls_decode(shift: int) -> Decode:
    def decode(stream: bytes, shape: tuple[int, ...]) -> np.ndarray:
        import imagecodecs

        found = np.asarray(imagecodecs.jpegls_decode(stream)).reshape(shape)
        return (found.astype(np.uint16) << shift) + ((1 << shift) >> 1)  # the middle of the coarser step

    return decode


def _jxl(samples: np.ndarray, bits: int, setting: float) -> bytes:
    """Lossy (VarDCT) to a distance, effort 7: made for eyes, so its PSNR is not its best side."""
    import imagecodecs

    return imagecodecs.jpegxl_encode(
        samples, distance=setting, effort=7, bitspersample=bits, usecontainer=False, numthreads=1
    )


def _jxl_decode(stream: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(stream, numthreads=1)).reshape(shape)

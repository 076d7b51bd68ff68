"""Small files of any pixels, plain or encapsulated, and how they are read in tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian
from tiny import save, tiny

from archive.decoder import PixelDecoder
from archive.headers import read_header
from archive.pixels import read_frame

GREY8 = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
RGB8 = {**GREY8, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}


def write(path: Path, pixels: np.ndarray | bytes, syntax: str = ExplicitVRLittleEndian, **changes) -> Path:
    """A tiny file of other pixels; shape by `changes`."""
    raw = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    return save(tiny(0, pixels=raw + b"\0" * (len(raw) % 2), **changes), path, syntax)


def write_coded(path: Path, pixels: bytes, syntax: str, **changes) -> Path:
    """A tiny file of encapsulated pixels."""
    dataset = tiny(0, pixels=pixels, **changes)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return save(dataset, path, syntax)


def read(path: Path, decoder: PixelDecoder, frame: int = 0) -> np.ndarray:
    return read_frame(path, read_header(path), frame, decoder)


def read_all(path: Path, decoder: PixelDecoder) -> np.ndarray:
    """All frames as pydicom lays them out: ([frame,] y, x [, sample])."""
    header = read_header(path)
    frames = [read_frame(path, header, index, decoder) for index in range(header["frames"] or 1)]
    frames = [np.moveaxis(one, 0, -1) if one.ndim == 3 else one for one in frames]
    return np.stack(frames) if len(frames) > 1 else np.ascontiguousarray(frames[0])


def rle(planes: list[bytes]) -> bytes:
    """Segments of literal runs (PS3.5 annex G)."""
    segments = []
    for plane in planes:
        runs = [plane[start : start + 128] for start in range(0, len(plane), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return struct.pack("<16L", len(segments), *offsets, *[0] * (15 - len(offsets))) + b"".join(segments)


def ybr(colour: tuple[int, int, int], partial: bool) -> list[int]:
    """The standard's equations (PS3.3 C.7.6.3.1.2), as they are printed there."""
    red, green, blue = colour
    if partial:
        y = 0.2568 * red + 0.5041 * green + 0.0979 * blue + 16
        cb = -0.1482 * red - 0.2910 * green + 0.4392 * blue + 128
        cr = 0.4392 * red - 0.3678 * green - 0.0714 * blue + 128
    else:
        y = 0.2990 * red + 0.5870 * green + 0.1140 * blue
        cb = -0.1687 * red - 0.3313 * green + 0.5000 * blue + 128
        cr = 0.5000 * red - 0.4187 * green - 0.0813 * blue + 128
    return [min(255, round(value)) for value in (y, cb, cr)]

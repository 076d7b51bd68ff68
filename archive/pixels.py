"""One frame of one DICOM file as stored values: grey or RGB, masked, sign-extended, in native byte order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from archive import codestreams, lookup, syntaxes
from archive.decoder import Decoded, PixelDecoder
from archive.errors import InputError

# What reading one frame needs of its file's header; a plan carries these and no more.
TABLE: tuple[str, ...] = ("pixels", "syntax", "rows", "columns", "samples", "allocated", "stored", "high", "signed")
TABLE += ("photometric", "planar", "frames", "lut")

FLOATS = {0x7FE00008: 32, 0x7FE00009: 64}  # Float and Double Float Pixel Data, and their BitsAllocated
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
HALVED = ("YBR_FULL_422", "YBR_PARTIAL_422")  # uncompressed, two pixels share their chroma: Y Y Cb Cr
BY_CODEC = ("YBR_ICT", "YBR_RCT")  # JPEG 2000 undoes its own transforms
COLOURS = ("RGB", "YBR_FULL", *HALVED, *BY_CODEC)
GE_PRIVATE = "1.2.840.113619.5.2"  # implicit little endian, but for the pixels, which are big endian

# To RGB, from Y minus its black and Cb, Cr minus their middle (PS3.3 C.7.6.3.1.2); rows are Y, Cb, Cr.
YBR_FULL = ((1, 1, 1), (0, -0.114 * 1.772 / 0.587, 1.772), (1.402, -0.299 * 1.402 / 0.587, 0))
YBR_PARTIAL = tuple(
    tuple(value * 255 / span for value in row) for row, span in zip(YBR_FULL, (219, 224, 224), strict=True)
)


def is_native(header: dict[str, Any]) -> bool:
    """Whether the pixels lie in the file uncompressed (a missing transfer syntax with a length means so)."""
    syntax = header["syntax"]
    return syntax in syntaxes.NATIVE or syntax == GE_PRIVATE or (not syntax and header["pixels"][2] >= 0)


def frame_bytes(header: dict[str, Any]) -> int:
    """Bytes of one frame as it lies uncompressed in a file, rounded up where its last byte is shared."""
    return -(-_frame_bits(header) // 8)


def _frame_bits(header: dict[str, Any]) -> int:
    samples = 2 if _is_halved(header) else header["samples"] or 1
    return header["rows"] * header["columns"] * samples * header["allocated"]


def _is_halved(header: dict[str, Any]) -> bool:
    """Whether two pixels share their chroma; some say so and store it in full, which the length tells."""
    if header["photometric"] not in HALVED or header["samples"] != 3:
        return False
    full = header["rows"] * header["columns"] * 3 * (header["allocated"] // 8) * (header["frames"] or 1)
    return header["pixels"][2] not in (full, full + full % 2)


def legal(header: dict[str, Any]) -> str:
    """Why `read_frame` cannot read such pixels, as a reason code; empty where it can. `pixels` must not be None."""
    numbers = [header[key] for key in ("rows", "columns", "allocated")]
    if None in numbers or min(numbers) < 1 or (header["frames"] or 1) < 1:
        return "BAD_HEADER"
    samples, photometric = header["samples"] or 1, header["photometric"]
    if header["pixels"][0] in FLOATS:  # PixelRepresentation, BitsStored and HighBit are not theirs
        right = header["allocated"] == FLOATS[header["pixels"][0]] and samples == 1 and is_native(header)
        return "" if right and photometric in ("", *GREY) else "BAD_HEADER"
    if not photometric or header["stored"] is None or header["signed"] not in (0, 1):
        return "BAD_HEADER"
    if photometric not in (*GREY, PALETTE, *COLOURS) or header["allocated"] not in (1, 8, 16, 32):
        return "UNSUPPORTED_PIXELS"
    if samples != (3 if photometric in COLOURS else 1):
        return "BAD_HEADER"
    high = header["stored"] - 1 if header["high"] is None else header["high"]
    if not 0 <= header["stored"] - 1 <= high < header["allocated"]:
        return "BAD_HEADER"
    if header["allocated"] == 1 and samples != 1:
        return "UNSUPPORTED_PIXELS"
    if photometric == PALETTE and header["stored"] > 16:
        return "BAD_HEADER"
    if photometric.startswith("YBR") and (header["signed"] or header["stored"] > 16):
        return "BAD_HEADER"
    if is_native(header):
        if photometric in BY_CODEC or header["pixels"][2] < 0:
            return "BAD_HEADER"
        return "BAD_HEADER" if _is_halved(header) and (header["columns"] % 2 or header["allocated"] == 1) else ""
    if header["pixels"][2] >= 0 or not header["syntax"]:
        return "BAD_HEADER"  # coded pixels are encapsulated, always
    if photometric in BY_CODEC and header["syntax"] not in codestreams.JPEG_2000:
        return "BAD_HEADER"
    return "" if header["syntax"] in codestreams.CODED else "UNSUPPORTED_PIXELS"


def damage(header: dict[str, Any], size: int) -> str:
    """What is wrong with the pixels of a file of `size` bytes, as a reason code: TRUNCATED, BAD_HEADER or empty.

    For headers that are `legal`. Of coded pixels only their beginning is known before they are read.
    """
    _, offset, length, _, _ = header["pixels"]
    if not is_native(header):
        return "TRUNCATED" if offset + 8 > size else ""
    expected = -(-_frame_bits(header) * (header["frames"] or 1) // 8)
    at_hand = length if header["syntax"] == syntaxes.DEFLATED else min(length, size - offset)
    if at_hand < expected:
        return "TRUNCATED"
    if length - expected % 2 >= expected + frame_bytes(header):
        return "BAD_HEADER"  # one more frame's worth: Rows, Columns or NumberOfFrames cannot be right
    return ""


def read_frame(path: Path, header: dict[str, Any], frame: int, decoder: PixelDecoder) -> np.ndarray:
    """Stored values of frame `frame` (from 0) of a file, [y, x], or [c, y, x] where they are colour.

    Grey: the integers that BitsAllocated and PixelRepresentation name (1 bit: uint8), only the BitsStored bits that
    end at HighBit, without embedded overlays, sign extended; float32 and float64 of (7FE0,0008) and (7FE0,0009);
    behind a modality LUT (0028,3000) uint16, to which slope and intercept do not apply.
    Colour: unsigned RGB, whatever was coded; a palette gives uint8 or uint16. A supplemental palette is not applied.
    Raises InputError TRUNCATED, UNREADABLE, BAD_HEADER, NON_FINITE, DECODE_FAILED, DECODE_LIMIT.
    """
    if code := legal(header):
        raise InputError(code)
    if not 0 <= frame < (header["frames"] or 1):
        raise InputError("BAD_HEADER", "no such frame", frame=frame)
    photometric = header["photometric"]
    if is_native(header):
        array = _from_bytes(_native_bytes(path, header, frame, decoder), header, frame)
        photometric = photometric.replace("_422", "")
    else:
        decoded = decoder.decode(path, header, frame, frame_bytes(header))
        if decoded.array.ndim == 1:  # only wrapped
            array = _from_bytes(decoded.array.tobytes(), header, 0)
        else:
            array = _from_codestream(decoded, header)
        photometric = decoded.colour or photometric.replace("_422", "")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("NON_FINITE", share=float(1 - np.isfinite(array).mean()))
        return array
    if photometric == PALETTE:
        return lookup.palette(path, header).of(array)
    if header["lut"] and array.ndim == 2:
        return lookup.modality(path, header).of(array)[0]
    if array.ndim == 2:
        return array
    if photometric in ("YBR_FULL", "YBR_PARTIAL"):
        array = _to_rgb(array, photometric, header["stored"])
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def pixel_digest(path: Path, header: dict[str, Any], frame: int, decoder: PixelDecoder) -> str:
    """sha256 over one frame's stored values: equal for two files that show the same, however they are coded."""
    array = read_frame(path, header, frame, decoder)
    return hashlib.sha256(f"{array.shape}{array.dtype.str}".encode() + array.tobytes()).hexdigest()


def _native_bytes(path: Path, header: dict[str, Any], frame: int, decoder: PixelDecoder) -> bytes:
    """The bytes of one frame, as they lie; pairs of bytes unswapped where 8-bit samples lie in big-endian words."""
    _, offset, length, big_endian, words = header["pixels"]
    first_bit, bits = frame * _frame_bits(header), _frame_bits(header)
    start, stop = first_bit // 8, -(-(first_bit + bits) // 8)
    swapped = bool(big_endian and words and header["allocated"] <= 8)  # PS3.5 8.1.2 and annex D
    if swapped:
        start, stop = start - start % 2, stop + stop % 2
    at_hand = min(stop, length)
    if length < -(-(first_bit + bits) // 8):
        raise InputError("TRUNCATED", found=max(0, length - start), expected=stop - start)
    if header["syntax"] == syntaxes.DEFLATED:
        place = {**header, "pixels": [0, offset + start, length, 0, 0]}
        raw = decoder.decode(path, place, 0, at_hand - start).array.tobytes()
    else:
        try:
            with path.open("rb") as file:
                file.seek(offset + start)
                raw = file.read(at_hand - start)
        except OSError:
            raise InputError("UNREADABLE") from None
    if len(raw) < at_hand - start:
        raise InputError("TRUNCATED", found=len(raw), expected=at_hand - start)
    if swapped:
        raw = np.frombuffer(raw.ljust(stop - start, b"\0"), "<u2").byteswap().tobytes()
        raw = raw[first_bit // 8 - start :]
    return raw


def _from_bytes(raw: bytes, header: dict[str, Any], frame: int) -> np.ndarray:
    """Uncompressed bytes as samples, [y, x] or [y, x, sample]; a view where nothing has to be moved."""
    rows, columns, allocated = header["rows"], header["columns"], header["allocated"]
    if allocated == 1:  # packed, least significant first, frames not even byte-aligned (PS3.5 8.1.1)
        start = frame * rows * columns % 8
        packed = np.frombuffer(raw, np.uint8)
        return np.unpackbits(packed, bitorder="little")[start : start + rows * columns].reshape(rows, columns)
    order = ">" if header["pixels"][3] or header["syntax"] == GE_PRIVATE else "<"
    kind = "f" if header["pixels"][0] in FLOATS else "u"
    array = np.frombuffer(raw, f"{order}{kind}{allocated // 8}", count=frame_bytes(header) * 8 // allocated)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if kind == "f":
        return array.reshape(rows, columns)
    array = _aligned(array, header["stored"], header["high"], header["signed"])
    if (header["samples"] or 1) == 1:
        return array.reshape(rows, columns)
    if _is_halved(header):
        pairs = array.reshape(rows, columns // 2, 4)
        chroma = np.repeat(pairs[..., 2:], 2, axis=1)
        return np.concatenate([pairs[..., :2].reshape(rows, columns, 1), chroma], axis=-1)
    if header["planar"] == 1:
        return np.moveaxis(array.reshape(3, rows, columns), 0, -1)
    return array.reshape(rows, columns, 3)


def _from_codestream(decoded: Decoded, header: dict[str, Any]) -> np.ndarray:
    """Decoded samples in the header's integers: a codestream has its own precision and sign, and often another."""
    allocated, precision = header["allocated"], decoded.precision
    if allocated == 1:
        return decoded.array
    array = decoded.array
    array = array.astype(f"{array.dtype.kind}{allocated // 8}", copy=False).view(f"u{allocated // 8}")
    if precision == allocated and header["syntax"] not in syntaxes.LOSSY:
        # The container was coded as it lay in memory, overlays and all; RLE never does anything else.
        return _aligned(array, header["stored"], header["high"], header["signed"])
    # Lossy codes may leave the range of BitsStored a little: masked, they would jump to its other end.
    return _aligned(array, precision, precision - 1, header["signed"])


def _aligned(array: np.ndarray, stored: int, high: int | None, signed: int) -> np.ndarray:
    """The `stored` bits that end at bit `high` of unsigned integers, sign-extended where `signed` is 1."""
    bits = array.dtype.itemsize * 8
    kind = f"{'i' if signed else 'u'}{array.dtype.itemsize}"
    if stored == bits:
        return array.view(kind)
    if not signed and high in (None, stored - 1):
        return array & array.dtype.type(2**stored - 1)
    return (array << (bits - 1 - (stored - 1 if high is None else high))).view(kind) >> (bits - stored)


def _to_rgb(array: np.ndarray, photometric: str, stored: int) -> np.ndarray:
    """Y, Cb, Cr [y, x, 3] as RGB, rounded half up and clipped, of the same dtype (PS3.3 C.7.6.3.1.2)."""
    middle, top = 2 ** (stored - 1), 2**stored - 1
    full = photometric == "YBR_FULL"
    black = 0 if full else middle / 8  # 16 of 8 bits
    values = array.astype(np.float32) - np.array([black, middle, middle], np.float32)
    values = values @ np.array(YBR_FULL if full else YBR_PARTIAL, np.float32)
    return np.clip(np.floor(values + np.float32(0.5)), 0, top).astype(array.dtype)

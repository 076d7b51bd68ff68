"""One coded frame to samples: what the codestream says of itself is held against the header before it is decoded.

Runs in the decoder's process only (archive/decoder.py): the codecs are native code, and crash.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from archive.errors import InputError

_TAIL = "1.2.840.10008.1.2."
RLE = _TAIL + "5"
UNCOMPRESSED, DEFLATED_FRAME = _TAIL + "1.98", _TAIL + "8.1"  # encapsulated: as it lies in memory, or deflated
JPEG = frozenset(_TAIL + f"4.{tail}" for tail in (50, 51, 57, 70))
JPEG_LS = frozenset(_TAIL + f"4.{tail}" for tail in (80, 81))
JPEG_2000 = frozenset(_TAIL + f"4.{tail}" for tail in (90, 91, 201, 202, 203))
CODED = JPEG | JPEG_LS | JPEG_2000 | {RLE, UNCOMPRESSED, DEFLATED_FRAME}

SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # 0xF7 is JPEG-LS's
SEQUENTIAL = (0xC0, 0xC1)
RGB_IDS = (b"RGB", b"rgb")


@dataclass(frozen=True)
class Facts:
    """What a codestream says of itself. colour: RGB, YBR_FULL, or empty where only the DICOM header tells."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    colour: str = ""
    frame_type: int = 0


def decode_frame(data: bytes, header: dict[str, Any]) -> tuple[np.ndarray, Facts]:
    """One frame's samples, [y, x] or [y, x, sample], in the smallest integers that hold the codestream's precision.

    Of syntaxes that only wrap a frame as it lies in memory: its bytes, one-dimensional. Raises InputError
    DECODE_FAILED, TRUNCATED, and whatever the codecs raise.
    """
    syntax, rows, columns, samples = header["syntax"], header["rows"], header["columns"], header["samples"] or 1
    plain = Facts(rows, columns, samples, header["allocated"])
    if syntax in (UNCOMPRESSED, DEFLATED_FRAME):
        return np.frombuffer(_unwrapped(data, syntax, header["frame_bytes"]), np.uint8), plain
    if syntax == RLE:
        return _rle(data, plain), plain
    facts = j2k_facts(data) if syntax in JPEG_2000 else jpeg_facts(data)
    if (facts.rows, facts.columns, facts.samples) != (rows, columns, samples):
        raise InputError("DECODE_FAILED", "the codestream has another shape than the header says")
    if not 1 <= facts.precision <= header["allocated"]:
        raise InputError("DECODE_FAILED", "the codestream has more bits than the header allocates")
    # libjpeg fills up what is missing and says nothing; the end marker cannot occur within entropy-coded bytes.
    if syntax not in JPEG_2000 and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError("TRUNCATED", "the JPEG codestream has no end")
    decoders = {JPEG_2000: _openjpeg, JPEG_LS: _charls, JPEG: _libjpeg}
    flat = next(decoder for syntaxes, decoder in decoders.items() if syntax in syntaxes)(data, facts)
    size = 1 if facts.precision <= 8 else 2 if facts.precision <= 16 else 4
    if flat.nbytes != rows * columns * samples * size:
        raise InputError("DECODE_FAILED", "the codec gave another number of bytes than the codestream promises")
    array = flat.view(f"<{'i' if facts.signed else 'u'}{size}")
    return array.reshape((rows, columns) if samples == 1 else (rows, columns, samples)), facts


def jpeg_facts(data: bytes) -> Facts:
    """The frame header of JPEG (ISO/IEC 10918-1 B.2.2) or JPEG-LS, and its colour by markers where they tell it.

    Component ids RGB, and Adobe's APP14, are about this very codestream; JFIF is always YCbCr. Raises DECODE_FAILED.
    """
    position, adobe, jfif = 2, -1, False
    try:
        while data[:2] == b"\xff\xd8":
            if data[position] != 0xFF:
                break
            marker = data[position + 1]
            if marker == 0xFF:  # fill bytes may stand before any marker
                position += 1
                continue
            length = struct.unpack(">H", data[position + 2 : position + 4])[0]
            body = data[position + 4 : position + 2 + length]
            if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
                adobe = body[11]
            jfif = jfif or (marker == 0xE0 and body[:4] == b"JFIF")
            if marker in SOF:
                precision, rows, columns, samples = struct.unpack(">BHHB", body[:6])
                colour = ""
                if samples == 3:
                    by_adobe = {0: "RGB", 1: "YBR_FULL"}.get(adobe, "")
                    colour = "RGB" if body[6:15:3] in RGB_IDS else by_adobe or ("YBR_FULL" if jfif else "")
                return Facts(rows, columns, samples, precision, colour=colour, frame_type=marker)
            if marker in (0xD9, 0xDA) or length < 2:
                break
            position += 2 + length
    except (IndexError, struct.error):
        pass
    raise InputError("DECODE_FAILED", "no frame header in the JPEG codestream")


def j2k_facts(data: bytes) -> Facts:
    """The SIZ marker of JPEG 2000 and HTJ2K (ISO/IEC 15444-1 A.5.1), also behind JP2 boxes. Raises DECODE_FAILED."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 65536)
    siz = data[start + 8 : start + 43]
    if start < 0 or len(siz) < 35:
        raise InputError("DECODE_FAILED", "no size marker in the JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4L", siz[:16])
    samples, depth = struct.unpack(">HB", siz[32:35])
    return Facts(bottom - top, right - left, samples, (depth & 0x7F) + 1, signed=bool(depth & 0x80))


def _openjpeg(data: bytes, facts: Facts) -> np.ndarray:
    import openjpeg

    return np.asarray(openjpeg.decode(data, reshape=False))


def _charls(data: bytes, facts: Facts) -> np.ndarray:
    """JPEG-LS by CharLS: three times as fast as libjpeg, and strict, where that fills up what is damaged."""
    try:
        import jpeg_ls
    except ImportError:  # environments made before it was a dependency
        return _libjpeg(data, facts)
    buffer, info = jpeg_ls.decode_buffer(data)
    flat = np.frombuffer(buffer, np.uint8)
    if facts.samples == 1 or info["interleave_mode"] != 0:
        return flat
    planes = flat.reshape(facts.samples, facts.rows * facts.columns, -1)  # whole planes, one after the other
    return np.ascontiguousarray(planes.swapaxes(0, 1)).reshape(-1)


def _libjpeg(data: bytes, facts: Facts) -> np.ndarray:
    import libjpeg

    if facts.frame_type in SEQUENTIAL:
        data = _whole_spectrum(data)
    return np.asarray(libjpeg.decode(data, 0, reshape=False))


def _whole_spectrum(data: bytes) -> bytes:
    """Sequential scans cover coefficients 0 to 63, always; some encoders of 12-bit JPEG wrote 0 to 0."""
    mended, position = bytearray(data), -1
    while (position := data.find(b"\xff\xda", position + 1)) >= 0:  # entropy-coded bytes cannot look like it
        at = position + 5 + 2 * (data[position + 4] if position + 4 < len(data) else 0)
        if data[at : at + 3] == b"\0\0\0":
            mended[at + 1] = 63
    return bytes(mended)


def _rle(data: bytes, facts: Facts) -> np.ndarray:
    """Segments hold one byte plane of one sample each, the most significant first (PS3.5 annex G)."""
    from rle.rle import decode_segment

    size = max(1, facts.precision // 8)
    pixels, planes = facts.rows * facts.columns, facts.samples * size
    count, *offsets = struct.unpack("<16L", data[:64].ljust(64, b"\0"))
    places = [*offsets[:planes], len(data)]
    if count != planes or places[0] != 64 or places != sorted(places):
        raise InputError("DECODE_FAILED", "another number of RLE segments than the header says")
    expected = pixels if facts.precision > 1 else -(-pixels // 8)  # of single bits eight lie in a byte
    array = np.empty((facts.samples, expected, size), np.uint8)
    for plane, (start, stop) in enumerate(pairwise(places)):
        segment = np.frombuffer(decode_segment(data[start:stop]), np.uint8)
        # Padding may decode to a byte or so; a row or a column more means that the header lies about them.
        if not expected <= len(segment) < expected + max(2, min(facts.rows, facts.columns)):
            raise InputError("DECODE_FAILED", "an RLE segment holds another number of pixels", found=len(segment))
        array[plane // size, :, size - 1 - plane % size] = segment[:expected]
    if facts.precision == 1:
        return np.unpackbits(array, count=pixels, bitorder="little").reshape(facts.rows, facts.columns)
    array = array.view(f"<u{size}").reshape(facts.samples, facts.rows, facts.columns)
    return array[0] if facts.samples == 1 else np.moveaxis(array, 0, -1)


def _unwrapped(data: bytes, syntax: str, expected: int) -> bytes:
    if syntax == DEFLATED_FRAME:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, expected)
    if len(data) < expected:
        raise InputError("TRUNCATED", found=len(data), expected=expected)
    return data[:expected]

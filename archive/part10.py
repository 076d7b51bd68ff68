"""DICOM files (PS3.10) as bytes: is it one, where do its pixels lie, and its elements without them."""

from __future__ import annotations

import logging
import struct
import zlib
from io import BytesIO
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble

# pydicom quotes values, and so names and dates, in its warnings; none of that may reach a log.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))
NATIVE = {IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN}
LOSSY = {f"1.2.840.10008.1.2.4.{tail}" for tail in ("50", "51", "81", "91", "93", "203")}
INFLATED_HEADER = 32 * 2**20  # bytes of a deflated file that are looked at for its header


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file that begins with these 132 bytes is DICOM: by its magic, or as a bare data set without preamble.

    A bare one begins with an early element of group 0002 or 0008 and either a value representation or a short length.
    """
    if start[128:132] == b"DICM":
        return True
    for order in "<>":
        if len(start) < 8 or struct.unpack(order + "H", start[:2])[0] not in (2, 8):
            continue
        element, length = struct.unpack(order + "HL", start[2:8])
        if element <= 0x0018 and (start[4:6] in (b"UL", b"UI", b"CS", b"OB", b"DA", b"TM") or 0 < length <= 256):
            return True
    return False


def inflate(file: BinaryIO, limit: int) -> bytes:
    """The data set of a deflated file, at most `limit` bytes of it; the file stands behind its meta header."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), limit)


def skip_meta(file: BinaryIO) -> FileMetaDataset:
    """Move behind preamble and file meta information; returns the latter."""
    file.seek(0)
    read_preamble(file, False)
    return _read_file_meta_info(file)


def read_elements(file: BinaryIO, tags: list[Any]) -> tuple[Dataset, list[int] | None]:
    """The elements of these tags, and [tag, offset, length, big endian, 16-bit words] of the pixels, or None.

    The length is -1 where the pixels are encapsulated. Raises whatever pydicom raises on a broken file.
    """
    start = file.read(1024)
    file.seek(0)
    if DEFLATED.encode() in start:
        # A megabyte can inflate to a gigabyte, and pydicom inflates all of it before it looks at anything.
        meta = skip_meta(file)
        inner = BytesIO(inflate(file, INFLATED_HEADER))
        body = read_dataset(inner, False, True, stop_when=_at_pixels, specific_tags=list(tags))
        dataset = FileDataset("", body, file_meta=meta, is_implicit_VR=False, is_little_endian=True)
        return dataset, _locate(inner, False, True)
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(tags))
    implicit, little = dataset.original_encoding
    return dataset, _locate(file, bool(implicit), little is not False)


def _at_pixels(tag: Any, vr: Any, length: int) -> bool:
    return int(tag) in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _locate(file: BinaryIO, implicit: bool, little: bool) -> list[int] | None:
    """Tag, offset and length of the pixel element that the file stands at."""
    raw = file.read(12)
    if len(raw) < 8:
        return None
    order = "<" if little else ">"
    group, element = struct.unpack(order + "HH", raw[:4])
    if not _at_pixels((group << 16) + element, None, 0):
        return None
    if implicit:
        file.seek(8 - len(raw), 1)
        length, words = struct.unpack(order + "L", raw[4:8])[0], 1
    else:
        length, words = struct.unpack(order + "L", raw[8:12])[0], int(raw[4:6] == b"OW")
    return [(group << 16) + element, file.tell(), -1 if length == 0xFFFFFFFF else length, int(not little), words]

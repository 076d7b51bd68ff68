"""DICOM files (PS3.10) as bytes: is it one, where do its pixels lie, and its elements without them.

Only the layout is walked here, with limits on depth, steps and bytes; pydicom is handed single values, never a file. It
would inflate, recurse and allocate whatever a file asks for, and it reads a file that ends in its header as if all were
well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset

from archive.data_set import BLOCK, Walk
from archive.errors import InputError
from archive.syntaxes import DEFLATED

INFLATED_HEADER = 32 * 2**20  # bytes of a deflated file that are looked at for its header


@dataclass(frozen=True)
class Elements:
    """What a file holds before its pixels.

    pixels: [tag, offset, length, big endian, 16-bit words] of the pixel element, or None; in a deflated file the offset
    counts in the inflated data set; length is -1 where the pixels are encapsulated.
    cut: the file ends within an element, so there is no telling what is missing; `dataset` has what came before.
    """

    dataset: Dataset
    pixels: list[int] | None
    cut: bool


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
    """The data set of a deflated file, at most `limit` bytes of it; the file stands behind its meta header.

    What the stream ends short of is missing from the result. Raises InputError WRONG_SYNTAX where it is no such stream.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5 A.5: RFC 1951, no header
    parts: list[bytes] = []
    size = 0
    try:
        while size < limit and not stream.eof:
            # A megabyte can inflate to a gigabyte: what does not fit is left in the stream, and so not asked for.
            block = stream.unconsumed_tail or file.read(BLOCK)
            if not block:
                break
            parts.append(stream.decompress(block, limit - size))
            size += len(parts[-1])
    except zlib.error:
        raise InputError("WRONG_SYNTAX", "the deflated data set cannot be inflated") from None
    return b"".join(parts)


def skip_meta(file: BinaryIO) -> FileMetaDataset:
    """Move behind preamble and file meta information; returns the latter."""
    walk = Walk(file, frozenset())
    meta, position = walk.meta()
    file.seek(position)
    return meta


def read_elements(file: BinaryIO, tags: Iterable[int]) -> Elements:
    """The elements of these tags, and where the pixels lie.

    A sequence among the tags is built with all standard elements in it, and those private ones that are among the tags.
    Raises InputError HEADER_LIMIT, WRONG_SYNTAX, BAD_HEADER (lengths that cannot be); OSError.
    """
    walk = Walk(file, frozenset(tags))
    meta, position = walk.meta()
    syntax = str(meta.get("TransferSyntaxUID", "") or "")
    if syntax == DEFLATED:
        file.seek(position)
        walk = Walk(BytesIO(inflate(file, INFLATED_HEADER)), frozenset(tags))
        position = 0
    position = walk.commands(position)
    implicit, little = walk.encoding(position, syntax)
    walk.little = little
    elements = walk.top(position, implicit)
    if walk.pixels is None and syntax == DEFLATED and walk.size >= INFLATED_HEADER:
        raise InputError("HEADER_LIMIT", "no pixels within the part of a deflated file that is inflated")
    dataset = walk.dataset(elements, implicit)
    dataset.file_meta = meta
    return Elements(dataset, walk.pixels, walk.cut)

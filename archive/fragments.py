"""Encapsulated pixel data (PS3.5 A.4): where each frame's bytes lie in a file, told by item lengths alone."""

from __future__ import annotations

import struct
from typing import BinaryIO

from archive.errors import InputError

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")  # JPEG and JPEG-LS, JPEG 2000, its JP2 file

Fragment = tuple[int, int]  # offset and length in the file


def index_frames(file: BinaryIO, offset: int, size: int, frames: int) -> list[list[Fragment]]:
    """The fragments of each of `frames` frames.

    offset: of the first item, the basic offset table; size: of the file. A frame's fragments are never told by their
    contents where their number says it: offset tables lie, or are left empty, and extended ones (7FE0,0001) mean one
    fragment a frame. Raises InputError TRUNCATED, DECODE_FAILED.
    """
    table, items = _walk(file, offset, size, frames)
    items = [item for item in items if item[1]]
    if not items or len(items) < frames:
        raise InputError("TRUNCATED", "fewer fragments than frames", found=len(items), expected=frames)
    starts = _starts(file, items)
    if len(items) == frames and len(starts) in (0, frames):  # else a file cut short has as many by chance
        return [[item] for item in items]
    if frames == 1:
        if len(starts) > 1:
            raise InputError("DECODE_FAILED", "more frames than the header says", found=len(starts), expected=frames)
        return [items]
    # Entries of the table are relative to the first item behind it (PS3.5 A.4).
    known = {position - 8 - (items[0][0] - 8): index for index, (position, _) in enumerate(items)}
    if len(table) == frames and table[0] == 0 and all(entry in known for entry in table):
        starts = [known[entry] for entry in table]
    if len(starts) != frames or starts[0] != 0 or starts != sorted(set(starts)):
        raise InputError("DECODE_FAILED", "fragments cannot be told to frames", found=len(starts), expected=frames)
    return [items[start:stop] for start, stop in zip(starts, [*starts[1:], len(items)], strict=True)]


def read_frame_bytes(file: BinaryIO, fragments: list[Fragment]) -> bytes:
    """The fragments of one frame, joined. Raises InputError TRUNCATED."""
    parts = []
    for offset, length in fragments:
        file.seek(offset)
        parts.append(file.read(length))
        if len(parts[-1]) < length:
            raise InputError("TRUNCATED", found=len(parts[-1]), expected=length)
    return b"".join(parts)


def _walk(file: BinaryIO, offset: int, size: int, frames: int) -> tuple[list[int], list[Fragment]]:
    """The basic offset table and the fragments behind it; where no delimiter ends them, the file does."""
    table: list[int] = []
    items: list[Fragment] = []
    first, position = True, offset
    while position + 8 <= size:
        file.seek(position)
        head = file.read(8 + len(STARTS[2]))
        tag, length = head[:4], struct.unpack("<L", head[4:8])[0]
        if tag == DELIMITER:
            break
        if tag != ITEM or length == 0xFFFFFFFF:
            raise InputError("DECODE_FAILED", "no item where one must begin")
        position += 8
        if position + length > size:
            raise InputError("TRUNCATED", "the file ends within a fragment", found=size - position, expected=length)
        if first and not head[8:].startswith(STARTS):  # some writers leave the table out altogether
            if length == 4 * frames:
                file.seek(position)
                table = list(struct.unpack(f"<{frames}L", file.read(length)))
        else:
            items.append((position, length))
        first = False
        position += length
    return table, items


def _starts(file: BinaryIO, items: list[Fragment]) -> list[int]:
    """Which fragments begin a codestream; no marker of a beginning can occur within one."""
    found = []
    for index, (offset, _) in enumerate(items):
        file.seek(offset)
        if file.read(len(STARTS[2])).startswith(STARTS):
            found.append(index)
    return found

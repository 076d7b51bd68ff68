"""The elements of a DICOM data set, walked by their layout alone, with limits on depth, steps and bytes.

pydicom is handed single values, never a file: it would inflate, recurse and allocate whatever a file asks for.
"""

from __future__ import annotations

import logging
import struct
from typing import Any, BinaryIO

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from archive.elements import interned
from archive.errors import InputError
from archive.syntaxes import BIG_ENDIAN, IMPLICIT, STANDARD

# pydicom quotes values, and so names and dates, in its warnings; none of that may reach a log.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)

# What no real header reaches: 10,000 frames of functional groups have about 1 million elements in 30 MB, at depth 5.
DEPTH = 32
STEPS = 4_000_000
ITEMS = 250_000
KEPT_ELEMENTS = 1_000_000
KEPT_BYTES = 64 * 2**20
NESTED_VALUE = 128 * 2**10  # longer values inside sequences are skipped, but the longest modality LUT just fits
BLOCK = 2**20
WINDOW = 32 * 2**10

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
CHARSET = 0x00080005
_LONG = {name.encode() for name in EXPLICIT_VR_LENGTH_32}
_NAMES = {name.encode(): str(name) for name in pydicom.valuerep.VR}


class Cut(Exception):
    """The file ends where it must go on."""


class Walk:
    """One pass over a file's elements; positions are bytes from its beginning."""

    def __init__(self, file: BinaryIO, wanted: frozenset[int]) -> None:
        self.file, self.wanted = file, wanted | {CHARSET}
        self.size = file.seek(0, 2)
        self.buffer, self.base = b"", 0
        self.little = True
        self.charset: Any = default_encoding
        self.steps = self.items = self.kept = self.kept_bytes = 0
        self.pixels: list[int] | None = None
        self.cut = False

    # -- layout

    def bytes_at(self, position: int, count: int) -> bytes:
        """`count` bytes from there on. Raises Cut where the file ends before."""
        if position + count > self.size:
            raise Cut
        offset = position - self.base
        if offset < 0 or offset + count > len(self.buffer):
            self.file.seek(position)
            self.buffer, self.base, offset = self.file.read(max(count, WINDOW)), position, 0
            if len(self.buffer) < count:  # the file has become shorter
                raise Cut
        return self.buffer[offset : offset + count]

    def element(self, position: int, implicit: bool) -> tuple[int, bytes, int, int]:
        """(tag, VR or nothing, length, position of the value); delimiters and items have no VR in any encoding."""
        self.steps += 1
        if self.steps > STEPS:
            raise InputError("HEADER_LIMIT", "more elements than any real header has")
        head = self.bytes_at(position, 8)
        order = "<" if self.little else ">"
        group, number, length = struct.unpack(order + "HHL", head)
        tag, vr = group << 16 | number, head[4:6]
        # Some write implicit elements into explicit data sets: what is no pair of capitals is no VR.
        if implicit or group == 0xFFFE or not _capitals(vr):
            return tag, b"", length, position + 8
        if vr in _LONG:
            return tag, vr, struct.unpack(order + "L", self.bytes_at(position + 8, 4))[0], position + 12
        return tag, vr, struct.unpack(order + "H", head[6:8])[0], position + 8

    def meta(self) -> tuple[FileMetaDataset, int]:
        """Group 0002, explicit little endian, whatever its group length says, and where it ends."""
        start = 132 if self.size >= 132 and self.bytes_at(128, 4) == b"DICM" else 0
        found, position = self._group(start, 0x0002, False)
        return FileMetaDataset(found), position

    def commands(self, position: int) -> int:
        """Behind a command set (PS3.7 6.3.1, group 0000), which some leave in front of the data set."""
        return self._group(position, 0x0000, True)[1]

    def _group(self, position: int, group: int, implicit: bool) -> tuple[dict[BaseTag, Any], int]:
        found: dict[BaseTag, Any] = {}
        try:
            while position + 8 <= self.size:
                tag, vr, length, start = self.element(position, implicit)
                if tag >> 16 != group or length == 0 == tag:
                    break
                if length <= NESTED_VALUE:
                    found[interned(tag)] = self._raw(tag, vr, length, start, implicit)
                position = start + length
        except Cut:
            self.cut = True
        return found, min(position, self.size)

    def encoding(self, position: int, syntax: str) -> tuple[bool, bool]:
        """(implicit, little endian) of the data set; as declared, or without a known syntax as its start looks.

        Raises InputError WRONG_SYNTAX where it is declared and the data set begins otherwise.
        """
        implicit, little = syntax == IMPLICIT, syntax != BIG_ENDIAN
        if self.size - position < 8:
            return implicit, little
        head = self.bytes_at(position, 8)
        explicit = _capitals(head[4:6])
        # A data set begins in one of the first groups; read in the wrong byte order it would seem to begin far behind.
        swapped = head[0] == 0 < head[1] if little else head[1] == 0 < head[0]
        if not syntax.startswith(STANDARD):
            return not explicit, not (head[0] == 0 < head[1])
        if explicit == implicit or swapped:
            raise InputError("WRONG_SYNTAX")
        return implicit, little

    def top(self, position: int, implicit: bool) -> dict[BaseTag, Any]:
        """The wanted elements of the data set itself, up to its pixels; `cut` where the file ends before."""
        found: dict[BaseTag, Any] = {}
        try:
            while position < self.size and not self.cut:
                if self._padding(position):
                    break
                tag, vr, length, start = self.element(position, implicit)
                if tag in PIXELS:
                    known = -1 if length == UNDEFINED else length
                    self.pixels = [tag, start, known, int(not self.little), int(vr == b"OW" or not vr)]
                    break
                if tag >> 16 == 0xFFFE:  # a delimiter that belongs to nothing
                    position = start
                    continue
                position = self._value(found, tag, vr, length, start, implicit, self.size, 0, tag in self.wanted)
        except Cut:
            self.cut = True
        return found

    def _padding(self, position: int) -> bool:
        """Whether zeros fill the rest of the file. Raises InputError BAD_HEADER where something follows them."""
        if any(self.bytes_at(position, min(8, self.size - position))):
            return False
        self.file.seek(position)
        while block := self.file.read(BLOCK):
            if block.count(0) != len(block):
                raise InputError("BAD_HEADER", "zeros in the middle of the header")
        return True

    # -- values

    def _value(
        self,
        found: dict[BaseTag, Any],
        tag: int,
        vr: bytes,
        length: int,
        start: int,
        implicit: bool,
        end: int,
        depth: int,
        keep: bool,
    ) -> int:
        """Keep or skip one value that must lie before `end`; returns the position behind it."""
        if length == UNDEFINED:
            if vr not in (b"", b"UN", b"SQ") or (not vr and _dictionary(tag) not in ("", "SQ", "UN")):
                return self._fragments(start, end)
            items, behind = self._items(start, end, implicit, depth + 1, keep, delimited=True)
        else:
            behind = start + length
            if behind > end:
                raise Cut if end == self.size else InputError("BAD_HEADER", "an element is longer than its item")
            if not keep:
                if vr == b"SQ" and length > 8 * ITEMS:  # only such can hold too many
                    self._items(start, behind, implicit, depth + 1, False)
                return behind
            if not self._is_sequence(tag, vr, start, length):
                found[interned(tag)] = self._raw(tag, vr, length, start, implicit)
                if tag == CHARSET:
                    self._set_charset(found[interned(tag)].value or b"")
                return behind
            # An unknown VR hides an implicit encoding (PS3.5 6.2.2)
            items, _ = self._items(start, behind, implicit or vr == b"UN", depth + 1, True)
        if keep:
            found[interned(tag)] = DataElement(interned(tag), "SQ", Sequence(items), start, already_converted=True)
        return behind

    def _items(
        self, position: int, end: int, implicit: bool, depth: int, keep: bool, delimited: bool = False
    ) -> tuple[list[Dataset], int]:
        """The items of a sequence that ends at its delimiter, or at `end`."""
        if depth > DEPTH:
            raise InputError("HEADER_LIMIT", "sequences nested deeper than any real header has")
        items: list[Dataset] = []
        while position < end:
            tag, _, length, start = self.element(position, True)
            if tag == SEQUENCE_END:
                return items, start
            if tag != ITEM:
                raise InputError("BAD_HEADER", "a sequence holds something that is no item")
            self.items += 1
            if self.items > ITEMS:
                raise InputError("HEADER_LIMIT", "more items than any real header has")
            last = end if length == UNDEFINED else start + length
            if last > end:
                raise Cut if end == self.size else InputError("BAD_HEADER", "an item is longer than its sequence")
            found, behind = self._item(start, last, implicit, depth, keep)
            position = behind if length == UNDEFINED else last
            if keep:
                items.append(found)
        if delimited:
            raise Cut if end == self.size else InputError("BAD_HEADER", "a sequence does not end within its item")
        return items, end

    def _item(self, position: int, end: int, implicit: bool, depth: int, keep: bool) -> tuple[Dataset, int]:
        """One item, which ends at `end` or at its delimiter."""
        found: dict[BaseTag, Any] = {}
        if not implicit and end - position >= 8:  # explicit data sets may hold implicit items
            head = self.bytes_at(position, 8)
            implicit = not _capitals(head[4:6]) and head[:4] not in (b"\xfe\xff\x0d\xe0", b"\xff\xfe\xe0\x0d")
        while position < end:
            tag, vr, length, start = self.element(position, implicit)
            if tag == ITEM_END:
                position = start
                break
            wanted = keep and (tag in self.wanted or (not tag >> 16 & 1 and length <= NESTED_VALUE))
            wanted = wanted or (keep and length == UNDEFINED and not tag >> 16 & 1)
            position = self._value(found, tag, vr, length, start, implicit, end, depth, wanted)
        return self.dataset(found, implicit) if keep else _NOTHING, position

    def _fragments(self, position: int, end: int) -> int:
        """Behind encapsulated pixels (PS3.5 A.4): items of bytes up to a delimiter."""
        while position < end:
            tag, _, length, start = self.element(position, True)
            if tag == SEQUENCE_END:
                return start
            if tag != ITEM or length == UNDEFINED:
                raise InputError("BAD_HEADER", "encapsulated data holds something that is no item")
            position = start + length
        raise Cut if end == self.size else InputError("BAD_HEADER", "encapsulated data is longer than its item")

    def _is_sequence(self, tag: int, vr: bytes, start: int, length: int) -> bool:
        if vr == b"SQ" or length < 8:
            return vr == b"SQ"
        if vr not in (b"", b"UN"):
            return False
        if _dictionary(tag):
            return _dictionary(tag) == "SQ"
        return self.bytes_at(start, 4) in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")

    def _raw(self, tag: int, vr: bytes, length: int, start: int, implicit: bool) -> RawDataElement:
        self._count(length)
        value = self.bytes_at(start, length)
        name = _NAMES.get(vr, "UN") if vr else None
        return RawDataElement(interned(tag), name, length, value or None, start, implicit, self.little)

    def _count(self, size: int) -> None:
        self.kept += 1
        self.kept_bytes += size
        if self.kept > KEPT_ELEMENTS or self.kept_bytes > KEPT_BYTES:
            raise InputError("HEADER_LIMIT", "more of a header to keep than any real one has")

    def _set_charset(self, value: bytes) -> None:
        try:
            self.charset = convert_encodings(value.decode("ascii", "replace").strip("\0 ").split("\\"))
        except Exception:  # an unknown one: names are for pseudonyms only, and the same bytes give the same one
            self.charset = default_encoding

    def dataset(self, found: dict[BaseTag, Any], implicit: bool) -> Dataset:
        """Elements as pydicom knows them; values are converted when asked for."""
        dataset = Dataset(found, parent_encoding=self.charset)
        dataset.set_original_encoding(implicit, self.little, self.charset)
        return dataset


_NOTHING = Dataset()


def _capitals(vr: bytes) -> bool:
    return 0x40 < vr[0] < 0x5B and 0x40 < vr[1] < 0x5B


def _dictionary(tag: int) -> str:
    """The VR of a standard element, or nothing."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""

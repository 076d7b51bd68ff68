"""Tables that give stored values their meaning: palettes (PS3.3 C.7.9) and modality LUTs (C.11.1)."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from archive import part10
from archive.errors import InputError

MOST_ENTRIES = 2**16
MODALITY = 0x00283000
DESCRIPTORS = (0x00281101, 0x00281102, 0x00281103)  # red, green, blue
DATA = (0x00281201, 0x00281202, 0x00281203)
SEGMENTED = (0x00281221, 0x00281222, 0x00281223)


@dataclass(frozen=True)
class Table:
    """Entries [channel, n] of the stored values from `first` on; values beyond either end take the end's entry."""

    first: int
    entries: np.ndarray

    def of(self, array: np.ndarray) -> np.ndarray:
        """array: integers [y, x]; gives [channel, y, x] of the entries' dtype."""
        places = np.clip(array.astype(np.int64) - self.first, 0, self.entries.shape[1] - 1)
        return self.entries[:, places]


def palette(path: Path, header: dict[str, Any]) -> Table:
    """The palette of a PALETTE COLOR file, uint8 or uint16 [3, n]. Raises InputError BAD_HEADER, UNREADABLE."""
    return _read(path, "palette", bool(header["signed"]), not header["pixels"][3], *_status(path))


def modality(path: Path, header: dict[str, Any]) -> Table:
    """The modality LUT (0028,3000) of a file, uint16 [1, n]. Raises InputError BAD_HEADER, UNREADABLE."""
    return _read(path, "modality", bool(header["signed"]), not header["pixels"][3], *_status(path))


def expand(data: np.ndarray, count: int) -> np.ndarray:
    """Segmented palette data (PS3.3 C.7.9.2), uint8 or uint16 [n], as `count` entries. Raises InputError BAD_HEADER."""
    found: list[int] = []
    _segments(data, 0, len(data), found, count, nested=False)
    if len(found) < count:
        raise InputError("BAD_HEADER", "a segmented palette has fewer entries than its descriptor says")
    return np.array(found[:count]).astype(data.dtype)


def _segments(data: np.ndarray, start: int, most: int, found: list[int], count: int, nested: bool) -> None:
    """Append the entries of up to `most` segments that begin at `start`; more than `count` are never made."""
    wide = data.dtype.itemsize == 2
    position = start
    while most > 0 and position + 1 < len(data) and len(found) < count:
        kind, length = int(data[position]), int(data[position + 1])
        position, most = position + 2, most - 1
        if kind == 0:  # discrete
            found += data[position : position + length].tolist()
            position += length
        elif kind == 1 and found and position < len(data):  # linear, from the last entry
            end = int(data[position])
            found += np.around(np.linspace(found[-1], end, length + 1)[1:]).astype(int).tolist()
            position += 1
        elif kind == 2 and found and not nested and position + (2 if wide else 4) <= len(data):
            # Indirect: `length` segments again from a place, counted in bytes but in practice in entries (as GDCM,
            # DCMTK and pydicom read it); they may not be indirect themselves.
            parts = data[position : position + (2 if wide else 4)].tolist()
            place = parts[0] + (parts[1] << 16) if wide else struct.unpack("<L", bytes(parts))[0]
            _segments(data, place, length, found, count, nested=True)
            position += 2 if wide else 4
        else:
            raise InputError("BAD_HEADER", "a segmented palette has a segment of no known kind")


def _status(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        raise InputError("UNREADABLE") from None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)  # frames of one file come one after the other
def _read(path: Path, which: str, signed: bool, little: bool, size: int, mtime_ns: int) -> Table:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = part10.read_elements(file, [MODALITY, *DESCRIPTORS, *DATA, *SEGMENTED]).dataset
            return _palette(dataset, signed, little) if which == "palette" else _modality(dataset, signed, little)
    except OSError:
        raise InputError("UNREADABLE") from None
    except InputError:
        raise
    except Exception as error:  # whatever pydicom's converters raise on values that are none
        raise InputError("BAD_HEADER", f"a lookup table cannot be parsed ({type(error).__name__})") from None


def _descriptor(value: Any, signed: bool) -> tuple[int, int, int]:
    """Entries, first stored value, bits an entry."""
    count, first, bits = (int(number) for number in value)
    first &= 0xFFFF
    return (count & 0xFFFF) or MOST_ENTRIES, first - 0x10000 if signed and first >= 0x8000 else first, bits


def _palette(dataset: Any, signed: bool, little: bool) -> Table:
    channels, firsts = [], set()
    for descriptor, plain, segmented in zip(DESCRIPTORS, DATA, SEGMENTED, strict=True):
        count, first, bits = _descriptor(dataset[descriptor].value, signed)
        if bits not in (8, 16):
            raise InputError("BAD_HEADER", "a palette's entries have neither 8 nor 16 bits")
        firsts.add(first)
        if plain in dataset and dataset[plain].value:
            raw = dataset[plain].value
            # Entries of 8 bits lie two to a word, or, by some writers, one to a word.
            entries = _integers(raw, 2 if bits == 16 or len(raw) >= 2 * count else 1, little)[:count]
        else:
            entries = expand(_integers(dataset[segmented].value, bits // 8, little), count)
        if len(entries) < count:
            raise InputError("BAD_HEADER", "a palette has fewer entries than its descriptor says")
        channels.append(entries.astype(np.uint8) if bits == 8 and entries.max() <= 255 else entries)
    if len(firsts) > 1 or len({len(entries) for entries in channels}) > 1:
        raise InputError("BAD_HEADER", "the palettes of red, green and blue differ in their range")
    return Table(firsts.pop(), np.stack(channels))


def _modality(dataset: Any, signed: bool, little: bool) -> Table:
    item = dataset[MODALITY].value[0]
    count, first, bits = _descriptor(item[0x00283002].value, signed)
    data = item[0x00283006].value
    entries = _integers(data, 2, little) if isinstance(data, bytes) else np.array(data, ndmin=1).astype(np.uint16)
    if not 1 <= bits <= 16 or len(entries) < count:
        raise InputError("BAD_HEADER", "a modality LUT has fewer entries than its descriptor says")
    return Table(first, entries[None, :count])


def _integers(raw: bytes, size: int, little: bool) -> np.ndarray:
    if size == 2:
        return np.frombuffer(raw[: len(raw) // 2 * 2], "<u2" if little else ">u2").astype(np.uint16)
    array = np.frombuffer(raw, np.uint8)
    return array if little else array[: len(array) // 2 * 2].view("<u2").byteswap().view(np.uint8)

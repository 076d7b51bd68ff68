"""Values of single DICOM elements as Python numbers and strings; what is missing or illegal is None or empty."""

from __future__ import annotations

import math
import struct
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

PRIVATE_BLOCKS = range(0x10, 0x18)  # more reservations in one group are not met

# Value representations that are plain text, and the only bytes that a quick look takes for a number (PS3.5 6.2).
PLAIN: dict[str, bytes | None] = {"CS": None, "UI": None, "DA": None, "TM": None, "DT": None}
PLAIN |= {"DS": b"0123456789+-.eE\\ ", "IS": b"0123456789+-\\ "}
# How one number of a binary value representation is packed.
BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}


@lru_cache(maxsize=4096)
def interned(number: int) -> BaseTag:
    """One object for every tag: a dict finds it by identity, else it asks BaseTag's own slow comparison."""
    return BaseTag(number)


@cache
def _tag(keyword: Any) -> BaseTag:
    return interned(int(Tag(keyword)))  # keywords and tags are few, and asked for in every header


def get(dataset: Dataset, keyword: Any) -> Any:
    """The value of a keyword or tag, None where it is missing or cannot be converted."""
    try:
        tag = _tag(keyword)
        # keys(): a plain dict's; asking the Dataset itself makes a Tag again, 300 times in every header
        if tag not in dataset.keys():  # noqa: SIM118
            return None
        quick = _quick(dataset.get_item(tag), tag)
        return dataset[tag].value if quick is None else quick
    except Exception:  # one unreadable value must not hide the others; pydicom raises whatever its converters raise
        return None


def _quick(raw: Any, tag: BaseTag) -> str | list[str] | float | None:
    """Plain text of a raw element, as text or a list of texts, or one number; None where pydicom had better look.

    pydicom takes 15 microseconds a value, most headers have 60 of them, and a night has millions of headers.
    """
    if not isinstance(raw, RawDataElement) or not raw.value:
        return None
    vr = raw.VR or _vr(tag)
    if (code := BINARY.get(vr)) and len(raw.value) == struct.calcsize("<" + code):
        return struct.unpack(("<" if raw.is_little_endian else ">") + code, raw.value)[0]
    if vr not in PLAIN or not raw.value.isascii():
        return None
    if (legal := PLAIN[vr]) is not None and raw.value.translate(None, legal):
        return None
    text = raw.value.decode("ascii").rstrip("\0 ")
    return text.split("\\") if "\\" in text else text


@cache
def _vr(tag: BaseTag) -> str:
    return dictionary_VR(tag) if dictionary_has_tag(tag) else ""


def items(dataset: Dataset, keyword: Any) -> list[Dataset]:
    """The items of a sequence; empty where it is missing or no sequence."""
    value = get(dataset, keyword)
    if value is None or isinstance(value, (str, bytes)):
        return []
    try:
        return [item for item in value if isinstance(item, Dataset)]
    except Exception:  # a value of another kind, or items that do not parse
        return []


def string(dataset: Dataset, keyword: Any) -> str:
    """Text without padding; several values joined by backslashes."""
    value = get(dataset, keyword)
    if isinstance(value, (list, MultiValue)):
        return "\\".join(str(item).strip() for item in value)
    return "" if value is None else str(value).strip().strip("\0")


def floating(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def number(dataset: Dataset, keyword: Any) -> float | None:
    """One finite number."""
    return floating(get(dataset, keyword))


def integer(dataset: Dataset, keyword: Any) -> int | None:
    """One whole number."""
    value = number(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def numbers(dataset: Dataset, keyword: Any) -> list[float]:
    """All numbers of an element; empty where one of them is none."""
    value = get(dataset, keyword)
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]
    found = [floating(item) for item in values]
    return [] if None in found else found  # type: ignore[return-value]


def vector(dataset: Dataset, keyword: Any, size: int) -> list[float] | None:
    """`size` finite numbers, or None."""
    found = numbers(dataset, keyword)
    return found if len(found) == size else None


def tags(dataset: Dataset, keyword: Any) -> list[int]:
    """The tags that an AT element names, as integers."""
    value = get(dataset, keyword)
    if value is None:
        return []
    values = value if isinstance(value, (list, MultiValue)) else [value]
    return [int(item) for item in values if isinstance(item, (int, BaseTag))]


def seconds_of(date: str, time: str) -> float | None:
    """Seconds on an absolute clock of DICOM DA (may be empty) and TM; None where the time is not legal."""
    digits, _, fraction = time.replace(":", "").strip().partition(".")
    if not digits.isdigit() or len(digits) not in (2, 4, 6):
        return None
    digits = digits.ljust(6, "0")
    clock = int(digits[:2]) * 3600.0 + int(digits[2:4]) * 60 + int(digits[4:])
    clock += float(f"0.{fraction}") if fraction.isdigit() else 0.0
    try:
        return clock + datetime.strptime(date.replace(".", ""), "%Y%m%d").toordinal() * 86400.0
    except ValueError:
        return clock


def seconds_of_datetime(text: str) -> float | None:
    """Seconds on the same clock of DICOM DT; None where it does not reach down to seconds."""
    return seconds_of(text[:8], text[8:].split("+")[0].split("-")[0]) if len(text) >= 14 else None


def private_tags(group: int, *elements: int) -> list[BaseTag]:
    """All places where private elements may lie, with the elements that say whose a block is (PS3.5 7.8)."""
    found = []
    for block in PRIVATE_BLOCKS:
        found.append(Tag(group, block))
        found += [Tag(group, (block << 8) + element) for element in elements]
    return found


def private(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """The value of a private element of the creator whose name begins so; None where there is none."""
    for owner, tag in _places(group, element):
        if tag in dataset.keys() and string(dataset, owner).upper().startswith(creator.upper()):  # noqa: SIM118
            value = get(dataset, tag)
            if value is not None:
                return value
    return None


@cache
def _places(group: int, element: int) -> tuple[tuple[BaseTag, BaseTag], ...]:
    return tuple((_tag((group, block)), _tag((group, (block << 8) + element))) for block in PRIVATE_BLOCKS)


def private_numbers(
    dataset: Dataset, group: int, creator: str, element: int, code: str = "", size: int = 1
) -> list[float] | None:
    """`size` numbers of a private element. code: how its bytes are packed where its VR got lost ("<f"); else text."""
    value = private(dataset, group, creator, element)
    if isinstance(value, bytes):
        width = struct.calcsize(code) if code else 0
        if code and len(value) == size * width:
            value = [struct.unpack(code, value[at : at + width])[0] for at in range(0, len(value), width)]
        else:
            value = value.decode("ascii", "ignore").strip("\0 ").split("\\")
    values = list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]
    found = [floating(item) for item in values[:size]]
    return None if len(found) < size or None in found else found  # type: ignore[return-value]

"""DICOM files as bytes: pydicom as the judge of what is read, and files made to exhaust, mislead or stop short."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from archive import data_set, part10, syntaxes
from archive.errors import InputError
from archive.headers import WANTED

EVERY = sorted({*map(int, WANTED), 0x00540016, 0x00081140, 0x30060039, 0x52009229, 0x52009230})
PACKAGED = Path(str(get_testdata_file("CT_small.dcm"))).parent
UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OW", b"SQ", b"UN")


def element(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    """One element, explicit little endian; `length` where it is not the value's."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    size = len(value) if length is None else length
    return head + (struct.pack("<HL", 0, size) if vr in LONG else struct.pack("<H", size)) + value


def item(value: bytes = b"", length: int | None = None, tag: int = data_set.ITEM) -> bytes:
    """One item of a sequence."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def part_10(body: bytes, syntax: str = syntaxes.EXPLICIT, group_length: int | None = None) -> bytes:
    """Preamble, meta header and a data set."""
    uid = element(0x00020010, b"UI", syntax.encode().ljust(len(syntax) + len(syntax) % 2, b"\0"))
    size = len(uid) if group_length is None else group_length
    return b"\0" * 128 + b"DICM" + element(0x00020000, b"UL", struct.pack("<L", size)) + uid + body


def deflated(*blocks: bytes) -> bytes:
    """A raw deflate stream."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(map(stream.compress, blocks)) + stream.flush()


CLASS = element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
MODALITY = element(0x00080060, b"CS", b"CT")
IMAGE = element(0x7FE00010, b"OW", b"\1\2\3\4")
SEQUENCE_END = item(tag=data_set.SEQUENCE_END)
MILLION = item() * 1_000_000
NESTED = (element(0x00081140, b"SQ", length=UNDEFINED) + item(length=UNDEFINED)) * 50_000
ZEROS = [bytes(2**20)] * 600


def read(data: bytes) -> part10.Elements:
    """What the walker makes of the bytes of a file."""
    return part10.read_elements(io.BytesIO(data), EVERY)


REFUSED = {
    "a million empty items": (part_10(CLASS + element(0x00081140, b"SQ", MILLION) + IMAGE), "HEADER_LIMIT"),
    "a million, not wanted": (part_10(CLASS + element(0x00091140, b"SQ", MILLION) + IMAGE), "HEADER_LIMIT"),
    "a million, undefined length": (
        part_10(CLASS + element(0x00091140, b"SQ", MILLION, UNDEFINED) + SEQUENCE_END + IMAGE),
        "HEADER_LIMIT",
    ),
    "nested 50,000 deep": (part_10(CLASS + NESTED), "HEADER_LIMIT"),
    "deflated zeros": (part_10(deflated(CLASS, *ZEROS), syntaxes.DEFLATED), "HEADER_LIMIT"),
    "one deflated element of zeros": (
        part_10(deflated(CLASS, element(0x00091001, b"OB", length=600 * 2**20), *ZEROS), syntaxes.DEFLATED),
        "HEADER_LIMIT",
    ),
    "a value of 65 MB to keep": (
        part_10(CLASS + element(0x00081140, b"SQ", item(element(0x00081150, b"UI", b"1" * 60_000)) * 1_200) + IMAGE),
        "HEADER_LIMIT",
    ),
    "declared deflated, is not": (part_10(CLASS + IMAGE, syntaxes.DEFLATED), "WRONG_SYNTAX"),
    "declared implicit, is explicit": (part_10(CLASS + IMAGE, syntaxes.IMPLICIT), "WRONG_SYNTAX"),
    "declared big endian, is little": (part_10(CLASS + IMAGE, syntaxes.BIG_ENDIAN), "WRONG_SYNTAX"),
    "declared JPEG, is implicit": (
        part_10(struct.pack("<HHL", 8, 0x60, 2) + b"CT", "1.2.840.10008.1.2.4.50"),
        "WRONG_SYNTAX",
    ),
    "zeros in the middle": (part_10(CLASS + bytes(4_000_000) + IMAGE), "BAD_HEADER"),
    "an item longer than its sequence": (
        part_10(element(0x00081140, b"SQ", item(length=5_000)) + MODALITY * 1_000 + IMAGE),
        "BAD_HEADER",
    ),
    "an element longer than its item": (
        part_10(element(0x00081140, b"SQ", item(element(0x00081150, b"UI", b"1.2", 400))) + MODALITY * 99 + IMAGE),
        "BAD_HEADER",
    ),
}


@pytest.mark.parametrize("data, code", REFUSED.values(), ids=list(REFUSED))
def test_a_hostile_header_is_refused_soon_and_within_memory(data, code):
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        read(data)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code == code
    assert seconds < 20 and peak < 300 * 2**20  # a tenth of the time without tracemalloc


CUT = {
    "in an element's head": part_10(CLASS + IMAGE[:3]),
    "in a value": part_10(CLASS + MODALITY[:-1]),
    "by a length that lies": part_10(CLASS + element(0x00100010, b"OB", b"abc", 0xFFFFFFF0)),
    "in a sequence": part_10(CLASS + element(0x00081140, b"SQ", item(MODALITY), 500)),
    "before a sequence's delimiter": part_10(CLASS + element(0x00081140, b"SQ", item(MODALITY), UNDEFINED)),
    "in the meta header": part_10(b"")[:-7],
    "in a deflate stream": part_10(deflated(CLASS, MODALITY, IMAGE)[:-9], syntaxes.DEFLATED),
}


@pytest.mark.parametrize("data", CUT.values(), ids=list(CUT))
def test_a_file_that_ends_within_its_header_is_seen_to(data):
    found = read(data)
    assert found.cut and found.pixels is None


TOLERATED = {
    "a group length that lies": part_10(CLASS + MODALITY + IMAGE, group_length=0xFFFFFFFF),
    "no preamble": (CLASS + MODALITY + IMAGE),
    "a stray delimiter": part_10(CLASS + MODALITY + item(tag=data_set.ITEM_END) + IMAGE),
    "unwanted garbage within its length": part_10(CLASS + MODALITY + element(0x00091140, b"SQ", b"nonsense") + IMAGE),
    "an icon of its own, explicit lengths": part_10(
        CLASS + MODALITY + element(0x00880200, b"SQ", item(element(0x7FE00010, b"OB", b"\x09" * 8))) + IMAGE
    ),
    "an encapsulated icon in an item of explicit length": part_10(
        CLASS
        + MODALITY
        + element(
            0x00880200,
            b"SQ",
            item(element(0x7FE00010, b"OB", item() + item(b"\xff\xd8" + bytes(8)) + SEQUENCE_END, UNDEFINED)),
            UNDEFINED,
        )
        + SEQUENCE_END
        + IMAGE
    ),
}


@pytest.mark.parametrize("data", TOLERATED.values(), ids=list(TOLERATED))
def test_what_is_odd_but_plain_is_read(data):
    found = read(data)
    assert found.dataset.Modality == "CT"
    assert found.pixels is not None and not found.cut
    offset, length = found.pixels[1:3]
    assert data[offset : offset + length] == b"\1\2\3\4"


def test_zeros_at_the_end_are_padding():
    found = read(part_10(CLASS + bytes(1_000_000)))
    assert (found.cut, found.pixels, found.dataset.SOPClassUID) == (False, None, "1.2.840.10008.5.1.4.1.1.2")


def _values(dataset: pydicom.Dataset, nested: bool = False) -> dict[int, object]:
    """All values as text; private ones inside sequences are not read unless asked for."""
    found: dict[int, object] = {}
    for tag in dataset.keys():  # noqa: SIM118  (iterating a Dataset converts its elements)
        if nested and tag.is_private:
            continue
        try:
            value = dataset[tag]
            found[int(tag)] = [_values(inner, True) for inner in value.value] if value.VR == "SQ" else str(value.value)
        except Exception as error:  # as pydicom says it, both times
            found[int(tag)] = type(error).__name__
    return found


def test_pydicom_reads_the_same_from_all_its_own_files():
    seen = refused = 0
    for path in sorted(PACKAGED.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if not part10.looks_like_dicom(data[:132]):
            continue
        seen += 1
        try:
            found = read(data)
        except InputError as error:
            refused += error.code == "WRONG_SYNTAX"  # SC_rgb_jpeg.dcm declares JPEG and is implicit
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(data)
            known = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=EVERY)
            if not found.cut:
                assert _values(found.dataset) == _values(known), path.name
            if found.pixels is not None and known.file_meta.get("TransferSyntaxUID") != syntaxes.DEFLATED:
                assert found.pixels[1] in (file.tell() + 8, file.tell() + 12), path.name
    assert seen > 70 and refused == 1


def test_every_cut_before_the_pixels_is_seen():
    data = (PACKAGED / "MR_small.dcm").read_bytes()
    whole = read(data)
    assert whole.pixels is not None
    clean = [at for at in range(132, whole.pixels[1] - 12) if not read(data[:at]).cut]
    # Only between two elements nothing tells that something is missing but the missing pixels.
    assert all(read(data[:at]).pixels is None for at in clean)
    assert len(clean) == len(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)) + len(
        pydicom.dcmread(io.BytesIO(data)).file_meta
    )


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([syntaxes.EXPLICIT, syntaxes.IMPLICIT, syntaxes.DEFLATED, "1.2", ""]))
def test_any_bytes_give_elements_or_an_input_error(body, syntax):
    try:
        assert isinstance(read(part_10(body, syntax)), part10.Elements)
    except InputError as error:
        assert error.code in ("HEADER_LIMIT", "WRONG_SYNTAX", "BAD_HEADER")


def test_inflating_stops_at_its_limit():
    stream = deflated(bytes(50_000_000))
    tracemalloc.start()
    assert part10.inflate(io.BytesIO(stream), 1000) == bytes(1000)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()

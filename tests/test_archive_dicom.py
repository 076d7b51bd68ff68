"""Stored values of slices: bits, signs, byte orders, transfer syntaxes, headers; held against real files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import struct

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from tiny import SERIES, save, save_all, stored, tiny

from archive import part10
from archive.decoder import PixelDecoder
from archive.dicom import read_slice
from archive.errors import InputError
from archive.headers import ALLOWED, manufacturer, read_header
from archive.scan import read_series, scan
from archive.suv import suv

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder() as one:
        yield one


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_uncompressed_syntaxes_give_the_same_voxels(tmp_path, syntax, decoder):
    path = save(tiny(3), tmp_path / "one.dcm", syntax)
    header = read_header(path)
    assert header["syntax"] == syntax
    assert np.array_equal(read_slice(path, header, decoder), stored(3))
    assert decoder._child is None  # nothing is started for uncompressed pixels


def test_big_endian_is_swapped_to_native(tmp_path, decoder):
    dataset = tiny(3, pixels=stored(3).astype(">u2").tobytes())
    path = save(dataset, tmp_path / "one.dcm", ExplicitVRBigEndian)
    array = read_slice(path, read_header(path), decoder)
    assert array.dtype.isnative
    assert np.array_equal(array, stored(3))


BITS = [
    # allocated, stored, high, signed, raw, expected
    (16, 12, 11, 0, [0x0FFF, 0xF00F, 0x1000], [4095, 15, 0]),  # overlay bits above the value
    (16, 12, 11, 1, [0x0FFF, 0x0800, 0xF7FF], [-1, -2048, 2047]),
    (16, 12, 15, 0, [0xFFFF, 0x00F0, 0x000F], [4095, 15, 0]),  # the value in the high bits, junk below
    (16, 12, 15, 1, [0xFFF0, 0x8007, 0x7FF0], [-1, -2048, 2047]),
    (16, 16, 15, 1, [0xFFFF, 0x8000, 1], [-1, -32768, 1]),
    (16, 16, 15, 0, [0xFFFF, 0x8000, 1], [65535, 32768, 1]),
    (8, 8, 7, 0, [255, 128, 1], [255, 128, 1]),
    (8, 8, 7, 1, [255, 128, 1], [-1, -128, 1]),
    (8, 6, 5, 0, [0xFF, 0xC1, 0x3F], [63, 1, 63]),
    (32, 32, 31, 0, [0xFFFFFFFF, 0x80000000, 1], [2**32 - 1, 2**31, 1]),
    (32, 24, 23, 1, [0x00FFFFFF, 0xFF800000, 1], [-1, -(2**23), 1]),
]


@pytest.mark.parametrize(("allocated", "bits", "high", "signed", "raw", "expected"), BITS)
def test_only_the_stored_bits_count(tmp_path, decoder, allocated, bits, high, signed, raw, expected):
    changes = {"BitsAllocated": allocated, "BitsStored": bits, "HighBit": high, "PixelRepresentation": signed}
    pixels = np.array([*raw, 0], dtype=f"<u{allocated // 8}").tobytes()
    path = save(tiny(0, Rows=1, Columns=4, pixels=pixels, **changes), tmp_path / "one.dcm")
    array = read_slice(path, read_header(path), decoder)
    assert array.dtype == np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    assert array[0].tolist() == [*expected, 0]


def test_8_bit_words_of_big_endian_are_unswapped(tmp_path, decoder):
    changes = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    dataset = tiny(0, Rows=1, Columns=4, pixels=bytes([2, 1, 4, 3]), **changes)
    path = save(dataset, tmp_path / "one.dcm", ExplicitVRBigEndian)
    assert read_slice(path, read_header(path), decoder).tolist() == [[1, 2, 3, 4]]


def test_a_small_deflated_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(part10, "INFLATED_HEADER", 4096)
    dataset = tiny(0)
    dataset.add_new(0x00091010, "OB", bytes(1 << 20))  # a private element in front of everything that is wanted
    path = save(dataset, tmp_path / "one.dcm", DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 20_000
    assert read_header(path)["pixels"] is None
    (finding,) = scan(tmp_path).findings
    assert finding.code in ("NO_PIXELS", "NOT_DICOM")


def test_a_file_that_changed_after_the_scan_is_not_read(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    (plan,) = scan(tmp_path).plans
    save(tiny(1, PatientComments="longer than before"), tmp_path / "001.dcm")
    with pytest.raises(InputError, match="UNREADABLE"):
        read_series(plan)
    (tmp_path / "001.dcm").unlink()
    with pytest.raises(InputError, match="UNREADABLE"):
        read_series(plan)


@pytest.mark.parametrize("text", [b"nan ", b"inf ", b"abc ", b"1e99", b"0.0 "])
def test_a_slope_that_is_no_number_is_refused(tmp_path, text):
    save(tiny(0, RescaleSlope="7.25"), tmp_path / "one.dcm")
    raw = (tmp_path / "one.dcm").read_bytes()
    assert raw.count(b"7.25") == 1
    (tmp_path / "one.dcm").write_bytes(raw.replace(b"7.25", text))
    result = scan(tmp_path)
    if text == b"1e99":  # legal, if odd
        assert result.plans
    else:
        assert [finding.code for finding in result.findings] == ["NON_FINITE"]


def test_acquisition_holds_numbers_and_terms_only(tmp_path):
    changes = {
        "KVP": 120,
        "BodyPartExamined": "CHEST",
        "Laterality": "Smith",
        "PatientPosition": "HFS",
        "ConvolutionKernel": "for Dr. Jones",
        "Manufacturer": "Jane Doe Imaging",
        "ProtocolName": "Doe^Jane",
        "ExposureTime": -1,
    }
    save_all([tiny(index, **changes) for index in range(3)], tmp_path)
    (plan,) = scan(tmp_path).plans
    acquisition = read_series(plan).acquisition
    assert acquisition == {
        "kvp": 120.0,
        "slice_thickness_mm": 2.0,
        "body_part": "CHEST",
        "patient_position": "HFS",
        "manufacturer": "OTHER",
    }
    assert set(acquisition) <= set(ALLOWED)


def test_what_differs_between_slices_is_not_an_attribute_of_the_series(tmp_path):
    save_all([tiny(index, KVP=120, XRayTubeCurrent=100 + index) for index in range(3)], tmp_path)
    (plan,) = scan(tmp_path).plans
    assert plan.details["acquisition"]["kvp"] == 120
    assert "tube_current_ma" not in plan.details["acquisition"]


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("G.E. Medical Systems", "GE"),
        ("Siemens Healthineers", "SIEMENS"),
        ("TOSHIBA_MEC", "TOSHIBA"),
        ("Canon Medical", "CANON"),
        ("United Imaging", "UIH"),
        ("General Hospital", "OTHER"),
        ("", "OTHER"),
    ],
)
def test_manufacturers_are_a_closed_list(text, maker):
    assert manufacturer(text) == maker
    assert maker in ALLOWED["manufacturer"].terms


PET = {
    "weight_kg": 70.0,
    "dose_bq": 350e6,
    "half_life_s": 6586.2,
    "injected_s": 10 * 3600.0,
    "series_s": 737000 * 86400.0 + 11 * 3600.0,
    "acquired_s": None,
    "corrections": "DECY\\ATTN\\SCAT",
    "decay": "START",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"suv_factor": 70_000 / (350e6 * 2 ** (-3600 / 6586.2))}),
        ({"decay": "ADMIN"}, {"suv_factor": 70_000 / 350e6}),
        ({"acquired_s": 737000 * 86400.0 + 10.5 * 3600}, {"suv_factor": 70_000 / (350e6 * 2 ** (-1800 / 6586.2))}),
        ({"injected_s": 23.5 * 3600, "series_s": 0.5 * 3600}, {"suv_factor": 70_000 / (350e6 * 2 ** (-3600 / 6586.2))}),
        ({"decay": "NONE"}, {"suv_missing": "DECAY"}),
        ({"corrections": "DECY"}, {"suv_missing": "NOT_CORRECTED"}),
        ({"weight_kg": None}, {"suv_missing": "WEIGHT"}),
        ({"dose_bq": 0.0}, {"suv_missing": "DOSE"}),
        ({"half_life_s": None}, {"suv_missing": "HALF_LIFE"}),
        ({"injected_s": None}, {"suv_missing": "TIMES"}),
    ],
)
def test_suv_by_body_weight_or_the_reason_why_not(changes, expected):
    found = suv([{**PET, **changes}], "BQML")
    assert found == pytest.approx(expected) if "suv_factor" in expected else found == expected


def test_suv_needs_activity():
    assert suv([PET], "GML") == {"suv_missing": "UNITS"}


def test_nothing_that_pydicom_has_to_say_is_logged(tmp_path, caplog):
    save(tiny(0, PatientID="Doe^Jane", PatientBirthDate="19700101"), tmp_path / "one.dcm")
    wrong = b"no uid: Doe^Jane".ljust(len(SERIES))
    (tmp_path / "one.dcm").write_bytes((tmp_path / "one.dcm").read_bytes().replace(SERIES.encode(), wrong))
    with caplog.at_level(logging.DEBUG):
        scan(tmp_path)
    assert "Doe" not in caplog.text


def test_damaged_headers_never_raise_anything_else(tmp_path, decoder):
    whole = save(tiny(0), tmp_path / "one.dcm").read_bytes()
    random = np.random.default_rng(1)
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 2:
            damaged = damaged[: random.integers(133, len(whole))]
        else:
            damaged[random.integers(132, len(whole) - 60)] = random.integers(256)
        (tmp_path / "one.dcm").write_bytes(damaged)
        result = scan(tmp_path)
        assert len(result.plans) + len(result.findings) + sum(result.skipped.values()) == 1
        for plan in result.plans:
            with contextlib.suppress(InputError):
                read_series(plan, decoder=decoder)


def test_a_file_without_preamble_is_dicom_too(tmp_path):
    path = save(tiny(0), tmp_path / "one.dcm", ImplicitVRLittleEndian)
    raw = path.read_bytes()
    length = struct.unpack("<L", raw[140:144])[0]
    (tmp_path / "one.dcm").write_bytes(raw[144 + length :])
    assert raw[144 + length :][:4] == b"\x08\x00\x08\x00"
    (plan,) = scan(tmp_path).plans
    assert np.array_equal(read_series(plan).voxels[0], stored(0))


def test_real_files_decode_to_the_pixels_of_the_manifest(shared_data, decoder):
    entries = json.loads((shared_data / "manifest.json").read_text())["entries"]
    rows = [row for entry in entries for row in entry.get("files", []) if row.get("modality") in ("CT", "MR", "PT")]
    rows = [row for row in rows if row["outcome"] == "ingest" and len(row["shape"]) == 2]
    assert len(rows) >= 60
    wrong = []
    for row in rows:
        path = shared_data / row["path"]
        if path.suffix == ".gz":
            continue
        array = read_slice(path, read_header(path), decoder)
        little = array.astype(array.dtype.newbyteorder("<"))
        if hashlib.sha256(little.tobytes()).hexdigest()[:16] != row["pixel_sha256_16"]:
            wrong.append(path.name)
    assert wrong == []


def test_lossless_encodings_of_one_image_are_equal(shared_data, decoder):
    groups = json.loads((shared_data / "manifest.json").read_text())["lossless_parity"]
    compared = 0
    for group in groups:
        folder = shared_data / group["group"]
        folder = folder if folder.is_dir() else folder.parent
        for members in group["members"]:
            found = []
            for name in members:
                header = read_header(folder / name)
                if (header["frames"] or 1) == 1 and (header["samples"] or 1) == 1:
                    found.append(read_slice(folder / name, header, decoder))
            for array in found[1:]:
                assert array.dtype == found[0].dtype
                assert np.array_equal(array, found[0])
                compared += 1
    assert compared >= 12


def test_overlay_bits_do_not_reach_the_voxels(shared_data, decoder):
    folder = shared_data / "pairs" / "12bit" / "In"
    names = sorted(folder.glob("*.dcm"))
    assert len(names) == 3
    for path in names:
        header = read_header(path)
        array = read_slice(path, header, decoder)
        assert array.min() >= (-2048 if header["signed"] else 0)
        assert array.max() < (2048 if header["signed"] else 4096)
        assert np.array_equal(array, pydicom.dcmread(path).pixel_array)

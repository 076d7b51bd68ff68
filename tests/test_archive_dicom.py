"""Stored values of slices: bits, signs, byte orders, transfer syntaxes, headers; held against real files."""

from __future__ import annotations

import contextlib
import logging
import struct

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from tiny import SERIES, save, save_all, stored, tiny

from archive import part10
from archive.acquisition import ALLOWED, manufacturer
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.headers import read_header
from archive.scan import read_series, scan
from archive.suv import suv


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder() as one:
        yield one


def test_a_small_deflated_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(part10, "INFLATED_HEADER", 4096)
    dataset = tiny(0)
    dataset.add_new(0x00091010, "OB", bytes(1 << 20))  # a private element in front of everything that is wanted
    path = save(dataset, tmp_path / "one.dcm", DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match="HEADER_LIMIT"):
        read_header(path)
    (finding,) = scan(tmp_path).findings
    assert finding.code == "HEADER_LIMIT"


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
    "decayed_s": None,
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

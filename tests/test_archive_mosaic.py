"""Volumes tiled into one frame: Siemens mosaics in any orientation, UIH grids, CSA headers that lie."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from tiny import save, tiny

from archive.mosaic import csa_header
from archive.scan import read_series, scan

TILES = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(5, 6, 4)  # five slices of 6 x 4


def csa(elements: dict[str, list[str]]) -> bytes:
    """A CSA header of the newer format."""
    raw = b"SV10\4\3\2\1" + struct.pack("<2I", len(elements), 77)
    for name, values in elements.items():
        raw += struct.pack("<64si4s3i", name.encode(), len(values), b"FD\0\0", 4, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            raw += struct.pack("<4i", 0, len(text), 77, 0) + text.ljust((len(text) + 3) // 4 * 4, b"\0")
    return raw


def tiled(slices: np.ndarray, across: int, down: int) -> np.ndarray:
    """Slices row by row in one frame, the rest black."""
    count, height, width = slices.shape
    frame = np.zeros((down * height, across * width), dtype=slices.dtype)
    for index in range(count):
        row, column = index // across * height, index % across * width
        frame[row : row + height, column : column + width] = slices[index]
    return frame


def mosaic(orientation: list[float], normal: list[float] | None, count: bool = True) -> Dataset:
    """A Siemens mosaic of TILES: 3 x 3 tiles, 3 mm apart, the first slice's corner at (1, 2, 3)."""
    frame = tiled(TILES, 3, 3)
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    corner = np.array([1.0, 2.0, 3.0]) - x * 0.75 * (12 - 4) / 2 - y * 0.5 * (18 - 6) / 2
    dataset = tiny(
        0,
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        Rows=18,
        Columns=12,
        SpacingBetweenSlices=3,
        ImageOrientationPatient=orientation,
        ImagePositionPatient=corner.tolist(),
        pixels=frame,
    )
    if count:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 5)
    if normal is not None:
        header = csa({"NumberOfImagesInMosaic": ["5"], "SliceNormalVector": [f"{value:.8f}" for value in normal]})
        dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    return dataset


ORIENTATIONS = [
    ([1.0, 0, 0, 0, 1, 0], [0.0, 0, 1]),
    ([1.0, 0, 0, 0, 1, 0], [0.0, 0, -1]),
    ([0.0, 1, 0, 0, 0, -1], [1.0, 0, 0]),  # sagittal: the cross product points the other way
    ([0.0, 1, 0, 0, 0, -1], [-1.0, 0, 0]),
    ([1.0, 0, 0, 0, 0, -1], [0.0, 1, 0]),
    ([1.0, 0, 0, 0, 0, -1], [0.0, -1, 0]),
]


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize(("orientation", "normal"), ORIENTATIONS)
def test_every_tile_lies_where_the_scanner_put_it(tmp_path, orientation, normal, count):
    (plan,) = scan(save(mosaic(orientation, normal, count), tmp_path / "one.dcm")).plans
    volume = read_series(plan)
    assert volume.voxels.shape == (5, 6, 4)
    inverse = np.linalg.inv(volume.geometry.matrix)
    for index, tile in enumerate(TILES):
        place = np.array([1.0, 2.0, 3.0]) + 3.0 * index * np.array(normal)
        z, y, x = inverse[:3] @ [*place, 1]
        assert (y, x) == pytest.approx((0, 0), abs=1e-6)
        assert np.array_equal(volume.voxels[round(z)], tile)


def test_without_a_normal_the_order_is_flagged(tmp_path):
    (plan,) = scan(save(mosaic([1.0, 0, 0, 0, 1, 0], None), tmp_path / "one.dcm")).plans
    assert "SLICE_ORDER_ASSUMED" in plan.details["flags"]


def test_mosaics_in_a_row_are_time(tmp_path):
    for t in range(3):
        dataset = mosaic([1.0, 0, 0, 0, 1, 0], [0.0, 0, 1])
        dataset.SOPInstanceUID, dataset.AcquisitionTime = f"1.2.3.{t}", f"1000{t:02d}.5"
        save(dataset, tmp_path / f"{5 - t}.dcm")
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan)
    assert volume.voxels.shape == (3, 5, 6, 4)
    assert [frame["time_s"] for frame in volume.frames] == [0.0, 1.0, 2.0]


BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("NO_GEOMETRY", {"Columns": 10, "Rows": 18}),  # does not divide into three
    ("NO_GEOMETRY", {"ImagePositionPatient": None}),
]


@pytest.mark.parametrize(("code", "changes"), BROKEN)
def test_a_mosaic_that_cannot_be_cut_is_refused(tmp_path, code, changes):
    dataset = mosaic([1.0, 0, 0, 0, 1, 0], [0.0, 0, 1])
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.PixelData = bytes(2 * dataset.Rows * dataset.Columns)
    (finding,) = scan(save(dataset, tmp_path / "one.dcm")).findings
    assert finding.code == code


def test_a_mosaic_of_unknown_depth_is_refused(tmp_path):
    (finding,) = scan(save(mosaic([1.0, 0, 0, 0, 1, 0], None, count=False), tmp_path / "one.dcm")).findings
    assert finding.code == "MULTIFRAME"


def test_tiles_of_a_uih_grid_have_positions_of_their_own(tmp_path):
    dataset = tiny(
        0,
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"],
        Rows=12,
        Columns=12,
        pixels=tiled(TILES, 3, 2),
    )
    block = dataset.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", "5")
    items = [Dataset() for _ in TILES]
    for index, item in enumerate(items):
        item.ImagePositionPatient = [-10, -20, 50 - 4 * index]
    block.add_new(0x51, "SQ", items)
    (plan,) = scan(save(dataset, tmp_path / "one.dcm")).plans
    volume = read_series(plan)
    assert np.array_equal(volume.voxels, TILES[::-1])
    assert volume.geometry.affine[2] == (4, 0, 0, 34)


def test_a_csa_header_is_read_back():
    raw = csa({"B_value": ["1000"], "SliceNormalVector": ["0.1", "-0.2", "0.9"], "Text": ["no number"]})
    assert csa_header(raw) == {"B_value": [1000.0], "SliceNormalVector": [0.1, -0.2, 0.9]}


@given(cut=st.integers(0, 400), junk=st.binary(max_size=64), at=st.integers(0, 400))
def test_a_broken_csa_header_is_no_header(cut, junk, at):
    raw = bytearray(csa({"B_value": ["1000"], "SliceNormalVector": ["0.1", "-0.2", "0.9"]})[: 400 - cut])
    raw[at : at + len(junk)] = junk
    assert isinstance(csa_header(bytes(raw)), dict)

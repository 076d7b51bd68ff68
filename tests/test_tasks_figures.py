"""tasks/figures.py: windows, planes and the scale of the difference in the pictures of a report."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from test_flows_report_page import report

from archive.geometry import Geometry
from archive.phantoms import phantom
from flows.report_page import number, render
from tasks.figures import MOST_VOXELS, SOFT_TISSUE, Window, figures, sampled, triptych, windows_of


def test_windows_are_those_a_reader_would_choose() -> None:
    lung = np.array([-800.0] * 10 + [40.0] * 90)
    assert [window.name for window in windows_of(lung, "CT")] == ["soft tissue", "lung"]
    assert [window.name for window in windows_of(np.array([900.0] * 5 + [40.0] * 95), "CT")] == ["soft tissue", "bone"]
    (pet,) = windows_of(np.array([[0.0, 100.0]]), "PT")
    assert pet.apply(np.array([0.0, 1e6])).tolist() == [255, 0]
    (flat,) = windows_of(np.zeros(9), "MR")
    assert flat.high > flat.low


def test_triptych_is_original_decoded_and_difference_side_by_side() -> None:
    original = phantom("ct-chest", (3, 128, 128), (5.0, 3.0, 3.0), 1)[1]
    sheet = Image.open(io.BytesIO(triptych(original, original, SOFT_TISSUE, (128, 96), 50.0)))
    assert sheet.size == (3 * 128 + 12, 96)
    pixels = np.asarray(sheet.convert("L")).astype(int)
    assert np.abs(pixels[:, :124] - pixels[:, 134:258]).mean() < 3
    assert np.abs(pixels[4:-4, 276:-4] - 128).max() <= 3  # no difference anywhere
    other = Image.open(io.BytesIO(triptych(original, original + 25, SOFT_TISSUE, (128, 96), 50.0)))
    assert np.abs(np.asarray(other.convert("L")).astype(int)[4:-4, 276:-4] - 191).max() <= 3  # half way to white
    colour = np.zeros((70, 50, 3), np.float32)
    assert Image.open(io.BytesIO(triptych(colour, colour, Window("8 bit", 0, 255), (50, 70), 9.0))).mode == "RGB"


class Held:
    """A series [z, y, x] in memory, as figures() reads one."""

    axes = "zyx"

    def __init__(self, values: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        self.values, self.shape = values, values.shape
        self.geometry = Geometry.pixels(values.shape, spacing_mm)

    def slab_values(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def test_planes_go_through_the_largest_error_and_its_scale_is_told_in_units() -> None:
    before = np.random.default_rng(0).normal(0, 40, (40, 50, 60)).astype(np.float32)
    after = before + np.random.default_rng(1).normal(0, 10, before.shape).astype(np.float32)
    after[31, 7, 52] += 700
    found = figures(Held(before), Held(after), "CT")
    assert [(p["plane"], p["slice"], p["of"]) for p in found[0]["planes"]] == [
        ("axial", 32, 40),
        ("coronal", 8, 50),
        ("sagittal", 53, 60),
    ]
    assert 650 < found[0]["largest"] < 750
    assert all(20 < window["reach"] < 60 for window in found)  # by 99.5 % of the voxels, not by the one that is far off
    page = render(report(worst=[{**report()["series"][0], "figures": found}]))
    assert "coronal, slice 8 of 50" in page and f"difference ±{number(found[0]['reach'])} HU" in page
    assert "through the largest error" in page


def test_of_a_series_without_any_error_the_middle_is_shown_and_no_scale() -> None:
    held = Held(np.random.default_rng(0).normal(0, 40, (40, 50, 60)).astype(np.float32))
    found = figures(held, held, "CT")
    assert [p["slice"] for p in found[0]["planes"]] == [21, 26, 31] and found[0]["reach"] == found[0]["largest"] == 0
    page = render(report(worst=[{**report()["series"][0], "figures": found}]))
    assert "no difference" in page and "difference ±" not in page


def test_what_lies_outside_the_range_of_ct_does_not_choose_the_planes() -> None:
    before = np.zeros((40, 50, 60), np.float32)
    after = before.copy()
    before[0, 0, 0], after[0, 0, 0] = -3024, -1024  # padding outside the scanner's circle
    after[9, 8, 7] = 100
    assert [p["slice"] for p in figures(Held(before), Held(after), "CT")[0]["planes"]] == [10, 9, 8]


def test_planes_that_would_be_strips_are_left_out() -> None:
    values = np.random.default_rng(0).normal(0, 40, (8, 128, 128)).astype(np.float32)
    thin = figures(Held(values, (1.0, 1.0, 1.0)), Held(values, (1.0, 1.0, 1.0)), "CT")
    assert [p["plane"] for p in thin[0]["planes"]] == ["axial"]
    thick = figures(Held(values, (8.0, 1.0, 1.0)), Held(values, (8.0, 1.0, 1.0)), "CT")
    assert [p["plane"] for p in thick[0]["planes"]] == ["axial", "coronal", "sagittal"]


def test_of_a_large_series_slices_at_a_distance_are_decoded_and_the_middle_one_among_them() -> None:
    class Counting:
        """A series [z, y, x] whose values are their z; counts what is read of it."""

        axes, shape, geometry = "zyx", (900, 256, 256), Geometry.pixels((900, 256, 256))
        read = 0

        def slab_values(self, start: int, stop: int) -> np.ndarray:
            self.read += stop - start
            return np.broadcast_to(np.arange(start, stop, dtype=np.float32)[:, None, None], (stop - start, 256, 256))

    original, decoded = Counting(), Counting()
    (one,) = figures(original, decoded, "MR")
    assert original.read == decoded.read <= MOST_VOXELS // 256**2 + 1 < 100
    assert [(p["plane"], p["every"]) for p in one["planes"]] == [("axial", 1), ("coronal", 14), ("sagittal", 14)]
    page = render(report(worst=[{**report()["series"][0], "figures": [one]}]))
    assert "coronal, slice 129 of 256 (one in 14 along it)" in page and "axial, slice 451 of 900," in page
    assert 450 in sampled((900, 256, 256)) and sampled((60, 200, 200)).tolist() == list(range(60))
    sheet = Image.open(io.BytesIO(base64.b64decode(one["planes"][1]["picture"]))).convert("L")
    column = np.asarray(sheet)[:, 5].astype(int)  # feet to head: falls, without a gap
    assert column[0] > 240 and column[-1] < 15 and np.diff(column).max() <= 3

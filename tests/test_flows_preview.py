"""flows/preview.py: the window and the picture of a volume, over time too, from a bounded share of it."""

import tracemalloc

import numpy as np
import phantoms
import pytest
from PIL import Image

from archive.geometry import Geometry
from archive.volume import Volume
from flows.preview import window_of, write_png


def timed(shape: tuple[int, int, int, int] = (24, 4, 32, 32)) -> Volume:
    """MR whose values are 100 at the first time point and 100 more at each that follows."""
    voxels = np.full(shape, 100, np.uint16) * np.arange(1, shape[0] + 1, dtype=np.uint16)[:, None, None, None]
    return Volume(voxels, "tzyx", Geometry.pixels(shape[1:]), "MR")


def test_the_window_of_a_time_series_spans_its_times():
    low, high = window_of(timed())
    assert low == pytest.approx(100, abs=60) and high == pytest.approx(2400, abs=60)


def test_each_slice_is_taken_in_its_own_slope():
    volume = phantoms.pet_volume()
    low, high = window_of(volume)
    wanted = np.percentile(volume.values(), (0.5, 99.5))
    assert low == pytest.approx(wanted[0], abs=1e-3) and high == pytest.approx(wanted[1], rel=1e-3)


def test_a_window_and_a_picture_take_a_small_share_of_the_volumes_memory(tmp_path):
    volume = Volume(np.zeros((256, 512, 512), np.int16), "zyx", Geometry.pixels((256, 512, 512)), "MR")
    tracemalloc.start()
    window_of(volume)
    write_png(volume, tmp_path / "one.png", {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.voxels.nbytes / 4  # the whole as float32 would be twice of what is stored


def test_the_picture_is_the_middle_of_each_plane(tmp_path):
    voxels = np.zeros((3, 20, 20), np.uint8)
    voxels[1] = 255
    write_png(Volume(voxels, "zyx", Geometry.pixels((3, 20, 20)), "MR"), tmp_path / "one.png", {"tier": "volume"})
    picture = np.asarray(Image.open(tmp_path / "one.png"))
    assert picture[190, 190] == 255 and picture[2, 390:].max() == 0

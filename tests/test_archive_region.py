"""archive/region.py: what a part of a series keeps of its description."""

import numpy as np
import pytest
from phantoms import ct_volume, pet_volume

from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.region import cropped, parse, whole


def test_a_region_is_three_spans_whose_ends_may_be_left_out():
    assert parse("1:3, :4,2:", (5, 6, 7)) == (slice(1, 3), slice(0, 4), slice(2, 7))
    assert parse(":,:,:", (2, 5, 6, 7)) == whole((2, 5, 6, 7))


@pytest.mark.parametrize("text", ["", "1:2,3:4", "1,2,3", "2:2,:,:", ":,:,:9", "-1:2,:,:", "a:b,:,:", "3:1,:,:"])
def test_what_is_no_region_of_the_grid_is_refused_with_the_grid(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, (5, 6, 7))
    assert caught.value.code == "BAD_USAGE" and "0:5,0:6,0:7" in caught.value.hint


def test_voxels_of_a_region_lie_where_they_lay_in_the_whole():
    volume = ct_volume(seed=1)
    region = (slice(1, 4), slice(3, 9), slice(5, 11))
    part = Geometry.from_dict(cropped(volume.attributes(), region)["geometry"])
    assert part.shape == (3, 6, 6)
    assert np.allclose(part.matrix @ (0, 0, 0, 1), volume.geometry.matrix @ (1, 3, 5, 1))
    assert np.allclose(part.matrix @ (2, 5, 5, 1), volume.geometry.matrix @ (3, 8, 10, 1))


def test_exact_positions_count_from_the_regions_first_slice():
    geometry = Geometry((5, 4, 4), ((0, 0, 1, 0), (0, 1, 0, 0), (2, 0, 0, 10), (0, 0, 0, 1)), (0.0, 2.1, 3.9, 6.2, 8.0))
    attributes = {**ct_volume(seed=1).attributes(), "shape": [5, 4, 4], "geometry": geometry.as_dict()}
    part = Geometry.from_dict(cropped(attributes, (slice(1, 4), slice(0, 4), slice(0, 4)))["geometry"])
    assert np.allclose(part.positions_mm, (0.0, 1.8, 4.1))
    assert np.allclose(part.matrix[:3, 3], (0, 0, 12.1))


def test_each_slice_keeps_its_own_slope():
    volume = pet_volume(seed=4)
    depth = volume.geometry.shape[0]
    part = cropped(volume.attributes(), (slice(1, depth), *whole(volume.voxels.shape)[1:]))
    assert tuple(part["slope"]) == volume.slope[1:depth] and len(volume.slope) == depth

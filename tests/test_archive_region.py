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


def irregular(positions: tuple[float, ...]) -> dict:
    """Attributes of a series whose slices lie at these places (mm, from its first, at z = 10)."""
    depth = len(positions)
    step = positions[-1] / (depth - 1)
    geometry = Geometry((depth, 4, 4), ((0, 0, 1, 0), (0, 1, 0, 0), (step, 0, 0, 10), (0, 0, 0, 1)), positions)
    flags = ["TILTED", "SPACING_VARIES"]
    return {**ct_volume(seed=1).attributes(), "shape": [depth, 4, 4], "geometry": geometry.as_dict(), "flags": flags}


def part_of(positions: tuple[float, ...], first: int, stop: int) -> tuple[Geometry, list[str]]:
    attributes = cropped(irregular(positions), (slice(first, stop), slice(0, 4), slice(0, 4)))
    return Geometry.from_dict(attributes["geometry"]), attributes["flags"]


def test_the_step_of_a_region_is_the_mean_of_its_own_slices_not_of_the_whole():
    part, flags = part_of((0.0, 2.0, 4.0, 4.4, 8.0), 0, 4)
    assert np.allclose(part.positions_mm, (0.0, 2.0, 4.0, 4.4)) and "SPACING_VARIES" in flags
    assert np.allclose(part.matrix[:3, 0], (0, 0, 4.4 / 3))  # the affine meets the first slice and the last
    assert np.allclose(part.matrix @ (3, 0, 0, 1), (0, 0, 14.4, 1))


@pytest.mark.parametrize(("first", "stop"), [(0, 3), (3, 5), (1, 3)])
def test_a_region_that_is_regular_needs_no_exact_positions_and_says_so(first, stop):
    positions = (0.0, 2.0, 4.0, 5.0, 8.0)
    part, flags = part_of(positions, first, stop)
    assert part.positions_mm is None and flags == ["TILTED"]
    for place in range(first, stop):
        assert np.allclose(part.matrix @ (place - first, 0, 0, 1), (0, 0, 10 + positions[place], 1))


def test_one_slice_lies_where_it_lay_and_keeps_the_mean_step():
    part, flags = part_of((0.0, 2.0, 4.0, 5.0, 8.0), 3, 4)
    assert part.positions_mm is None and "SPACING_VARIES" not in flags and "SINGLE_SLICE" in flags
    assert np.allclose(part.matrix, [[0, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 15], [0, 0, 0, 1]])

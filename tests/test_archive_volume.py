"""Volume: stored values and their meaning, and what does not fit together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.errors import InputError
from archive.geometry import Geometry
from archive.volume import Volume


def volume(shape=(3, 4, 5), dtype=np.int16, **changes):
    rng = np.random.default_rng(0)
    axes = changes.pop("axes", "zyx")
    voxels = rng.integers(0, 100, shape).astype(dtype)
    return Volume(
        **{"voxels": voxels, "axes": axes, "geometry": Geometry.pixels(shape[-3:]), "modality": "CT"} | changes
    )


def test_values_apply_slope_and_intercept():
    ct = volume(slope=(2.0,), intercept=(-1024.0,), units="HU")
    np.testing.assert_allclose(ct.values(), ct.voxels * 2.0 - 1024)


def test_slope_per_slice_is_time_major():
    slopes = tuple(float(number) for number in range(1, 7))
    pet = volume((2, 3, 4, 5), axes="tzyx", slope=slopes, intercept=(0.0,) * 6)
    np.testing.assert_allclose(pet.values()[1, 2], pet.voxels[1, 2] * 6.0)
    np.testing.assert_allclose(pet.values()[0, 1], pet.voxels[0, 1] * 2.0)


@given(st.sampled_from([np.int16, np.uint16, np.uint8, np.int32]), st.floats(0.01, 8), st.floats(-2000, 2000))
def test_values_and_back_is_exact_for_integers(dtype, slope, intercept):
    ct = volume(dtype=dtype, slope=(slope,), intercept=(intercept,))
    np.testing.assert_array_equal(ct.from_values(ct.to_values(ct.voxels).astype(np.float64)), ct.voxels)


def test_values_beyond_the_dtype_are_clipped():
    ct = volume(dtype=np.uint8)
    assert ct.from_values(np.full((3, 4, 5), 300.0)).max() == 255
    assert ct.from_values(np.full((3, 4, 5), -7.0)).min() == 0


def test_attributes_round_trip():
    pet = volume((2, 3, 4, 5), axes="tzyx", frames=({"time_s": 0.0}, {"time_s": 2.5}), flags=("TILTED",), units="Bq/ml")
    back = Volume.from_attributes(pet.voxels, pet.attributes())
    assert back.attributes() == pet.attributes()
    assert (back.timepoints, back.channels, back.slices) == (2, 1, 6)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"axes": "xyz"}, "BAD_HEADER"),
        ({"units": "bananas"}, "BAD_HEADER"),
        ({"geometry": Geometry.pixels((3, 4, 6))}, "NO_GEOMETRY"),
        ({"dtype": np.complex64}, "UNSUPPORTED_PIXELS"),
        ({"slope": (1.0, 2.0), "intercept": (0.0, 0.0)}, "BAD_HEADER"),
        ({"slope": (0.0,)}, "NON_FINITE"),
        ({"intercept": (float("inf"),)}, "NON_FINITE"),
    ],
)
def test_what_does_not_fit_is_refused(changes, code):
    with pytest.raises(InputError) as caught:
        volume(**changes)
    assert caught.value.code == code

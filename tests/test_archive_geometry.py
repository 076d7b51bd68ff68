"""Geometry: conventions, inverse conversions, tilt and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from archive.errors import InputError
from archive.geometry import Geometry

AXIAL = ((0, 0, 0.5, -10), (0, 0.75, 0, -20), (3, 0, 0, 30), (0, 0, 0, 1))


def test_columns_are_the_array_axes():
    geometry = Geometry((5, 4, 3), AXIAL)
    assert geometry.spacing_mm == (3.0, 0.75, 0.5)
    assert tuple(geometry.matrix @ (2, 1, 1, 1)) == (-9.5, -19.25, 36.0, 1.0)


def test_nifti_is_ras_and_counts_x_first():
    nifti = Geometry((5, 4, 3), AXIAL).to_nifti()
    assert tuple(nifti @ (1, 1, 2, 1)) == (9.5, 19.25, 36.0, 1.0)


@given(arrays(float, (3, 4), elements=st.floats(-50, 50)), st.tuples(*[st.integers(1, 9)] * 3))
def test_nifti_and_json_round_trip(rows, shape):
    affine = np.vstack([rows, [0, 0, 0, 1]])
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return
    geometry = Geometry(shape, tuple(map(tuple, affine)))
    back = Geometry.from_nifti(geometry.to_nifti(), (shape[2], shape[1], shape[0]))
    assert back.shape == geometry.shape
    np.testing.assert_allclose(back.matrix, geometry.matrix, atol=1e-9)
    assert Geometry.from_dict(geometry.as_dict()) == geometry


@pytest.mark.parametrize("degrees", [0.0, 5.0, 18.5])
def test_tilt_is_the_shear_of_the_slice_axis(degrees):
    shear = 3 * np.tan(np.radians(degrees))
    affine = ((0, 0, 1, 0), (shear, 1, 0, 0), (3, 0, 0, 0), (0, 0, 0, 1))
    assert Geometry((2, 2, 2), affine).tilt_degrees == pytest.approx(degrees, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((0, 4, 4), AXIAL),
        ((4, 4), AXIAL),
        ((4, 4, 4), ((0, 0, 0, 0),) * 3 + ((0, 0, 0, 1),)),
        ((4, 4, 4), ((0, 0, float("nan"), 0), *AXIAL[1:])),
        ((4, 4, 4), AXIAL[:3]),
    ],
)
def test_what_is_no_grid_is_refused(shape, affine):
    with pytest.raises(InputError) as caught:
        Geometry(shape, affine)
    assert caught.value.code == "NO_GEOMETRY"

"""Metrics against scikit-image and by hand; intensity mappings; certificates and the gate; JPEG 2000."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from archive.codes import Codes
from archive.errors import InputError, MismatchError
from archive.geometry import Geometry
from archive.jpeg2000 import round_trip
from archive.settings import GateSettings
from archive.volume import Volume, rescaled
from model import metrics
from model.certificate import Certificate, certify
from model.fidelity import peak_of
from model.intensity import Mapping, fit
from model.source import as_source, unscaled

RNG = np.random.default_rng(0)


def ct(shape: tuple[int, int, int] = (4, 96, 80), noise: float = 20.0) -> Volume:
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    disc = ((y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2) < (min(shape[1:]) / 3) ** 2
    hu = np.where(disc, 40.0 + z, -1000.0) + RNG.normal(0, noise, shape)
    return Volume(np.rint(hu).astype(np.int16), "zyx", Geometry.pixels(shape), "CT", units="HU")


def codes_of(volume: Volume, size: int = 16) -> Codes:
    grid = tuple(-(-n // d) for n, d in zip(volume.geometry.shape, (1, 8, 8), strict=True))
    array = RNG.integers(0, size, (1, *grid)).astype(np.uint16)
    return Codes(array, "0" * 64, 1, size, (1, 8, 8), volume.attributes())


@pytest.mark.parametrize(("shape", "span"), [((40, 33), 4095.0), ((7, 7), 255.0), ((128, 64), 1.0)])
def test_ssim_is_that_of_scikit_image(shape: tuple[int, int], span: float) -> None:
    a = RNG.random(shape) * span - span / 4
    b = a + RNG.normal(0, span / 20, shape)
    assert metrics.ssim(a, b, span) == pytest.approx(structural_similarity(a, b, data_range=span), abs=1e-6)


def test_figures_by_hand() -> None:
    assert metrics.psnr(4095.0**2 / 10_000, 4095.0) == pytest.approx(40.0)
    assert metrics.psnr(0.0, 255.0) == metrics.EXACT_PSNR
    assert metrics.ssim(np.zeros((6, 9)), np.zeros((6, 9)), 1.0) is None
    counts = np.array([4, 4, 0, 0])
    assert metrics.entropy(counts) == pytest.approx(1.0)
    assert metrics.perplexity(counts) == pytest.approx(2.0)
    assert metrics.use(counts) == 0.5
    assert metrics.histogram(np.array([[0, 1, 1], [2, 2, 2]]), 3).tolist() == [[1, 2, 0], [0, 0, 3]]


@settings(max_examples=40, deadline=None)
@given(low=st.floats(-1e4, 1e4), span=st.floats(1.0, 1e5), knee=st.sampled_from([0.0, 0.05]), at=st.floats(-0.5, 1.5))
def test_mappings_invert_themselves(low: float, span: float, knee: float, at: float) -> None:
    mapping = Mapping.from_dict(json.loads(json.dumps(Mapping(low, low + span, knee=knee * span).as_dict())))
    value = np.array([low + at * span])
    assert mapping.to_values(mapping.to_model(value)) == pytest.approx(value, abs=1e-5 * (span + abs(low)))


def test_companded_hu_come_back_whole_and_soft_tissue_has_its_share() -> None:
    mapping = Mapping.from_dict(json.loads(json.dumps(fit(ct(), "hu-companded").as_dict())))
    hu = np.arange(-1024.0, 3072.0)
    x = mapping.to_model(hu)
    assert x[0] == -1 and x[-1] == 1 and (np.diff(x) > 0).all()
    np.testing.assert_array_equal(np.rint(mapping.to_values(x)), hu)
    assert mapping.to_model(np.array([-3000.0, 9000.0])).tolist() == [-1, 1]
    share = {name: float(np.ptp(one.to_model(np.array([-160.0, 240.0])))) for name, one in
             (("straight", fit(ct(), "hu")), ("companded", mapping))}  # fmt: skip
    assert share["companded"] > 1.7 * share["straight"]


def test_mappings_of_each_kind() -> None:
    volume = ct()
    hu = fit(volume, "hu")
    assert (hu.to_model(np.array([-3000.0, -1024.0, 3071.0])) == [-1, -1, 1]).all()
    robust = fit(volume, "robust")
    beyond = np.array([robust.high + 500.0])
    assert robust.to_values(robust.to_model(beyond)) == pytest.approx(beyond, rel=1e-5)  # kept, not clipped
    flat = Volume(np.full((2, 9, 9), 7, np.int16), "zyx", Geometry.pixels((2, 9, 9)), "MR")
    assert np.isfinite(fit(flat, "robust").to_model(flat.values())).all()
    assert np.isfinite(fit(flat, "asinh").to_model(flat.values())).all()
    broken = Volume(np.full((2, 9, 9), np.nan, np.float32), "zyx", Geometry.pixels((2, 9, 9)), "NIFTI")
    with pytest.raises(InputError, match="NON_FINITE"):
        fit(broken, "robust")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32"])
def test_stored_values_survive_the_way_to_units_and_back(dtype: str) -> None:
    kind = np.dtype(dtype)
    stored = RNG.integers(0, 120, (3, 4, 5)).astype(kind)
    slope, intercept = (2.0, 0.5, 3.0), (0.0, -7.0, 1.0)
    assert (unscaled(rescaled(stored, slope, intercept, 0), slope, intercept, 0, kind) == stored).all()
    extreme = unscaled(np.array([[1e30]]), (1.0,), (0.0,), 0, kind)
    assert extreme[0, 0] > 0  # clipped, not wrapped


def test_a_certificate_measures_what_is_there() -> None:
    volume = ct()
    decoded = volume.with_voxels(volume.voxels + np.int16(10))
    found = certify(volume, decoded, codes_of(volume), 4_000)
    a, b = (np.clip(v.values().astype(np.float64), -1024, 3071) for v in (volume, decoded))
    assert found.psnr == pytest.approx(10 * math.log10(4095**2 / np.square(a - b).mean()))
    truth = np.mean([structural_similarity(x, y, data_range=4095) for x, y in zip(a, b, strict=True)])
    assert found.ssim == pytest.approx(truth, abs=1e-6)
    assert (found.max_error, found.peak, found.passed) == (10.0, 4095.0, True)
    assert found.bits_per_voxel["disk"] == pytest.approx(8 * 4_000 / volume.voxels.size)
    assert found.bits_per_voxel["entropy"] <= found.bits_per_voxel["fixed"] == pytest.approx(4 / 64)
    assert found.ratio == pytest.approx(volume.voxels.nbytes / 4_000)
    assert found.jpeg2000_psnr is not None and 20 < found.jpeg2000_psnr < 80
    assert Certificate.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    ("gate", "reasons"),
    [
        ({}, ()),
        ({"min_psnr": 20.0, "min_ssim": 0.1, "max_error": 500}, ()),
        ({"min_psnr": 90.0}, ("BELOW_MIN_PSNR",)),
        ({"min_ssim": 1.0, "max_error": 1}, ("BELOW_MIN_SSIM", "ABOVE_MAX_ERROR")),
    ],
)
def test_the_gate_judges(gate: dict[str, float], reasons: tuple[str, ...]) -> None:
    volume = ct()
    decoded = volume.with_voxels((volume.voxels + RNG.integers(-60, 60, volume.voxels.shape)).astype(np.int16))
    found = certify(volume, decoded, codes_of(volume), 900, GateSettings(**gate), peer=False)
    assert (found.reasons, found.passed) == (reasons, not reasons)


def test_what_cannot_be_measured_is_said() -> None:
    small = ct((2, 6, 6))
    found = certify(small, small, codes_of(small), 100, GateSettings(min_ssim=0.5))
    assert (found.ssim, found.reasons, found.psnr) == (None, ("NOT_MEASURABLE",), metrics.EXACT_PSNR)
    assert found.jpeg2000_psnr is None and found.max_error == 0
    with pytest.raises(MismatchError):
        certify(small, ct((2, 6, 7)), codes_of(small), 100)


def test_peaks_by_kind() -> None:
    picture = Volume(np.zeros((3, 1, 8, 8), np.uint8), "czyx", Geometry.pixels((1, 8, 8)), "PICTURE", units="rgb")
    assert peak_of(as_source(picture)).range == 255
    ramp = np.arange(10_000, dtype=np.int16).reshape(1, 100, 100)
    mr = Volume(ramp, "zyx", Geometry.pixels((1, 100, 100)), "MR")
    assert peak_of(as_source(mr)).range == pytest.approx(9_999 * 0.998, rel=1e-3)


def test_jpeg2000_keeps_to_its_bytes() -> None:
    image = (ct((1, 256, 256)).voxels[0].astype(np.int32) + 1024).clip(0, 4095).astype(np.uint16)
    errors = []
    for size in (500, 2_000, 8_000):
        after = round_trip(image, size, 12)
        assert after is not None and after.shape == image.shape and after.dtype == image.dtype
        errors.append(float(np.square(after.astype(float) - image).mean()))
    assert errors[0] > errors[1] > errors[2]
    colour = np.repeat(image[:, :, None] // 16, 3, 2).astype(np.uint8)
    assert round_trip(colour, 3_000, 8).shape == colour.shape
    assert round_trip(image[:20, :20], 500, 12) is None
    assert round_trip(image, 50, 12) is None

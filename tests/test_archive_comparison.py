"""Comparing two models: what better and worse mean."""

from __future__ import annotations

import pytest

from archive.comparison import Figures, Pair, compare


def pair(number: int, before: float, after: float, bits=(0.1, 0.1), passed=(True, True), ssim=(0.9, 0.9)) -> Pair:
    first, second = (Figures(*one) for one in zip((before, after), ssim, bits, passed, strict=True))
    return Pair(f"{number:032x}", first, second)


def judged(gains: list[float], bits=(0.1, 0.1), **options):
    return compare(
        "a", "b", [pair(n, 40.0, 40.0 + gain, bits) for n, gain in enumerate(gains)], tolerance_db=0.1, **options
    )


@pytest.mark.parametrize(
    ("gains", "bits", "worse"),
    [
        ([1.0, 2.0], (0.1, 0.1), False),
        ([-1.0, -1.2], (0.1, 0.1), True),
        ([-0.05, -0.05], (0.1, 0.1), False),  # within the tolerance
        ([-3.0, 2.5], (0.1, 0.1), False),  # a mean of -0.25, and a standard error of 2.75
        ([-0.3] * 9 + [-0.2], (0.1, 0.1), True),
        ([-1.0, -1.2], (0.1, 0.05), False),  # half of the bits are worth 3 dB
        ([-4.0, -4.2], (0.1, 0.05), True),
        ([-1.0, -1.2], (0.1, 0.0995), True),  # hardly fewer
        ([-1.0, -1.2], (0.1, 0.2), True),
        ([0.5, 0.6], (0.1, 0.3), False),  # better at more bits: a choice
    ],
)
def test_worse_is_a_drop_beyond_noise_that_no_saved_bits_pay_for(gains, bits, worse):
    assert judged(gains, bits).is_worse is worse


def test_the_figures_are_means_of_pairs():
    found = judged([1.0, -0.5, 0.05, 2.0], (0.2, 0.1))
    assert (found.series, found.better, found.same, found.worse) == (4, 2, 1, 1)
    assert found.gain_db == pytest.approx(0.6375)
    assert found.bits == pytest.approx((0.2, 0.1))
    assert found.gain_ssim == pytest.approx(0.0)
    assert [one.gain_db for one in found.worst] == pytest.approx([-0.5, 0.05, 1.0, 2.0])
    assert found.as_dict()["worst"][0]["gain_db"] == pytest.approx(-0.5)
    assert found.noise_db == pytest.approx(2 * 1.0995264 / 4**0.5, rel=1e-6)  # standard deviation by root of four


def test_one_series_is_judged_by_the_tolerance_and_none_by_nothing():
    assert judged([-0.2]).is_worse
    assert not judged([-0.09]).is_worse
    assert compare("a", "b", [], tolerance_db=0.1) is None


def test_the_gate_and_what_is_not_encoded_count_before_decibels():
    fails = [pair(n, 40, 45, passed=(True, n > 0)) for n in range(3)]
    assert compare("a", "b", fails, tolerance_db=0.1).is_worse
    both = [*fails, pair(9, 40, 45, passed=(False, True))]
    assert not compare("a", "b", both, tolerance_db=0.1).is_worse
    assert judged([5.0, 5.0], failed=1).is_worse


def test_pictures_too_small_for_ssim_are_left_out_of_its_mean():
    pairs = [pair(1, 40, 41, ssim=(None, None)), pair(2, 40, 41, ssim=(0.8, 0.9))]
    assert compare("a", "b", pairs, tolerance_db=0.1).gain_ssim == pytest.approx(0.1)
    assert compare("a", "b", pairs[:1], tolerance_db=0.1).gain_ssim is None

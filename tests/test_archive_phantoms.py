"""Phantoms: the same from the same seed, other patients from other seeds, and tissue where anatomy has it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from archive.phantoms import KINDS, phantom

SHAPE, SPACING = (12, 64, 64), (10.0, 4.5, 4.5)


@pytest.mark.parametrize("kind", KINDS)
def test_phantom_follows_from_its_seed(kind: str) -> None:
    one = phantom(kind, SHAPE, SPACING, 3)
    assert one.shape == SHAPE and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, phantom(kind, SHAPE, SPACING, 3))
    assert not np.array_equal(one, phantom(kind, SHAPE, SPACING, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_repeat_changes_the_noise_and_not_the_patient(kind: str) -> None:
    one, again, other = (phantom(kind, SHAPE, SPACING, seed, repeat=n) for seed, n in ((3, 0), (3, 1), (4, 0)))
    assert not np.array_equal(one, again)
    assert np.abs(one - again).mean() < 0.5 * np.abs(one - other).mean()


@pytest.mark.parametrize(
    ("kind", "spacing", "ranges"),
    [
        ("ct-head", (10.0, 3.5, 3.5), [(-1024, -900), (-10, 60), (800, 1500)]),  # air, brain, skull
        ("ct-chest", (10.0, 6.0, 6.0), [(-1024, -950), (-950, -700), (-130, -60), (0, 90), (200, 600)]),
        ("ct-abdomen", (10.0, 6.0, 6.0), [(-1024, -950), (-130, -60), (30, 80), (200, 600)]),
        ("mr-t1", (10.0, 3.5, 3.5), [(0, 60), (250, 1200)]),
        ("mr-t2", (10.0, 3.5, 3.5), [(0, 60), (600, 1800)]),
        ("pet", (60.0, 7.0, 7.0), [(0, 400), (1200, 3500), (9000, 60_000)]),
    ],
)
def test_tissue_is_where_anatomy_has_it(kind: str, spacing: tuple, ranges: list[tuple[float, float]]) -> None:
    values = phantom(kind, (16, 64, 64), spacing, 1)
    for low, high in ranges:
        assert np.mean((values >= low) & (values <= high)) > 0.004, f"nothing between {low} and {high}"


def test_air_surrounds_the_patient_and_ct_stays_in_range() -> None:
    values = phantom("ct-chest", (8, 96, 96), (10.0, 5.0, 5.0), 2)
    assert values.min() >= -1024 and values.max() <= 3071
    assert values[:, :4].mean() == pytest.approx(-1000, abs=15)


def test_another_grid_shows_the_same_patient() -> None:
    fine = phantom("ct-head", (9, 96, 96), (5.0, 2.2, 2.2), 5)
    coarse = phantom("ct-head", (9, 48, 48), (5.0, 4.4, 4.4), 5)
    halved = fine.reshape(9, 48, 2, 48, 2).mean((2, 4))
    assert np.corrcoef(halved.ravel(), coarse.ravel())[0, 1] > 0.95


def test_contrast_medium_brightens_vessels() -> None:
    plain, bright = (phantom("ct-abdomen", SHAPE, (10.0, 6.0, 6.0), 1, enhancement=share) for share in (0.0, 1.0))
    assert np.percentile(bright - plain, 99.5) > 80


def test_thin_slices_are_noisier() -> None:
    def noise(spacing_z: float) -> float:
        pair = [phantom("ct-abdomen", (4, 64, 64), (spacing_z, 6.0, 6.0), 1, repeat=n) for n in (0, 1)]
        return float(np.std(pair[0] - pair[1]))

    assert noise(1.25) == pytest.approx(2 * noise(5.0), rel=0.15)


def test_a_volume_of_the_demo_is_quick() -> None:
    started = time.process_time()
    phantom("ct-head", (40, 192, 192), (4.0, 1.2, 1.2), 0)
    assert time.process_time() - started < 5  # 0.4 s on an idle core


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="ct-head"):
        phantom("ct-knee", SHAPE, SPACING, 0)

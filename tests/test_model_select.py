"""Choosing codebook size and width: folds that share nobody, the one-standard-error rule, one real evaluation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import ct_volume

from archive.errors import ConfigError
from archive.settings import TrainSettings
from model.config import resolve
from model.select import Candidate, Result, choose, configured, evaluate, folds, grid, scores

SETTINGS = TrainSettings(device="cpu", threads=1, cache_bytes=2**24, preset="tiny", steps=150)


@given(
    st.dictionaries(st.integers(0, 60).map(str), st.integers(0, 12).map(lambda n: f"p{n}"), min_size=2),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_folds_share_no_patient_and_leave_nothing_out(patients, k, seed):
    cut = folds(patients, k, seed)
    assert sorted(series for test in cut.tests for series in test) == sorted(patients)
    assert all(cut.tests), "a fold without a test measures nothing"
    enough = len(set(patients.values())) >= k
    assert cut.kind == ("patients" if enough else "series")
    assert len(cut.tests) == (k if enough else min(k, len(patients)))
    if enough:
        owners = [{patients[series] for series in test} for test in cut.tests]
        assert sum(map(len, owners)) == len(set(patients.values()))
    assert cut == folds(dict(reversed(patients.items())), k, seed)


@pytest.mark.parametrize(("patients", "k"), [({}, 3), ({"a": "p"}, 3), ({"a": "p", "b": "q"}, 1)])
def test_too_little_to_cross_validate_is_said(patients, k):
    with pytest.raises(ConfigError, match="BAD_USAGE") as caught:
        folds(patients, k, 0)
    assert caught.value.hint


def test_the_grid_starts_from_the_preset():
    config = resolve("ct-2d")
    assert [(c.codebook_size, c.width) for c in grid([], [], config)] == [
        (256, 64), (512, 64), (1024, 64), (256, 128), (512, 128), (1024, 128)
    ]  # fmt: skip
    assert grid([32, 8, 32], [16], config) == [Candidate(16, 8), Candidate(16, 32)]
    for sizes, widths in (([1], []), ([65536], []), ([], [7])):
        with pytest.raises(ConfigError, match="BAD_USAGE"):
            grid(sizes, widths, config)


def test_a_candidate_is_what_its_settings_train():
    config = resolve("mr-2d", SETTINGS, channels=1, intensity="robust")
    candidate = Candidate(32, 256)
    written = SETTINGS.model_copy(update={"codebook_size": 256, "width": 32})
    assert candidate.settings() == {"codebook_size": 256, "width": 32}
    assert configured(candidate, config, SETTINGS) == resolve("mr-2d", written, channels=1, intensity="robust")


def rows(width: int, size: int, psnrs: list[float], bits: float, code: str = "") -> list[Result]:
    return [
        Result(
            Candidate(width, size),
            fold,
            psnr,
            bits_per_voxel=bits,
            codebook_use=0.5,
            steps=7,
            code=code if not fold else "",
        )
        for fold, psnr in enumerate(psnrs)
    ]


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        # 41 +- 0.577: 40.5 is within it, 40.0 is not.
        (rows(64, 1024, [40, 41, 42], 0.12) + rows(64, 512, [39.5, 40.5, 41.5], 0.10), 512),
        (rows(64, 1024, [40, 41, 42], 0.12) + rows(64, 512, [39.0, 40.0, 41.0], 0.10), 1024),
        # Better and cheaper.
        (rows(64, 1024, [40, 40, 40], 0.12) + rows(64, 512, [41, 41, 41], 0.10), 512),
        # The best has more bits than another equally good one, and one of them failed in a fold.
        (rows(64, 512, [41, 41, 41], 0.12) + rows(64, 256, [41, 41, 41], 0.01, code="NON_FINITE"), 512),
        # Equal in everything: the smaller codebook.
        (rows(64, 512, [41, 41], 0.1) + rows(64, 256, [41, 41], 0.1), 256),
    ],
)
def test_the_fewest_bits_within_one_standard_error(results, chosen):
    found = choose(results)
    assert found is not None and found.candidate.codebook_size == chosen


def test_scores_are_means_with_their_error_and_failures_are_counted():
    (score,) = scores(rows(64, 512, [38, 40, 42], 0.25))
    assert (score.psnr_mean, score.bits_per_voxel, score.folds, score.failed) == (40, 0.25, 3, 0)
    assert score.steps == 7
    assert score.psnr_se == pytest.approx(2 / math.sqrt(3))
    failed = [Result(Candidate(64, 512), fold, code="NON_FINITE") for fold in range(3)]
    assert scores(failed)[0].failed == 3 and math.isnan(scores(failed)[0].psnr_mean)
    assert choose(failed) is None


def test_a_candidate_is_trained_and_measured_on_volumes_it_never_saw(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    volumes = {str(seed): ct_volume(seed=seed) for seed in range(3)}
    training, testing = {k: volumes[k] for k in "01"}, {"2": volumes["2"]}
    config = resolve("tiny", SETTINGS, channels=1, intensity="hu")
    few, many = (evaluate(Candidate(16, size), training, testing, config, SETTINGS, 60.0, fold=1) for size in (2, 64))
    assert (few.steps, few.fold, few.candidate, few.code) == (150, 1, Candidate(16, 2), "")
    cell = math.prod(config.downsample)
    assert 0 <= few.bits_per_voxel <= 1 / cell and few.bits_per_voxel < many.bits_per_voxel <= 6 / cell
    assert many.psnr > 15
    assert not list(tmp_path.glob("voxbook*")), "weights learned from patients stay nowhere"

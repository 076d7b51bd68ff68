"""Choosing sizes: the grid, folds that share nobody, candidates that train what they say, one real evaluation."""

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
from model.select import Candidate, configured, distinct, evaluate, folds, grid

SETTINGS = TrainSettings(device="cpu", threads=1, cache_bytes=2**24, preset="tiny", steps=100)


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
    own = (config.levels, config.downsample)
    size, width = config.codebook_size, config.width
    assert grid(config) == [
        Candidate(w, k, *own) for w in (width // 2, width) for k in (size // 4, size // 2, size)
    ]  # fmt: skip
    assert grid(config, [32, 8, 32], [16]) == [Candidate(16, 8, *own), Candidate(16, 32, *own)]
    cells = [(1, 8, 8), (1, 4, 4)]
    assert grid(config, [32], [16], [2, 1], cells) == [
        Candidate(16, 32, levels, cell) for levels in (1, 2) for cell in reversed(cells)
    ]


@pytest.mark.parametrize(
    "given", [{"sizes": [1]}, {"sizes": [65536]}, {"widths": [7]}, {"levels": [0]}, {"downsamples": [(1, 0, 8)]}]
)
def test_a_value_that_no_model_can_have_is_refused(given):
    with pytest.raises(ConfigError, match="BAD_USAGE") as caught:
        grid(resolve("ct-2d"), **given)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("preset", "cell"),
    [("mr-2d", (1, 8, 8)), ("mr-2d", (1, 4, 4)), ("mr-2d", (1, 16, 16)), ("mr-2d", (1, 2, 2)), ("mr-2d", (1, 1, 2)),
     ("ct-3d", (4, 8, 8)), ("ct-3d", (2, 4, 4)), ("ct-3d", (1, 8, 8))],
)  # fmt: skip
def test_a_candidate_is_what_its_settings_train(preset, cell):
    config = resolve(preset, SETTINGS, channels=1, intensity="robust")
    candidate = Candidate(32, 256, 3, cell)
    written = SETTINGS.model_copy(update={"codebook_size": 256, "width": 32, "levels": 3, "downsample": cell})
    assert candidate.settings() == {"codebook_size": 256, "width": 32, "levels": 3, "downsample": list(cell)}
    made = configured(candidate, config, SETTINGS)
    assert made == resolve(preset, written, channels=1, intensity="robust")
    assert (made.downsample, made.levels, made.codebook_size, made.width) == (cell, 3, 256, 32)


def test_the_presets_own_downsampling_changes_nothing():
    for preset in ("ct-2d", "ct-3d", "mr-2d", "mr-3d", "pet-3d"):
        config = resolve(preset)
        assert resolve(preset, TrainSettings(downsample=config.downsample)) == config


@pytest.mark.parametrize("cell", [(2, 8, 8), (1, 3, 3)])
def test_a_downsampling_that_does_not_fit_the_preset_is_refused(cell):
    with pytest.raises(ConfigError, match="BAD_VALUE"):
        configured(Candidate(32, 256, 1, cell), resolve("ct-2d"), SETTINGS)


def test_a_candidate_is_trained_and_measured_on_volumes_it_never_saw(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    volumes = {str(seed): ct_volume(seed=seed) for seed in range(3)}
    training, testing = {k: volumes[k] for k in "01"}, {"2": volumes["2"]}
    config = resolve("tiny", SETTINGS, channels=1, intensity="hu")
    few, many = (
        evaluate(Candidate(16, size, 1, config.downsample), training, testing, config, SETTINGS, 60.0, fold=1)
        for size in (2, 64)
    )
    assert (few.steps, few.fold, few.candidate, few.code) == (100, 1, Candidate(16, 2, 1, config.downsample), "")
    assert (few.seed, few.seconds) == (SETTINGS.seed, 60.0)
    cell = math.prod(config.downsample)
    assert 0 <= few.bits_per_voxel <= 1 / cell and few.bits_per_voxel < many.bits_per_voxel <= 6 / cell
    assert many.psnr > 15
    assert not list(tmp_path.glob("voxbook*")), "weights learned from patients stay nowhere"


def test_sizes_that_fsq_cannot_tell_apart_are_one_candidate():
    settings = TrainSettings(quantizer="fsq")
    config = resolve("tiny", settings, intensity="hu")
    points = distinct(grid(config, sizes=[900, 1000, 1100]), config, settings)
    assert [(point.width, point.codebook_size) for point in points] == [(8, 1000), (16, 1000)]
    assert distinct(points, config, settings) == points
    plain = resolve("tiny", intensity="hu")
    both = grid(plain, sizes=[64, 128])
    assert distinct(both, plain, TrainSettings()) == both

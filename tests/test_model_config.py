"""Configs: presets, what overrides them, and what does not fit together."""

from __future__ import annotations

import math

import pytest

from archive.errors import ConfigError
from archive.settings import TrainSettings
from model.config import (
    _BY_MODALITY,
    FSQ_STEPS,
    PEAK_RATES,
    PRESETS,
    ModelConfig,
    fsq_steps,
    intensity_for,
    preset_for,
    resolve,
)
from model.vqvae import VQVAE

SMALL = {"tiny", "tiny-3d", "article"}  # no defaults of any modality
CORRECTED = {"ct-2d-fine"}
KFLOP = 20.0  # per voxel; MONAI's default VQVAE costs 192


def test_settings_override_presets_and_bad_ones_are_named() -> None:
    config = resolve("ct-2d", TrainSettings(levels=3, width=64, steps=7))
    assert (config.levels, config.width, config.decoder_width, config.steps) == (3, 64, 32, 7)
    with pytest.raises(ConfigError, match="no preset"):
        resolve("ct-2")
    with pytest.raises(ValueError, match="multiple"):
        ModelConfig(preset="x", patch=(1, 60, 60))
    assert resolve("tiny", intensity="hu").intensity == "hu"
    assert [intensity_for("CT", 1, "HU"), intensity_for("PT"), intensity_for("MR")] == [
        "hu-companded",
        "asinh",
        "robust",
    ]
    assert {preset_for(name) for name in ("CT", "MR", "PT", "NIFTI", "PICTURE")} <= set(PRESETS)
    assert resolve(preset_for("PICTURE", 3)).channels == 3


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - SMALL - CORRECTED))
def test_a_default_preset_costs_at_most_20_kflop_per_voxel_to_encode(preset: str) -> None:
    assert VQVAE(resolve(preset)).encoder_kflop <= KFLOP


@pytest.mark.parametrize("preset", sorted(CORRECTED))
def test_corrections_cost_a_decoding_more_and_are_nobodys_default(preset: str) -> None:
    model = VQVAE(resolve(preset))
    assert KFLOP < model.encoder_kflop <= KFLOP + model.decoder_kflop
    assert preset not in {preset_for(name, channels) for name in (*_BY_MODALITY, "PICTURE") for channels in (1, 3)}


def test_what_can_invent_structure_is_off_in_every_preset() -> None:
    for preset in PRESETS:
        config = resolve(preset)
        assert (config.attention, config.adversarial) == (False, 0.0)


def test_the_articles_example_is_its_settings() -> None:
    config = resolve("article")
    assert (config.channels, config.codebook_size, config.code_dim, config.levels) == (3, 64, 8, 1)
    assert (config.quantizer, config.start, config.stem) == ("vq", "data", "strided")
    assert (config.optimizer, config.peak_rate, config.schedule) == ("adam", 1e-3, "constant")
    assert (config.batch_size, config.epochs) == (64, 10)
    assert (config.mse, config.l1, config.ssim) == (1.0, 0.0, 0.0)
    assert config.downsample == (1, 4, 4)  # two convolutions of stride 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stem", "haar"),
        ("quantizer", "vq"),
        ("normalize", True),
        ("gradient", "rotation"),
        ("attention", True),
        ("adversarial", 0.5),
        ("adversarial_after", 7),
        ("temperature", 0.9),
        ("balance_temperature", 0.3),
        ("mse", 1.0),
        ("l1", 0.0),
        ("ssim", 0.3),
        ("epochs", 4),
        ("optimizer", "adam"),
        ("intensity", "hu"),
        ("level_dropout", 0.7),
        ("start", "random"),
        ("jitter", 0.1),
        ("patch", (1, 64, 64)),
        ("schedule", "constant"),
        ("decay", 0.9),
        ("average", 0.5),
    ],
)
def test_settings_reach_the_config(key: str, value: object) -> None:
    assert getattr(resolve("tiny"), key) != value
    assert getattr(resolve("tiny", TrainSettings.model_validate({key: value})), key) == value


def test_fsq_takes_the_papers_steps_for_a_codebook_size() -> None:
    config = resolve("ct-2d", TrainSettings(quantizer="fsq"))
    assert (config.fsq_levels, config.codebook_size, config.code_dim) == ((8, 5, 5, 5), 1000, 4)
    assert resolve("ct-2d", TrainSettings(quantizer="fsq", codebook_size=256)).fsq_levels == (8, 6, 5)
    config = resolve("ct-2d", TrainSettings(quantizer="fsq", fsq_levels=(4, 4)))
    assert (config.codebook_size, config.code_dim) == (16, 2)
    for steps in FSQ_STEPS:
        assert fsq_steps(math.prod(steps)) == steps
        assert math.prod(steps) < 65535  # the fill value of the store is no code


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantizer": "fsq"}, "product of fsq_levels"),
        ({"quantizer": "fsq", "fsq_levels": (2, 4), "codebook_size": 8, "code_dim": 2}, "at least 3 steps"),
        ({"quantizer": "fsq", "codebook_size": 1000, "code_dim": 4, "gradient": "rotation"}, "for codebooks"),
        ({"quantizer": "fsq", "codebook_size": 1000, "code_dim": 4, "rate_penalty": 0.1}, "rate_penalty"),
        ({"stem": "haar", "unshuffle": (1, 3, 3), "patch": (1, 96, 96)}, "powers of two"),
        ({"stem": "strided", "stride": (1, 3, 3), "patch": (1, 96, 96)}, "powers of two"),
        ({"stem": "strided", "unshuffle": (1, 1, 1)}, "at least 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(preset="x", **changes)


def test_what_does_not_fit_in_the_settings_is_an_error_of_configuration() -> None:
    with pytest.raises(ConfigError, match="for codebooks"):
        resolve("tiny", TrainSettings(quantizer="fsq", normalize=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantizer": "fsq", "rate_penalty": 0.1}, "rate_penalty"),
        ({"quantizer": "fsq", "code_dim": 8}, "code_dim"),
        ({"fsq_levels": (8, 5, 5, 5)}, "fsq_levels"),
        ({"quantizer": "vq", "fsq_levels": (8, 5, 5, 5)}, "fsq_levels"),
    ],
)
def test_settings_of_another_quantizer_are_refused_not_dropped(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve("ct-2d", TrainSettings.model_validate(settings))


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_another_optimizer_than_the_presets_has_a_rate_of_its_own(optimizer: str) -> None:
    assert resolve("article").peak_rate == resolve("article", TrainSettings(optimizer="adam")).peak_rate == 1e-3
    assert resolve("article", TrainSettings(optimizer=optimizer)).peak_rate == PEAK_RATES[optimizer]
    assert resolve("article", TrainSettings(optimizer=optimizer, learning_rate=0.3)).peak_rate == 0.3

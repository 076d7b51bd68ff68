"""Bundles: an id that outlives new config fields, and a card that says what a model must not be used for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_model_train import phantoms

from archive.errors import MismatchError
from model import bundle
from model.card import card, data_summary
from model.config import resolve
from model.source import as_source
from model.vqvae import VQVAE


def started(**changes) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", intensity="hu").model_copy(update=changes))
    model.quantizer.start(torch.randn(200, model.config.code_dim))
    return model


def test_a_bundle_written_before_a_field_was_thought_of_keeps_its_id(tmp_path: Path) -> None:
    model = started()
    saved = tmp_path / bundle.save(model, model.config, tmp_path, {})
    config = json.loads((saved / bundle.CONFIG).read_text())
    for field in ("balance", "balance_temperature", "accumulate", "patience", "validate_every", "epochs", "schedule"):
        del config[field]
    old = json.dumps(config, sort_keys=True, indent=1).encode()
    name = bundle.identify(load_file(saved / bundle.WEIGHTS), old)
    assert name != saved.name
    (saved / bundle.CONFIG).write_bytes(old)
    loaded = bundle.load(saved.rename(tmp_path / name))
    assert loaded.model_id == name and loaded.config == model.config
    (tmp_path / name / bundle.CONFIG).write_bytes(old + b" ")
    bundle._load.cache_clear()
    with pytest.raises(MismatchError, match="WRONG_MODEL"):
        bundle.load(tmp_path / name)


def test_the_id_is_over_config_bytes_and_every_tensor() -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(3)}
    name = bundle.identify(weights, b"{}")
    digest = hashlib.sha256(b"{}")
    for key in "ab":
        digest.update(
            f"\0{key}\0torch.float32\0{tuple(weights[key].shape)}\0".encode() + weights[key].numpy().tobytes()
        )
    assert name == digest.hexdigest()
    assert bundle.identify(weights, b"{ }") != name


@pytest.mark.parametrize(
    ("changes", "word"), [({"adversarial": 0.1}, "adversarial loss"), ({"attention": True}, "attention")]
)
def test_the_card_warns_of_what_can_invent_structure(changes: dict, word: str) -> None:
    model = started()
    plain = card("0" * 64, model, model.config, {})
    assert "invent" not in plain and "Not a medical device" in plain
    warned = card("0" * 64, model, model.config.model_copy(update=changes), {})
    assert word in warned and "it can invent structure that was never in the image" in warned


def test_the_data_summary_counts_and_gives_ranges() -> None:
    found = data_summary([as_source(volume) for volume in phantoms(3).values()])
    assert found["training_series"] == 3 and found["modalities"] == "CT (3)"
    assert found["spacing_zyx_mm"] == "1 x 1 x 1" and found["training_voxels"] == 3 * 4 * 64 * 56


def test_files_are_read_anew_whatever_is_in_memory_and_a_broken_bundle_is_replaced(tmp_path: Path) -> None:
    model = started()
    saved = tmp_path / bundle.save(model, model.config, tmp_path, {})
    bundle.load(saved)
    assert bundle.check(saved) == ""
    weights = (saved / bundle.WEIGHTS).read_bytes()
    for harm, code in (
        (weights[:-1] + bytes([weights[-1] ^ 1]), "DAMAGED"),
        (weights[:99], "DAMAGED"),
        (None, "MISSING"),
    ):
        (saved / bundle.WEIGHTS).unlink()
        if harm is not None:
            (saved / bundle.WEIGHTS).write_bytes(harm)
        assert bundle.check(saved) == code
        assert bundle.save(model, model.config, tmp_path, {}) == saved.name
        assert bundle.check(saved) == ""
    assert bundle.check(tmp_path / "nowhere") == "MISSING"
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()].count(saved.name) == 1
    assert not list((tmp_path / bundle.STAGE).iterdir())

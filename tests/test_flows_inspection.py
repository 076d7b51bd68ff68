"""flows/inspection.py: what `voxbook inspect` tells people of one series, of one model, and of what it does not find."""

from __future__ import annotations

import dataclasses

import pytest

from archive.catalog_schema import ModelRow
from archive.errors import StoreError
from archive.workspace import Workspace
from flows.inspection import CERTIFICATE, describe, show
from model.certificate import Certificate

SUMMARY = {
    "steps": 4500,
    "seconds": 1569.2,
    "psnr": 42.1134,
    "psnr_worst_decile": 37.36,
    "ssim": 0.9528,
    "bits_per_voxel": 0.06564,
    "codebook_use": 0.6533,
    "held_out_patients": 3,
    "ended_by": "steps",
    "steps_skipped": 0,
    "rollbacks": 0,
}


@pytest.fixture
def home(tmp_path):
    opened = Workspace.open(tmp_path / "ws", create=True)
    opened.catalog.add_model(ModelRow(model="ab12" * 16, group="ct", preset="ct-2d", train_key="k", summary=SUMMARY))
    yield opened
    opened.close()


def test_of_a_model_everything_that_is_known_is_told_and_where_its_card_lies(home, capsys):
    model = home.catalog.models()[0]
    data = describe(home, model.model[:8])
    (entry,) = data["models"]
    card = home.models / model.model / "README.md"
    assert entry["card"] == str(card)
    show(data)
    out = capsys.readouterr().out
    for words in (
        "patients held out",
        "PSNR, dB",
        "PSNR of the worst tenth, dB",
        "SSIM",
        "bits per voxel",
        "codebook use",
        "steps",
        "made",
        "card",
    ):
        assert any(line.startswith(words) for line in out.splitlines()), words
    assert model.model in out and str(card) in out and f"{model.summary['psnr']:.5g}" in out
    assert str(model.created_at)[:10] in out


def test_a_model_that_came_without_figures_shows_those_that_it_has_and_its_card(home, capsys):
    model = home.catalog.models()[0]
    data = describe(home, model.model)
    bare = {key: data["models"][0][key] for key in ("model", "group", "preset", "current", "created_at", "card")}
    show({**data, "models": [bare]})
    out = capsys.readouterr().out
    assert "PSNR" not in out and bare["card"] in out


def test_every_figure_of_a_certificate_is_told_in_words(capsys):
    names = {field.name for field in dataclasses.fields(Certificate)}
    assert set(CERTIFICATE) == names
    show({"series": [], "models": [], "quarantine": [], "certificate": dict.fromkeys(sorted(names), 1.5)})
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(words) for line in lines) for words in CERTIFICATE.values())
    assert not any(line.startswith(("codes_psnr_there", "sampled_by")) for line in lines)


def test_without_patients_held_out_the_figures_are_said_to_be_of_the_training(home, capsys):
    (entry,) = describe(home, "ab12")["models"]
    show({"series": [], "models": [{**entry, "held_out_patients": 0}], "quarantine": []})
    assert "measured on patients of the training" in capsys.readouterr().out
    show({"series": [], "models": [entry], "quarantine": []})
    assert "measured on patients of the training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        ("abcdef0123", "abcdef0123", "runs"),
        ("TRUNCATED", "TRUNCATED is a reason code", "--reveal"),
        ("1.2.840.113619", "UID", "--uid"),
        ("Jane Doe", "digits 0 to 9 and a to f", "runs"),
        ("20991231T", "20991231T", "runs"),
    ],
)
def test_what_is_not_found_is_told_with_what_else_could_be_asked(home, item, message, hint):
    with pytest.raises(StoreError) as caught:
        describe(home, item)
    assert caught.value.code == "NOT_FOUND" and message in caught.value.message and hint in caught.value.hint
    assert "Jane" not in str(caught.value) + caught.value.hint
    assert "1.2.840" not in str(caught.value) + caught.value.hint

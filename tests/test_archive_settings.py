"""Settings: defaults, files, overrides, and errors that name the nearest key."""

from __future__ import annotations

import tomllib

import pytest

from archive.errors import ConfigError
from archive.settings import Settings
from archive.settings_file import apply_override, keys, load, parse


def test_defaults_judge_nothing():
    settings = Settings()
    assert settings.gate_of("ct").model_dump() == {"min_psnr": None, "min_ssim": None, "max_error": None}
    assert settings.cluster.address == "local"


@pytest.mark.parametrize(
    ("toml", "key", "value"),
    [
        ("[train]\nmax_seconds = 60", "train.max_seconds", 60.0),
        ('cluster = "inline"', "cluster.address", "inline"),
        ('[cluster]\naddress = "tcp://10.0.0.1:8786"', "cluster.address", "tcp://10.0.0.1:8786"),
        ('[sources]\nct = "/data"', "sources.ct", "/data"),
        ('[groups.knee]\nmatch = {body_part = "KNEE"}', "groups.knee.match.body_part", "KNEE"),
    ],
)
def test_a_file_sets_what_it_says(tmp_path, toml, key, value):
    (tmp_path / "voxbook.toml").write_text(toml)
    found = load(tmp_path)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("toml", "nearest"),
    [
        ("[train]\nmax_second = 3", "train.max_seconds"),
        ("[gate]\nmin_pnsr = 3", "gate.min_psnr"),
        ("databse = 'x'", "database"),
        ("[groups.ct.gate]\nmax_eror = 1", "groups.NAME.gate.max_error"),
        ("max_seconds = 3", "train.max_seconds"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, toml, nearest):
    (tmp_path / "voxbook.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.code == "UNKNOWN_KEY"
    assert nearest in caught.value.hint


@pytest.mark.parametrize(
    "toml",
    ["[train]\nmax_seconds = -1", "[encode]\nprofile = 'slow'", "cluster = 'moon'", "[gate", "[train]\nseed = 'x'"],
)
def test_a_bad_value_is_refused(tmp_path, toml):
    (tmp_path / "voxbook.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.code == "BAD_VALUE"


def test_an_override_wins_over_the_file(tmp_path):
    (tmp_path / "voxbook.toml").write_text("[train]\nmax_seconds = 60\nseed = 3")
    settings = load(tmp_path, ["train.max_seconds=5", "encode.profile=fast", "train.preset=tiny", "train.steps=none"])
    assert (settings.train.max_seconds, settings.train.seed, settings.encode.profile) == (5, 3, "fast")
    assert (settings.train.preset, settings.train.steps) == ("tiny", None)


def test_a_gate_override_holds_for_every_group(tmp_path):
    (tmp_path / "voxbook.toml").write_text("[groups.ct.gate]\nmax_error = 3\nmin_ssim = 0.9")
    assert load(tmp_path).gate_of("ct").max_error == 3
    gate = load(tmp_path, ["gate.max_error=0"]).gate_of("ct")
    assert (gate.max_error, gate.min_ssim) == (0, 0.9)


@pytest.mark.parametrize("override", ["train", "=3", "train.seed.deep=1", "train.nothing=1"])
def test_a_wrong_override_is_a_config_error(override):
    data = {"train": {"seed": 1}}
    with pytest.raises(ConfigError):
        apply_override(data, override)
        parse(data)


def test_every_setting_is_described():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            if not field.description:
                yield prefix + name

    assert list(undescribed(Settings)) == []
    assert "groups.NAME.gate.max_error" in keys()
    assert "train.max_seconds" in keys()


def test_init_writes_toml_that_loads_to_the_defaults():
    from flows.setup import toml_text
    from flows.survey import Survey

    text = toml_text({"a": "/data/a"}, Survey((), {}, {}, 0, 0, 0.0), {}, 0)
    settings = parse(tomllib.loads(text))
    assert settings == Settings(sources={"a": "/data/a"})
    for key in keys():
        leaf = key.rsplit(".", 1)[-1]
        assert leaf in text, f"{key} is not explained"

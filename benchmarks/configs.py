"""The config of what a benchmark trains: the group's preset or a named one, with any field of it changed.

`ct-2d,levels=4,code_dim=32` names a preset and fields of model/config.py; what voxbook.toml cannot set may be changed
here too, so that a preset can be tried before it is one.
"""

from __future__ import annotations

import json
from typing import Any

from held_out import Split
from pydantic import ValidationError

from archive.settings import TrainSettings
from model.config import ModelConfig, intensity_for, preset_for, resolve
from model.source import as_source, channels


def config_of(split: Split, text: str | None, settings: TrainSettings) -> ModelConfig:
    """The config that `voxbook train` would take for the group, with the changes in `text`: `[PRESET][,KEY=VALUE…]`.

    A KEY that `[train]` has goes through it, as in voxbook.toml. Raises SystemExit for a field that there is not.
    """
    preset, _, rest = (text or "").partition(",")
    values = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in _pairs(rest))}
    known = {key: value for key, value in values.items() if key in TrainSettings.model_fields}
    settings = TrainSettings.model_validate({**settings.model_dump(), **known})
    first = as_source(next(iter(split.learn.values())))
    colours = channels(first)
    mapping = intensity_for(split.modality, colours, first.units)
    config = resolve(preset or preset_for(split.modality, colours), settings, channels=colours, intensity=mapping)
    others: dict[str, Any] = {key: value for key, value in values.items() if key not in known}
    try:
        return ModelConfig.model_validate({**config.model_dump(), **others})
    except ValidationError as error:
        raise SystemExit(f"{text}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


def _pairs(text: str) -> list[str]:
    """`a=1,b=[2,3]` cut at the commas outside of brackets."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part for part in found if part]

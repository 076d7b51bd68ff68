"""`voxbook init`: look at the data, then write a voxbook.toml that says what every setting does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from archive.errors import ConfigError
from archive.keys import Pseudonyms
from archive.scan import scan
from archive.settings import FILENAME, GroupSettings, Section, Settings
from archive.workspace import Workspace


def initialise(root: Path, sources: list[Path]) -> dict[str, Any]:
    """Create the workspace and its voxbook.toml; raises ConfigError OCCUPIED where there is one already."""
    path = root / FILENAME
    if path.exists():
        raise ConfigError("OCCUPIED", f"{FILENAME} exists already", hint="edit it, or remove it first")
    for number, source in enumerate(sources, 1):
        if not source.exists():
            raise ConfigError("BAD_USAGE", f"SOURCE number {number} does not exist", hint="check the path")
    aliases = {f"source{number}": str(source.resolve()) for number, source in enumerate(sources, 1)}
    voxels: Counter[str] = Counter()
    series: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for alias, folder in aliases.items():
        found = scan(Path(folder), alias=alias, pseudonyms=Pseudonyms.load())
        refused.update(finding.code for finding in found.findings)
        for plan in found.plans:
            voxels[plan.group] += plan.voxels
            series[plan.group] += 1
    Workspace.open(root, create=True)
    path.write_text(toml_text(aliases, {group: (series[group], voxels[group]) for group in sorted(series)}))
    return {
        "settings": str(path),
        "series": sum(series.values()),
        "groups": [{"group": group, "series": series[group], "voxels": voxels[group]} for group in sorted(series)],
        "reasons": dict(refused),
    }


def toml_text(sources: dict[str, str], groups: dict[str, tuple[int, int]]) -> str:
    """A voxbook.toml with every setting: defaults commented out, each under its description."""
    lines = ["# voxbook.toml: what is not set here has the default shown. docs/configuration.md explains.", ""]
    for group, (series, voxels) in groups.items():
        lines.append(f"# found: group {group}, {series} series, {voxels / 1e6:.1f} million voxels")
    lines += ["", *_fields(Settings, only_plain=True), "", "[sources]"]
    lines += [f"{alias} = {json.dumps(path)}" for alias, path in sources.items()] or ['# ct = "/data/ct"']
    lines += _tables(Settings, "", "[{}]")
    lines += ["", "# A group of your own beside one per modality:", "# [groups.NAME]", *_fields(GroupSettings)]
    return "\n".join(lines) + "\n"


def _tables(section: type[BaseModel], above: str, header: str) -> list[str]:
    """The tables of a section, those inside them commented out."""
    lines = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            path = above + name
            lines += ["", f"# {field.description}", header.format(path), *_fields(field.annotation)]
            lines += _tables(field.annotation, f"{path}.", "# [{}]")
    return lines


def _fields(section: type[BaseModel], only_plain: bool = False) -> list[str]:
    lines = []
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Section) or (only_plain and isinstance(default, dict)):
            continue
        value = '""' if default is None else json.dumps(default) if default != {} else "{}"
        lines.append(f"# {field.description}")
        lines.append(f"# {name} = {value}" + ("   # none by default" if default is None else ""))
    return lines

"""`voxbook init`: look at the data, then write a voxbook.toml that says what every setting does."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from archive.errors import ConfigError
from archive.settings import GroupSettings, Section, Settings
from archive.settings_file import FILENAME
from archive.workspace import Workspace
from flows.probe import Cost, cost_of, free_bytes
from flows.survey import Found, Survey, look_at

# What the file shows for settings that are none by default: a line that is legal once its # is gone.
EXAMPLES: dict[str, Any] = {
    "min_psnr": 35.0,
    "min_ssim": 0.9,
    "max_error": 50.0,
    "downsample": [1, 8, 8],
    "patch": [1, 128, 128],
    "preset": "ct-2d",
    "codebook_size": 1024,
    "width": 96,
    "code_dim": 16,
    "levels": 2,
    "steps": 20000,
    "epochs": 100,
    "batch_size": 16,
    "patience": 10,
    "validate_every": 500,
    "balance_temperature": 0.5,
    "temperature": 0.5,
    "alpha": 0.8,
    "mse": 20.0,
    "l1": 1.0,
    "ssim": 0.1,
    "fsq_levels": [8, 5, 5, 5],
    "rate_penalty": 0.1,
    "normalize": False,
    "attention": False,
    "adversarial": 0.1,
    "adversarial_after": 1000,
    "threads": 4,
    "workers": 4,
    "queue": "gpu",
    "account": "radiology",
    "interface": "ib0",
    "host": "10.0.0.1",
    "scratch": "/scratch",
    "database": "postgresql+psycopg://voxbook@localhost/voxbook",
    "linkage": "postgresql+psycopg://voxbook@localhost/linkage",
    "max_seconds": 3600.0,
    "learning_rate": 0.001,
    "balance": ["site"],
}
OCCUPIED_HINT = "edit it, give another folder with -w, or remove it first"


def initialise(
    root: Path,
    sources: list[Path],
    *,
    timed: bool = True,
    notice: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Look at the sources, time one series per group, create the workspace and its voxbook.toml.

    timed False leaves the timing out. progress(done, total) in files. Raises ConfigError OCCUPIED where there is a
    voxbook.toml already, BAD_USAGE where a source is not there; InputError UNREADABLE where one cannot be read.
    """
    path = root / FILENAME
    if path.exists():
        raise ConfigError("OCCUPIED", f"{FILENAME} exists already in this folder", hint=OCCUPIED_HINT)
    for number, source in enumerate(sources, 1):
        if not source.exists():
            hint = "check the path; is the disk or network drive mounted?"
            raise ConfigError("BAD_USAGE", f"SOURCE number {number} does not exist", hint=hint)
    say = notice or (lambda _: None)
    aliases = {f"source{number}": source.resolve() for number, source in enumerate(sources, 1)}
    home = Workspace.open(root, create=True).root
    survey = look_at(aliases, progress)
    costs = {}
    for found in survey.groups if timed else ():
        say(f"init: timing one series of {found.group}")
        costs[found.group] = cost_of(found, home)
    free = free_bytes(home)
    _write_new(path, toml_text({alias: str(place) for alias, place in aliases.items()}, survey, costs, free))
    return {
        "settings": str(path),
        "files": survey.files,
        "bytes": survey.bytes,
        "series": sum(found.series for found in survey.groups),
        "groups": [_as_dict(found, costs.get(found.group)) for found in survey.groups],
        "suggestions": [text for found in survey.groups for text in found.suggestions()],
        "reasons": survey.refused,
        "skipped": survey.skipped,
        "free_bytes": free,
        "train_seconds": Settings().train.max_seconds,
        "seconds": round(survey.seconds, 3),
    }


def _write_new(path: Path, text: str) -> None:
    """Write a file that is whole or not there, and never in place of another. Raises ConfigError OCCUPIED."""
    draft = path.with_name(f".{FILENAME}-{secrets.token_hex(4)}")
    try:
        with draft.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails where another init was first
    except FileExistsError:
        raise ConfigError("OCCUPIED", f"{FILENAME} exists already in this folder", hint=OCCUPIED_HINT) from None
    finally:
        draft.unlink(missing_ok=True)


def _as_dict(found: Found, cost: Cost | None) -> dict[str, Any]:
    """One group for programs: what is there, and what it will take."""
    facts = {
        "group": found.group,
        "modality": found.modality,
        "series": found.series,
        "patients": found.patients,
        "voxels": found.voxels,
        "source_bytes": found.source_bytes,
        "preset": found.preset,
    }
    if cost is None:
        return facts
    return facts | {
        "volume_bytes": cost.volume_bytes,
        "code_bytes": cost.code_bytes,
        "ingest_seconds": cost.ingest_seconds,
        "encode_seconds": cost.encode_seconds,
        "basis": cost.basis,
    }


def summary(done: dict[str, Any]) -> tuple[list[str], list[tuple[Any, ...]], list[str]]:
    """What a person reads after init: columns and rows of a table, and sentences below it."""
    columns = [
        "group",
        "series",
        "patients",
        "Mvoxels",
        "source",
        "preset",
        "volumes",
        "codes, at most",
        "ingest",
        "encode",
    ]
    rows = [
        (
            *(group["group"], group["series"], group["patients"], f"{group['voxels'] / 1e6:,.1f}"),
            *(size(group["source_bytes"]), group["preset"]),
            *(size(group.get("volume_bytes")), size(group.get("code_bytes"))),
            *(duration(group.get("ingest_seconds")), duration(group.get("encode_seconds"))),
        )
        for group in done["groups"]
    ]
    said = []
    need = sum((group.get("volume_bytes") or 0) + (group.get("code_bytes") or 0) for group in done["groups"])
    timed = any("basis" in group for group in done["groups"])
    if timed:
        said.append(
            f"Times are estimates: one series per group was read, stored, encoded with an untrained model and certified "
            f"on this machine, times the group's voxels. Training takes {duration(done['train_seconds'])} in all "
            "(train.max_seconds)."
        )
        said += [f"{group['group']}: {group['basis']}" for group in done["groups"] if group["volume_bytes"] is None]
    if timed and need > done["free_bytes"]:
        said.append(
            f"DISK: about {size(need)} are needed and {size(done['free_bytes'])} are free where the workspace lies: "
            "choose another folder with -w, or make room."
        )
    said += [f"Suggestion: {text}." for text in done["suggestions"]]
    if not done["groups"] and done["reasons"]:
        said.append(
            "No series was found that can be read: the reasons are below; check that SOURCE is the right folder."
        )
    return columns, rows, said


def nothing_found(done: dict[str, Any]) -> str:
    """Why there is no series, and what to do."""
    if done["reasons"]:
        return "Nothing was found there: look at the reasons above, or name another folder"
    if not done["files"]:
        return "Nothing was found there: it holds no file; check the path, or whether its disk is mounted"
    return f"Nothing was found there: none of its {done['files']:,} files is an image; name another folder"


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.0f} {units[0]}" if number >= 10 or units[0] == "B" else f"{number:.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def toml_text(sources: dict[str, str], survey: Survey, costs: dict[str, Cost], free: int) -> str:
    """A voxbook.toml with every setting: defaults commented out, each under its description."""
    lines = ["# voxbook.toml: what is not set here has the default shown. docs/configuration.md explains.", ""]
    lines += _found(survey, costs, free, looked=bool(sources))
    lines += ["", *_fields(Settings, only_plain=True), "", "[sources]"]
    lines += [f"{alias} = {json.dumps(path, ensure_ascii=False)}" for alias, path in sources.items()] or [
        '# ct = "/data/ct"'
    ]
    lines += _tables(Settings, "", "[{}]")
    lines += ["", "# A group of your own beside one per modality:", "# [groups.NAME]", *_fields(GroupSettings)]
    for found in survey.groups:
        lines += ["", f"# [groups.{found.group}]   # {found.series} series", f'# preset = "{found.preset}"']
    return "\n".join(lines) + "\n"


def _found(survey: Survey, costs: dict[str, Cost], free: int, looked: bool) -> list[str]:
    """What was found, as comments; looked: whether there was a source."""
    if looked and not survey.files:
        return ["# No file was found in the sources below: mend their paths, or put data there, before voxbook ingest."]
    if not survey.files:
        return ["# No source was looked at: voxbook init SOURCE -w WS does."]
    lines = [f"# Found in {survey.files:,} files ({size(survey.bytes)}); {size(free)} are free here:"]
    for found in survey.groups:
        facts = f"{found.series} series of {found.who}, {found.voxels / 1e6:,.1f} million voxels"
        lines.append(f"#   {found.group}: {facts}, {size(found.source_bytes)} at the source; preset {found.preset}")
        if cost := costs.get(found.group):
            lines.append(
                f"#     expected: volumes {size(cost.volume_bytes)}, codes at most {size(cost.code_bytes)}; "
                f"ingest {duration(cost.ingest_seconds)}, encode {duration(cost.encode_seconds)}"
            )
            lines.append(f"#     basis: {cost.basis}")
    lines += [f"#   refused: {code} {count}" for code, count in survey.refused.items()]
    lines += [f"#   suggestion: {text}" for found in survey.groups for text in found.suggestions()]
    return lines


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
        shown = _example(section, name) if default is None else default
        value = json.dumps(shown) if shown != {} else "{}"
        lines.append(f"# {field.description}")
        lines.append(f"# {name} = {value}" + ("   # an example; none by default" if default is None else ""))
    return lines


def _example(section: type[BaseModel], name: str) -> Any:
    """A value that a setting may have: the one of EXAMPLES, else the first that the setting takes."""
    tried = [EXAMPLES[name]] if name in EXAMPLES else []
    kinds = get_args(section.model_fields[name].annotation)
    tried += [choice for kind in kinds for choice in get_args(kind) if isinstance(choice, str)]  # of a Literal
    tried += [True] if bool in kinds else []
    for value in (*tried, 1, 0.5, [2, 2], [1, 8, 8], "name"):
        with contextlib.suppress(ValidationError):
            section.model_validate({name: value})
            return value
    return ""

"""voxbook.toml: settings read with their overrides, and one table changed with everything else left as it is."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from archive.errors import ConfigError, StoreError
from archive.settings import GroupSettings, Section, Settings

FILENAME = "voxbook.toml"


def load(root: Path, overrides: Iterable[str] = ()) -> Settings:
    """Settings of a workspace: voxbook.toml where there is one, then `KEY=VALUE` overrides.

    An override of gate.KEY or train.KEY holds for every group. Raises ConfigError UNKNOWN_KEY (naming the nearest
    key), BAD_VALUE.
    """
    path = root / FILENAME
    try:
        data = tomllib.loads(path.read_text()) if path.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("BAD_VALUE", f"{FILENAME} is not TOML: {error}", hint="mend the line named") from None
    for override in overrides:
        apply_override(data, override)
    return parse(data)


def parse(data: dict[str, Any]) -> Settings:
    """Validate a mapping of settings; raises ConfigError."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into a nested mapping; the value is read as TOML, else as a string."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError("BAD_USAGE", f"--set takes KEY=VALUE, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if text.strip().lower() in ("none", "null"):
        value = None
    *parents, last = key.strip().split(".")
    if parents in (["gate"], ["train"]):
        for group in data.get("groups", {}).values():
            group.get(parents[0], {}).pop(last, None)
    if last == "cluster" and not parents:
        data["cluster"] = value
        return
    table = data
    for parent in parents:
        inner = table.setdefault(parent, {})
        if isinstance(inner, str) and parent == "cluster":
            inner = table[parent] = {"address": inner}
        if not isinstance(inner, dict):
            raise ConfigError("BAD_USAGE", f"{parent} in --set {key} is a value, not a table")
        table = inner
    table[last] = value


def keys(model: type[Section] = Settings, prefix: str = "") -> list[str]:
    """Every dotted key, NAME standing for a group's or a source's name."""
    names = []
    for name, field in model.model_fields.items():
        path = prefix + name
        inner = field.annotation
        if name == "groups":
            names += [path, *keys(GroupSettings, f"{path}.NAME.")]
        elif isinstance(inner, type) and issubclass(inner, Section):
            names += [path, *keys(inner, f"{path}.")]
        else:
            names.append(path)
    return names


def put(root: Path, table: Sequence[str], values: Mapping[str, Any]) -> Path:
    """Set `values` under [table] of a workspace's voxbook.toml, made where it is not there; returns its path.

    table: keys from the top, ("groups", "ct", "train"). All or nothing: a reader sees the old file or the new one. The
    result is validated before it is written. Raises ConfigError UNKNOWN_KEY, BAD_VALUE (of the file as it would be),
    StoreError NOT_WRITABLE.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError
    from tomlkit.items import InlineTable

    path = (root / FILENAME).resolve()  # a link stays one: what it points at is replaced
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
        place: Any = document
        for depth, key in enumerate(table, 1):
            if key not in place:
                inline = isinstance(place, InlineTable)  # which may hold only its like
                place[key] = tomlkit.inline_table() if inline else tomlkit.table(is_super_table=depth < len(table))
            place = place[key]
        for key, value in values.items():
            place[key] = value
        text = tomlkit.dumps(document)
        parse(tomllib.loads(text))
    except (TOMLKitError, tomllib.TOMLDecodeError, TypeError) as error:
        raise ConfigError(
            "BAD_VALUE", f"{FILENAME} cannot take [{'.'.join(table)}]: {error}", hint="write it there by hand"
        ) from None
    _replace(path, text)
    return path


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            if path.exists():
                draft.chmod(path.stat().st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError("NOT_WRITABLE", f"{FILENAME} could not be written ({type(error).__name__})") from error


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return ConfigError("BAD_VALUE", f"{where} = {first.get('input')!r}: {first['msg']}", key=where)
    known = keys()
    generic = ".".join(["groups", "NAME", *where.split(".")[2:]]) if where.startswith("groups.") else where
    near = difflib.get_close_matches(generic, known, n=1, cutoff=0.0)
    same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == where.rsplit(".", 1)[-1]]
    nearest = (same_leaf or near)[0]
    return ConfigError("UNKNOWN_KEY", f"no setting {where!r}", hint=f"the nearest key is {nearest!r}", key=where)

"""Write settings into voxbook.toml: one table changed, everything else and every comment left as it is."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archive.errors import ConfigError, StoreError
from archive.settings import FILENAME, parse


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

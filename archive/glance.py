"""A look into the catalog for people in a hurry: the few questions of `voxbook inspect`, asked by the standard library.

SQLAlchemy takes longer to import than all of them take to answer. Column types are those that its tables declared in the
file; `Glance` answers as `archive.catalog.Catalog` does, which a test holds, and writes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol

from archive.catalog_schema import (
    SCHEMA,
    CertificateRow,
    EncodingRow,
    ModelRow,
    QuarantineRow,
    Row,
    RunRow,
    SeriesRow,
    damaged,
    model_of,
    row_of,
    series_of,
)
from archive.errors import TransientError
from archive.mounts import on_network
from archive.workspace import Workspace

sqlite3.register_converter("JSON", json.loads)
sqlite3.register_converter("BOOLEAN", lambda digit: digit == b"1")

CURRENT = "JOIN series ON series.codes_version = {0}.version"
RENAMED = {"grp": "group"}  # GROUP is a word of SQL's own


class Answers(Protocol):
    """What `inspect` asks of a catalog; `archive.catalog_queries` says what each gives."""

    def runs(self) -> list[RunRow]: ...
    def series(self) -> list[SeriesRow]: ...
    def one(self, name: str) -> SeriesRow: ...
    def models(self) -> list[ModelRow]: ...
    def model(self, name: str) -> ModelRow: ...
    def certificates(self, series: str | None = None) -> list[CertificateRow]: ...
    def encodings(self, series_id: str | None = None, *, current_only: bool = False) -> list[EncodingRow]: ...
    def quarantine(self) -> list[QuarantineRow]: ...


def glance(workspace: Workspace) -> Answers:
    """A Glance where one can answer; the catalog for PostgreSQL, and where a file is to be made, upgraded or refused."""
    path = workspace.root / "catalog.sqlite"
    if workspace.settings.database is None and path.is_file() and not on_network(path.parent):
        found = Glance(path)
        if found.bound_to(workspace.pseudonyms.fingerprint):
            return found
    return workspace.catalog


class Glance:
    """One SQLite catalog, opened anew for every question."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def bound_to(self, fingerprint: str) -> bool:
        """Whether it is a whole catalog of this version and of that pseudonym key."""
        try:
            known = {row["key"]: row["value"] for row in self._ask("SELECT key, value FROM meta")}
        except sqlite3.Error:
            return False
        return (known.get("schema"), known.get("key_fingerprint")) == (SCHEMA, fingerprint)

    def runs(self) -> list[RunRow]:
        """Every run, oldest first."""
        return self._rows(RunRow, "SELECT * FROM runs ORDER BY started_at, run")

    def series(self) -> list[SeriesRow]:
        """Series in order of arrival, but those removed."""
        return self._rows(SeriesRow, "SELECT * FROM series WHERE state != 'removed' ORDER BY first_seen, series")

    def one(self, name: str) -> SeriesRow:
        """The series of that pseudonym or unique beginning. Raises StoreError NOT_FOUND."""
        query = "SELECT * FROM series WHERE series LIKE ? ESCAPE '/' ORDER BY series LIMIT 2"
        return series_of(name, self._rows(SeriesRow, query, beginning(name)) if name else [])

    def models(self) -> list[ModelRow]:
        """Models, oldest first."""
        return self._rows(ModelRow, "SELECT * FROM models ORDER BY created_at, model")

    def model(self, name: str) -> ModelRow:
        """The model of that id or unique beginning. Raises StoreError NOT_FOUND."""
        query = "SELECT * FROM models WHERE model LIKE ? ESCAPE '/' LIMIT 2"
        return model_of(self._rows(ModelRow, query, beginning(name)) if name else [])

    def certificates(self, series: str | None = None) -> list[CertificateRow]:
        """Certificates of the current codes of all series, or of one."""
        query = f"SELECT certificates.* FROM certificates {CURRENT.format('certificates')}"
        ordered = "ORDER BY certificates.series, certificates.created_at"
        if series is None:
            return self._rows(CertificateRow, f"{query} {ordered}")
        return self._rows(CertificateRow, f"{query} WHERE certificates.series = ? {ordered}", series)

    def encodings(self, series_id: str | None = None, *, current_only: bool = False) -> list[EncodingRow]:
        """Versions of codes, of one series or of all, oldest first."""
        query = f"SELECT encodings.* FROM encodings {CURRENT.format('encodings') if current_only else ''}"
        ordered = "ORDER BY encodings.created_at, encodings.version"
        if series_id is None:
            return self._rows(EncodingRow, f"{query} {ordered}")
        return self._rows(EncodingRow, f"{query} WHERE encodings.series = ? {ordered}", series_id)

    def quarantine(self) -> list[QuarantineRow]:
        """What is refused, of all sources."""
        return self._rows(QuarantineRow, "SELECT * FROM quarantine ORDER BY source, code, key")

    def _rows(self, kind: type[Row], query: str, *values: str) -> list[Row]:
        try:
            found = self._ask(query, *values)
        except sqlite3.OperationalError as error:
            raise TransientError("NOT_WRITABLE", "the database is busy or not reachable") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise damaged(self._path.name) from error
        return [row_of(kind, {RENAMED.get(name, name): row[name] for name in row.keys()}) for row in found]  # noqa: SIM118

    def _ask(self, query: str, *values: str) -> list[sqlite3.Row]:
        where = f"{self._path.as_uri()}?mode=rw"  # a reader, too, may have to recover what a dead writer left
        typed = sqlite3.PARSE_DECLTYPES
        with closing(sqlite3.connect(where, timeout=30, detect_types=typed, uri=True)) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()


def beginning(name: str) -> str:
    """The pattern of LIKE for what begins like that."""
    return "".join(f"/{sign}" if sign in "/%_" else sign for sign in name) + "%"

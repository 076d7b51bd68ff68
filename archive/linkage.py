"""The linkage: originals and their pseudonyms. Mode 0600, never exported, read only for the person on call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import JSON, URL, Column, Connection, MetaData, Table, Text, delete, select

from archive.catalog_engine import open_database, prepare, reading, upsert, wipe_log, writing
from archive.catalog_queries import parts
from archive.errors import StoreError

SCHEMA = "linkage-1"

tables = MetaData()
meta = Table("linkage_meta", tables, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))
sources = Table(
    "linkage_sources",
    tables,
    Column("alias", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("exclude", JSON, nullable=False),
)
files = Table(
    "linkage_files",
    tables,
    Column("source", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("entry", JSON, nullable=False),
)
series = Table(
    "linkage_series",
    tables,
    Column("series", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("identity", JSON, nullable=False),
    Column("first_identity", Text, nullable=False, index=True),
    Column("patient", Text, nullable=False, index=True),
    Column("patient_identity", JSON, nullable=False),
    Column("files", JSON, nullable=False),
)


class Plan(Protocol):
    """What is kept of an archive.series.SeriesPlan."""

    @property
    def series(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def identity(self) -> tuple[str, ...]: ...
    @property
    def patient_identity(self) -> tuple[str, ...]: ...
    @property
    def files(self) -> tuple[str, ...]: ...


class Linkage:
    """A private database beside the catalog; every method is one transaction and may be repeated."""

    def __init__(self, url: str | URL) -> None:
        """Open, and make the tables in an empty database; raises as archive.catalog.Catalog does."""
        self.engine = open_database(url)
        prepare(self.engine, tables, meta, SCHEMA)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def register(self, alias: str, path: str, exclude: Iterable[str] | None = None) -> None:
        """Say where a source lies and which globs of it are left out; None: those it had."""
        with writing(self.engine) as connection:
            known = connection.execute(select(sources.c.exclude).where(sources.c.alias == alias)).scalar_one_or_none()
            globs = list(exclude) if exclude is not None else known or []
            upsert(connection, sources, [{"alias": alias, "path": str(path), "exclude": globs}])

    def excluded(self, alias: str) -> list[str]:
        """The globs that are left out of a source: what was excluded once stays so in every later run."""
        with reading(self.engine) as connection:
            return (
                connection.execute(select(sources.c.exclude).where(sources.c.alias == alias)).scalar_one_or_none() or []
            )

    def path_of(self, alias: str) -> str:
        """Where a source lies. Raises StoreError NOT_FOUND."""
        with reading(self.engine) as connection:
            found = connection.execute(select(sources.c.path).where(sources.c.alias == alias)).scalar_one_or_none()
        if found is None:
            raise StoreError("NOT_FOUND", "no source has this alias")
        return found

    def entries(self, alias: str) -> dict[str, dict[str, Any]]:
        """What the last scan of a source saw, FileEntry dicts by relative path."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(files.c.path, files.c.entry).where(files.c.source == alias))
            return {row.path: row.entry for row in rows}

    def save_entries(self, alias: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Make these the entries of a source: new and changed ones written, those gone dropped."""
        with writing(self.engine) as connection:
            rows = connection.execute(select(files.c.path, files.c.entry).where(files.c.source == alias))
            known = {row.path: row.entry for row in rows}
            for part in parts(path for path in known if path not in entries):
                connection.execute(delete(files).where(files.c.source == alias, files.c.path.in_(part)))
            changed = [
                {"source": alias, "path": path, "entry": dict(entry)}
                for path, entry in entries.items()
                if known.get(path) != entry
            ]
            upsert(connection, files, changed)

    def save_series(self, plans: Iterable[Plan], source: str = "") -> None:
        """Keep who series are, before the catalog knows them."""
        rows = {
            plan.series: {
                "series": plan.series,
                "source": source,
                "identity": list(plan.identity),
                "first_identity": plan.identity[0] if plan.identity else "",
                "patient": plan.patient,
                "patient_identity": list(plan.patient_identity),
                "files": list(plan.files),
            }
            for plan in plans
        }
        with writing(self.engine) as connection:
            upsert(connection, series, list(rows.values()))

    def find_uid(self, uid: str) -> list[str]:
        """Pseudonyms of the series of a SeriesInstanceUID; several where it was split."""
        query = select(series.c.series).where(series.c.first_identity == uid).distinct().order_by(series.c.series)
        with reading(self.engine) as connection:
            return list(connection.execute(query).scalars())

    def reveal(self, name: str) -> dict[str, Any]:
        """The originals behind a series, for a person's eyes: sources with paths, SeriesInstanceUID (0020,000E) and
        split values, patient, files. Raises StoreError NOT_FOUND."""
        query = select(series, sources.c.path.label("root")).outerjoin(sources, sources.c.alias == series.c.source)
        with reading(self.engine) as connection:
            found = connection.execute(query.where(series.c.series == name).order_by(series.c.source)).all()
        if not found:
            raise StoreError("NOT_FOUND", "the linkage does not know this series")
        return {
            "series": name,
            "patient": found[0].patient,
            "identity": list(found[0].identity),
            "patient_identity": list(found[0].patient_identity),
            "sources": {row.source: row.root for row in found},
            "files": {row.source: list(row.files) for row in found},
        }

    def forget(self, *, series_id: str | None = None, patient: str | None = None) -> list[str]:
        """Erase a series or all of a patient, with the entries of their files; returns the series erased."""
        if (series_id is None) == (patient is None):
            raise ValueError("forget takes a series or a patient")
        where = series.c.series == series_id if series_id is not None else series.c.patient == patient
        with writing(self.engine) as connection:
            rows = connection.execute(select(series).where(where)).all()
            for row in rows:
                for part in parts(row.files):
                    connection.execute(delete(files).where(files.c.source == row.source, files.c.path.in_(part)))
            self._forget_headers(connection, rows, whole_patient=patient is not None)
            connection.execute(delete(series).where(where))
        wipe_log(self.engine)
        return sorted({row.series for row in rows})

    @staticmethod
    def _forget_headers(connection: Connection, rows: Sequence[Any], whole_patient: bool) -> None:
        """Entries of folded and refused files, which no series lists but whose headers name it or its patient."""
        uids = {row.first_identity for row in rows} - {""}
        people = {row.patient_identity[0] for row in rows if row.patient_identity} if whole_patient else set()
        for source in {row.source for row in rows}:
            entries = connection.execute(select(files.c.path, files.c.entry).where(files.c.source == source))
            named = [
                found.path
                for found in entries
                if (header := found.entry.get("header") or {}).get("series") in uids or header.get("patient") in people
            ]
            for part in parts(named):
                connection.execute(delete(files).where(files.c.source == source, files.c.path.in_(part)))

"""The linkage: originals and their pseudonyms. Mode 0600, never exported, read only for the person on call."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sqlalchemy import (
    URL,
    Connection,
    delete,
    select,
    text,
)

from archive.catalog_engine import open_database, prepare, reading, upsert, wipe_log, writing
from archive.catalog_queries import parts
from archive.commit import fault_point
from archive.errors import StoreError
from archive.linkage_tables import files, meta, outcomes, series, sources, tables
from archive.plans import Filed, Finding, Stamp

SCHEMA = "linkage-2"
OLD_SCHEMA = "linkage-1"  # kept each entry as JSON; its entries are read from the files again


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


@dataclass(frozen=True)
class PlannedSeries:
    """A series that a group of files gave. refused: why it could not be read, where trying again would be in vain."""

    series: str
    fingerprint: str
    refused: Finding | None = None


@dataclass(frozen=True)
class GroupOutcome:
    """What became of one group of files: series, and what was refused before any was read."""

    grouped: str
    series: tuple[PlannedSeries, ...]
    findings: tuple[Finding, ...] = ()

    def as_json(self) -> str:
        """`from_json` reads it back; findings without their paths, which are the group's."""
        rows = [[one.series, one.fingerprint, one.refused and _plain(one.refused)] for one in self.series]
        return json.dumps([rows, [_plain(finding) for finding in self.findings]], separators=(",", ":"))

    @classmethod
    def from_json(cls, grouped: str, data: str) -> GroupOutcome:
        """Read what `as_json` wrote."""
        rows, findings = json.loads(data)
        return cls(
            grouped,
            tuple(PlannedSeries(name, mark, _finding(refused) if refused else None) for name, mark, refused in rows),
            tuple(_finding(finding) for finding in findings),
        )


def _plain(finding: Finding) -> dict[str, Any]:
    fields = asdict(finding)
    del fields["paths"]
    return fields


def _finding(fields: dict[str, Any]) -> Finding:
    return Finding(**fields)


class Linkage:
    """A private database beside the catalog; every method is one transaction and may be repeated."""

    def __init__(self, url: str | URL) -> None:
        """Open, and make the tables in an empty database; raises as archive.catalog.Catalog does."""
        self.engine = open_database(url)
        _upgrade(self.engine)
        prepare(self.engine, tables, meta, SCHEMA)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def register(self, alias: str, path: str, exclude: Iterable[str] | None = None) -> None:
        """Say where a source lies and which globs of it are left out; None: those it had."""
        with writing(self.engine) as connection:
            row = connection.execute(select(sources).where(sources.c.alias == alias)).first()
            globs = list(exclude) if exclude is not None else row.exclude if row else []
            if row is None or row.path != str(path):
                origin = _origin_at(connection, alias, str(path))
                upsert(connection, meta, [{"key": f"origin {alias}", "value": origin}])
            upsert(connection, sources, [{"alias": alias, "path": str(path), "exclude": globs}])

    def origin(self, alias: str) -> str:
        """What files without identifiers are named by beside their paths: the alias that their folder had first.

        So that a folder under a new alias does not come in a second time.
        """
        with reading(self.engine) as connection:
            return _origin(connection, alias)

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
            raise StoreError(
                "NOT_FOUND",
                "the linkage does not know where this source lies",
                hint="name its folder again: voxbook ingest FOLDER -w WS",
            )
        return found

    def entries(self, alias: str) -> dict[str, dict[str, Any]]:
        """What the last scan of a source saw, FileEntry dicts by relative path; all headers at once."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(*_FILED).where(files.c.source == alias))
            return {row.path: Filed(*row).entry().as_dict() for row in rows}

    def stamps(self, alias: str) -> dict[str, Stamp]:
        """What the last scan of a source saw, without headers."""
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(files.c.path, *(files.c[name] for name in Stamp._fields)).where(files.c.source == alias)
            )
            return {path: Stamp(*rest) for path, *rest in rows}

    def grouped(self, alias: str, groups: Iterable[str]) -> dict[str, list[Filed]]:
        """The entries of these groups with their headers, by path."""
        found: dict[str, list[Filed]] = {}
        with reading(self.engine) as connection:
            for part in parts(groups):
                where = (files.c.source == alias) & files.c.grouped.in_(part)
                for row in connection.execute(select(*_FILED).where(where).order_by(files.c.path)):
                    entry = Filed(*row)
                    found.setdefault(entry.grouped, []).append(entry)
        return found

    def save_entries(self, alias: str, entries: Iterable[Filed], gone: Iterable[str] = ()) -> None:
        """Keep new and changed entries and drop those gone; what was made of their groups is forgotten with them."""
        fresh = list(entries)
        paths = [*gone, *(entry.path for entry in fresh)]
        with writing(self.engine) as connection:
            groups = {entry.grouped for entry in fresh}
            for part in parts(paths):
                where = (files.c.source == alias) & files.c.path.in_(part)
                groups.update(connection.execute(select(files.c.grouped).where(where)).scalars())
                connection.execute(delete(files).where(where))
            for part in parts(groups - {""}):
                connection.execute(delete(outcomes).where(outcomes.c.source == alias, outcomes.c.grouped.in_(part)))
            upsert(connection, files, [{"source": alias, **entry._asdict()} for entry in fresh])
        fault_point("linkage.entries")

    def outcomes(self, alias: str, settings: str) -> dict[str, GroupOutcome]:
        """What became of the groups of a source under these settings (a digest of them); others are left out."""
        where = (outcomes.c.source == alias) & (outcomes.c.settings == settings)
        with reading(self.engine) as connection:
            rows = connection.execute(select(outcomes.c.grouped, outcomes.c.outcome).where(where))
            return {row.grouped: GroupOutcome.from_json(row.grouped, row.outcome) for row in rows}

    def save_outcomes(self, alias: str, settings: str, found: Iterable[GroupOutcome]) -> None:
        """Keep what became of groups, so that they need not be planned again while their files do not change."""
        rows = [
            {"source": alias, "grouped": one.grouped, "settings": settings, "outcome": one.as_json()} for one in found
        ]
        with writing(self.engine) as connection:
            upsert(connection, outcomes, rows)
        fault_point("linkage.outcomes")

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
        fault_point("linkage.series")

    def find_uid(self, uid: str) -> list[str]:
        """Pseudonyms of the series of a SeriesInstanceUID; several where it was split."""
        query = select(series.c.series).where(series.c.first_identity == uid).distinct().order_by(series.c.series)
        with reading(self.engine) as connection:
            return list(connection.execute(query).scalars())

    def splits(self, uid: str) -> list[tuple[str, ...]]:
        """What a SeriesInstanceUID was split into so far, in any source: the values behind each of its series."""
        query = select(series.c.identity).where(series.c.first_identity == uid)
        with reading(self.engine) as connection:
            return sorted({tuple(identity[1:]) for identity in connection.execute(query).scalars()})

    def reveal(self, name: str) -> dict[str, Any]:
        """The originals behind a series, for a person's eyes: sources with paths, SeriesInstanceUID (0020,000E) and
        split values, patient, files. Raises StoreError NOT_FOUND."""
        query = select(series, sources.c.path.label("root")).outerjoin(sources, sources.c.alias == series.c.source)
        with reading(self.engine) as connection:
            found = connection.execute(query.where(series.c.series == name).order_by(series.c.source)).all()
        if not found:
            raise StoreError("NOT_FOUND", "the linkage does not know this series", hint="ingest its source again")
        return {
            "series": name,
            "patient": found[0].patient,
            "identity": list(found[0].identity),
            "patient_identity": list(found[0].patient_identity),
            "sources": {row.source: row.root for row in found},
            "files": {row.source: list(row.files) for row in found},
        }

    def refused(self, code: str) -> list[tuple[str, str]]:
        """(alias of the source, relative path) of every file that was refused by a reason code, for a person's eyes."""
        with reading(self.engine) as connection:
            alone = select(files.c.source, files.c.path).where(files.c.kind == "refused", files.c.note == code)
            found = {(row.source, row.path) for row in connection.execute(alone)}
            whole: dict[str, set[str]] = {}
            for row in connection.execute(select(outcomes).where(outcomes.c.outcome.contains(f'"{code}"'))):
                outcome = GroupOutcome.from_json(row.grouped, row.outcome)
                ends = [*outcome.findings, *(one.refused for one in outcome.series if one.refused)]
                if any(finding.code == code for finding in ends):
                    whole.setdefault(row.source, set()).add(row.grouped)
            for alias, groups in whole.items():
                for part in parts(groups):
                    where = (files.c.source == alias) & files.c.grouped.in_(part)
                    found.update(
                        (alias, path) for path in connection.execute(select(files.c.path).where(where)).scalars()
                    )
        return sorted(found)

    def forget(self, *, series_id: str | None = None, patient: str | None = None) -> list[str]:
        """Erase a series or all of a patient, with the entries of their files; returns the series erased."""
        if (series_id is None) == (patient is None):
            raise ValueError("forget takes a series or a patient")
        where = series.c.series == series_id if series_id is not None else series.c.patient == patient
        with writing(self.engine) as connection:
            rows = connection.execute(select(series).where(where)).all()
            uids = {row.first_identity for row in rows} - {""}
            people = {row.patient_identity[0] for row in rows if row.patient_identity} if patient is not None else set()
            for row in rows:
                for part in parts(row.files):
                    _drop(connection, files.c.source == row.source, files.c.path.in_(part))
            # Entries of folded and refused files, which no series lists but whose headers name it or its patient.
            for part in parts(uids):
                _drop(connection, files.c.series.in_(part))
            for part in parts(people - {""}):
                _drop(connection, files.c.patient.in_(part))
            connection.execute(delete(series).where(where))
        wipe_log(self.engine)
        return sorted({row.series for row in rows})


def _origin(connection: Connection, alias: str) -> str:
    found = connection.execute(select(meta.c.value).where(meta.c.key == f"origin {alias}")).scalar_one_or_none()
    return found or alias


def _origin_at(connection: Connection, alias: str, path: str) -> str:
    """The origin of an alias that now stands for this path: that of another alias there; never that of another folder."""
    others = connection.execute(select(sources).where(sources.c.alias != alias).order_by(sources.c.alias)).all()
    taken = {_origin(connection, other.alias): other.path for other in others}
    here = sorted(origin for origin, place in taken.items() if place == path)
    own = _origin(connection, alias)
    if own in here or (not here and own not in taken):
        return own
    return here[0] if here else f"{alias} {path}"


_FILED = tuple(files.c[name] for name in Filed._fields)


def _drop(connection: Connection, *where: Any) -> None:
    """Entries, and what was made of the groups that they were in."""
    groups = set(connection.execute(select(files.c.grouped).where(*where)).scalars()) - {""}
    for part in parts(groups):
        connection.execute(delete(outcomes).where(outcomes.c.grouped.in_(part)))
    connection.execute(delete(files).where(*where))


def _upgrade(engine: Any) -> None:
    """Bring a linkage of OLD_SCHEMA to this one; only its entries go, and those are read from the files again."""
    with reading(engine) as connection:
        known = (
            connection.dialect.has_table(connection, meta.name)
            and connection.execute(
                select(meta.c.value).where(meta.c.key == "schema", meta.c.value == OLD_SCHEMA)
            ).first()
        )
    if known:
        with writing(engine) as connection:
            connection.execute(text("DROP TABLE IF EXISTS linkage_files"))
            tables.create_all(connection)
            connection.execute(meta.update().where(meta.c.key == "schema").values(value=SCHEMA))

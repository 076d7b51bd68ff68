"""What the catalog answers; every method reads one state of the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, func, select

from archive.catalog_conditions import REFUSED, Wanted, among, lacks, refused
from archive.catalog_engine import reading
from archive.catalog_schema import (
    STATES,
    CertificateRow,
    EncodingRow,
    ModelRow,
    QuarantineRow,
    Row,
    RunRow,
    SeriesRow,
    SourceRow,
    VersionRow,
    model_of,
    row_of,
    series_of,
)
from archive.catalog_tables import (
    certificates,
    encodings,
    models,
    quarantine,
    runs,
    series_table,
    sightings,
    sources,
    versions,
)
from archive.errors import StoreError

PART = 500  # values of one IN (...); SQLite and drivers have limits
PAGE = 2048  # series that are read at a time where there may be millions


class CatalogQueries:
    """The reading half of `archive.catalog.Catalog`."""

    engine: Engine

    def sources(self) -> list[SourceRow]:
        """Registered sources by alias."""
        return self._rows(SourceRow, select(sources).order_by(sources.c.alias))

    def series(
        self, ids: Iterable[str] = (), *, group: str | None = None, states: Iterable[str] | None = None
    ) -> list[SeriesRow]:
        """Series in order of arrival, all or those that meet every filter; `removed` ones only where asked for.

        `ids` may be unique beginnings of pseudonyms; StoreError NOT_FOUND for one that is not.
        """
        query = select(series_table).order_by(series_table.c.first_seen, series_table.c.series)
        if group is not None:
            query = query.where(series_table.c.group == group)
        wanted_states = list(states) if states is not None else [state for state in STATES if state != "removed"]
        query = query.where(series_table.c.state.in_(wanted_states))
        ids = list(ids)
        if not ids:
            return self._rows(SeriesRow, query)
        with reading(self.engine) as connection:
            wanted = _whole(connection, ids)
            found = [
                row
                for part in parts(wanted)
                for row in select_rows(connection, SeriesRow, query.where(series_table.c.series.in_(part)))
            ]
        return sorted(found, key=lambda row: (row.first_seen, row.series))

    def one(self, name: str) -> SeriesRow:
        """The series of that pseudonym or unique beginning. Raises StoreError NOT_FOUND."""
        with reading(self.engine) as connection:
            return _one(connection, name)

    def version(self, version: str) -> VersionRow:
        """One version of a volume. Raises StoreError NOT_FOUND."""
        return self._single(VersionRow, select(versions).where(versions.c.version == version))

    def volumes_stored(self, *, superseded: bool = False) -> list[VersionRow]:
        """The current version of every series, damaged ones too, the longest unchecked first.

        superseded: also those that no series points at; of two as long unchecked the current one first.
        """
        return self._rows(VersionRow, _stored(versions, series_table.c.volume_version, superseded))

    def codes_stored(self, *, superseded: bool = False) -> list[EncodingRow]:
        """The current codes of every series that has some, damaged ones too, the longest unchecked first.

        superseded: also those that no series points at, which may become current again; the current ones before them.
        """
        return self._rows(EncodingRow, _stored(encodings, series_table.c.codes_version, superseded))

    def standing(self, names: Iterable[str]) -> dict[str, bool]:
        """Of these versions of either tier those that have a row, and whether a series points at it."""
        found: dict[str, bool] = {}
        with reading(self.engine) as connection:
            for part in parts(names):
                for table, pointer in (
                    (versions, series_table.c.volume_version), (encodings, series_table.c.codes_version)
                ):  # fmt: skip
                    query = select(table.c.version, pointer.label("pointer"))
                    query = query.outerjoin(series_table, series_table.c.series == table.c.series)
                    rows = connection.execute(query.where(table.c.version.in_(part)))
                    found.update((row.version, row.version == row.pointer) for row in rows)
        return found

    def encoding(self, version: str) -> EncodingRow:
        """One version of codes. Raises StoreError NOT_FOUND."""
        return self._single(EncodingRow, select(encodings).where(encodings.c.version == version))

    def encodings(self, series_id: str | None = None, *, current_only: bool = False) -> list[EncodingRow]:
        """Versions of codes, of one series or of all, damaged ones too, oldest first."""
        query = select(encodings).order_by(encodings.c.created_at, encodings.c.version)
        if current_only:
            query = query.join(series_table, series_table.c.codes_version == encodings.c.version)
        if series_id is not None:
            query = query.where(encodings.c.series == series_id)
        return self._rows(EncodingRow, query)

    def manifest_digests(self, names: Iterable[str]) -> dict[str, str]:
        """The manifest's digest of versions of volumes; of those only that there are."""
        found: dict[str, str] = {}
        with reading(self.engine) as connection:
            for part in parts(names):
                query = select(versions.c.version, versions.c.manifest_digest).where(versions.c.version.in_(part))
                found.update((row.version, row.manifest_digest) for row in connection.execute(query))
        return found

    def to_encode(
        self, wanted: Wanted, names: Iterable[str] | None = None, *, after: str = "", limit: int | None = None
    ) -> list[SeriesRow]:
        """Series of a group, or those named of it, that lack the codes that are wanted; in order of pseudonyms.

        after, limit: the next so many behind that pseudonym, for a caller that takes them page by page.
        """
        query = select(series_table).where(lacks(wanted), series_table.c.series > after)
        query = query.order_by(series_table.c.series).limit(limit)
        if names is None:
            return self._rows(SeriesRow, query)
        found: list[SeriesRow] = []
        for part in parts(sorted(name for name in names if name > after)):
            found += self._rows(SeriesRow, query.where(among(part)))
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    def left_to_encode(self, wanted: Wanted, names: Iterable[str] | None = None) -> tuple[int, int]:
        """How many series `to_encode` would give, and their voxels."""
        query = select(func.count(), func.coalesce(func.sum(series_table.c.voxels), 0)).where(lacks(wanted))
        queries = [query] if names is None else [query.where(among(part)) for part in parts(names)]
        with reading(self.engine) as connection:
            found = [connection.execute(one).one() for one in queries]
        return sum(int(row[0]) for row in found), sum(int(row[1]) for row in found)

    def count_refused(self, wanted: Wanted) -> tuple[int, int]:
        """Series that were tried for these very codes and refused; and refusals of the group for any codes."""
        these = select(func.count()).select_from(series_table)
        these = these.where(series_table.c.group == wanted.group, series_table.c.state != "removed", refused(wanted))
        every = select(func.count()).where(
            quarantine.c.group == wanted.group, quarantine.c.source.startswith(REFUSED, autoescape=True)
        )
        with reading(self.engine) as connection:
            return connection.execute(these).scalar_one(), connection.execute(every).scalar_one()

    def pages(self, group: str | None = None, limit: int = PAGE) -> Iterator[list[SeriesRow]]:
        """All series of a group, or of all, `limit` at a time in order of pseudonyms: never all of them in memory."""
        query = select(series_table).where(series_table.c.state != "removed").order_by(series_table.c.series)
        if group is not None:
            query = query.where(series_table.c.group == group)
        last = ""
        while rows := self._rows(SeriesRow, query.where(series_table.c.series > last).limit(limit)):
            yield rows
            last = rows[-1].series

    def count_series(
        self, names: Iterable[str] | None = None, *, group: str | None = None, state: str | None = None
    ) -> dict[str, int]:
        """How many series each group has; of those named only, and of that group and state where they are given."""
        query = select(series_table.c.group, func.count()).group_by(series_table.c.group)
        query = query.where(series_table.c.state != "removed" if state is None else series_table.c.state == state)
        if group is not None:
            query = query.where(series_table.c.group == group)
        queries = [query] if names is None else [query.where(among(part)) for part in parts(names)]
        found: Counter[str] = Counter()
        with reading(self.engine) as connection:
            for one in queries:
                found.update({name: int(count) for name, count in connection.execute(one)})
        return dict(sorted(found.items()))

    def certificates_of(self, names: Iterable[str]) -> dict[str, CertificateRow]:
        """The certificate of the current codes of each series named that has one."""
        query = select(certificates).join(series_table, series_table.c.codes_version == certificates.c.version)
        found = [row for part in parts(names) for row in self._rows(CertificateRow, query.where(among(part)))]
        return {row.series: row for row in found}

    def certificates(self, series: str | None = None, *, current_only: bool = True) -> list[CertificateRow]:
        """Certificates of all series or one, expired ones too; current_only: of the codes that series point to."""
        query = select(certificates).order_by(certificates.c.series, certificates.c.created_at)
        if series is not None:
            query = query.where(certificates.c.series == series)
        if current_only:
            query = query.join(series_table, series_table.c.codes_version == certificates.c.version)
        return self._rows(CertificateRow, query)

    def worst_certificates(self, limit: int) -> list[CertificateRow]:
        """Certificates of current codes that passed no gate, then those of lowest PSNR; at most `limit`."""
        query = select(certificates).join(series_table, series_table.c.codes_version == certificates.c.version)
        query = query.order_by(certificates.c.passed, certificates.c.psnr.is_(None), certificates.c.psnr)
        return self._rows(CertificateRow, query.limit(limit))

    def models(self, group: str | None = None) -> list[ModelRow]:
        """Models, oldest first."""
        query = select(models).order_by(models.c.created_at, models.c.model)
        return self._rows(ModelRow, query if group is None else query.where(models.c.group == group))

    def model(self, name: str) -> ModelRow:
        """The model of that id or unique beginning. Raises StoreError NOT_FOUND."""
        query = select(models).where(models.c.model.startswith(name, autoescape=True)).limit(2)
        return model_of(self._rows(ModelRow, query) if name else [])

    def current_model(self, group: str) -> ModelRow | None:
        """The model that `encode` uses for a group; None where none is trained."""
        found = self._rows(ModelRow, select(models).where(models.c.group == group, models.c.current.is_(True)))
        return found[0] if found else None

    def quarantine(self, source: str | None = None) -> list[QuarantineRow]:
        """What is refused, of one source or of all."""
        query = select(quarantine).order_by(quarantine.c.source, quarantine.c.code, quarantine.c.key)
        return self._rows(QuarantineRow, query if source is None else query.where(quarantine.c.source == source))

    def runs(self) -> list[RunRow]:
        """Every run, oldest first."""
        return self._rows(RunRow, select(runs).order_by(runs.c.started_at, runs.c.run))

    def known_fingerprints(self, source: str) -> dict[str, str]:
        """Per series the fingerprint that this source's files had when they were last read; not of damaged volumes.

        Two sources may hold one series with different files: the one read last counts, and the other, while its files
        stay as they are, does not come again and turn every night into a new version.
        """
        query = (
            select(sightings.c.series, sightings.c.fingerprint)
            .join(series_table, series_table.c.series == sightings.c.series)
            .join(versions, versions.c.version == series_table.c.volume_version)
            .where(sightings.c.source == source, versions.c.damage == "")
        )
        with reading(self.engine) as connection:
            return {row.series: row.fingerprint for row in connection.execute(query)}

    def known_digests(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Per series the content digest of its current, undamaged version: equal content need not be written again."""
        query = (
            select(series_table.c.series, versions.c.content_digest)
            .join(versions, versions.c.version == series_table.c.volume_version)
            .where(versions.c.damage == "")
        )
        with reading(self.engine) as connection:
            found = {row.series: row.content_digest for row in connection.execute(query)}
        return found if names is None else {name: found[name] for name in names if name in found}

    def referenced(self, tier: str) -> set[tuple[str, str]]:
        """(series, version) of every version of a tier, "volume" or "codes", that has a row."""
        return {(series, version) for found, series, version in self.referenced_versions() if found == tier}

    def referenced_versions(self) -> set[tuple[str, str, str]]:
        """(tier, series, version) of every version that has a row, of one state of the catalog."""
        with reading(self.engine) as connection:
            return {
                (tier, row.series, row.version)
                for tier, table in (("volume", versions), ("codes", encodings))
                for row in connection.execute(select(table.c.series, table.c.version))
            }

    def current_versions(self) -> set[tuple[str, str, str]]:
        """(tier, series, version) of what series point at."""
        pointers = (("volume", series_table.c.volume_version), ("codes", series_table.c.codes_version))
        with reading(self.engine) as connection:
            return {
                (tier, row[0], row[1])
                for tier, pointer in pointers
                for row in connection.execute(select(series_table.c.series, pointer).where(pointer.is_not(None)))
            }

    def _rows(self, kind: type[Row], query: Select[Any]) -> list[Row]:
        with reading(self.engine) as connection:
            return select_rows(connection, kind, query)

    def _single(self, kind: type[Row], query: Select[Any]) -> Row:
        found = self._rows(kind, query)
        if not found:
            raise StoreError("NOT_FOUND", "no such version")
        return found[0]


def _whole(connection: Connection, names: list[str]) -> list[str]:
    """Pseudonyms from unique beginnings; those that are whole are found hundreds at a time."""
    known: set[str] = set()
    for part in parts(names):
        known.update(connection.execute(select(series_table.c.series).where(series_table.c.series.in_(part))).scalars())
    return list(dict.fromkeys(name if name in known else _one(connection, name).series for name in names))


def _one(connection: Connection, name: str) -> SeriesRow:
    query = select(series_table).where(series_table.c.series.startswith(name, autoescape=True))
    found = select_rows(connection, SeriesRow, query.order_by(series_table.c.series).limit(2)) if name else []
    return series_of(name, found)


def select_rows(connection: Connection, kind: type[Row], query: Select[Any]) -> list[Row]:
    """The result of a query over one table as dataclasses."""
    return [row_of(kind, found) for found in connection.execute(query).mappings()]


def select_one(connection: Connection, kind: type[Row], table: Table, where: Any) -> Row | None:
    """The one row of a table, or None."""
    found = select_rows(connection, kind, select(table).where(where).limit(1))
    return found[0] if found else None


def parts(names: Iterable[str]) -> Iterable[list[str]]:
    """Lists short enough for one IN (...)."""
    whole = list(names)
    return (whole[at : at + PART] for at in range(0, len(whole), PART))


def _stored(table: Table, pointer: ColumnElement[Any], superseded: bool) -> Select[Any]:
    """Versions of one tier, the longest unchecked first and current ones before superseded ones."""
    query = select(table).join(series_table, series_table.c.series == table.c.series)
    query = query.where(series_table.c.state != "removed")
    if not superseded:
        query = query.where(pointer == table.c.version)
    other = pointer.is_distinct_from(table.c.version)
    return query.order_by(table.c.checked_at.is_not(None), table.c.checked_at, other, table.c.version)

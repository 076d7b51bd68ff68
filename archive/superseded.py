"""Versions that no series points at any more: which may go, after what grace, and dropping their rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Table, and_, delete, select, update

from archive.catalog_engine import reading, writing
from archive.catalog_queries import parts
from archive.catalog_schema import TIME, now
from archive.catalog_tables import certificates, encodings, series_table, versions
from archive.commit import fault_point

if TYPE_CHECKING:
    from archive.catalog import Catalog

Named = tuple[str, str, str]  # tier, series, version
TIERS = (("volume", versions, series_table.c.volume_version), ("codes", encodings, series_table.c.codes_version))


def due(catalog: Catalog, keep: int, grace_seconds: float) -> set[Named]:
    """Superseded versions whose time is over: not among the `keep` newest of their series, and seen by a `gc` longer
    ago than the grace. Writes nothing."""
    with reading(catalog.engine) as connection:
        return {
            (tier, series, version)
            for tier, table, _ in TIERS
            for series, version in _due(connection, table, keep, grace_seconds)
        }


def drop(catalog: Catalog, held: Iterable[str], keep: int, grace_seconds: float) -> int:
    """Note since when versions are superseded, and drop the rows of those that are due, but of the series in `held`.

    The grace begins when a `gc` first sees a version superseded, so that a reader who opened it before has that long
    to end. Certificates go with their codes; folders become orphans. Returns how many rows went.
    """
    kept, dropped = set(held), 0
    with writing(catalog.engine) as connection:
        for _, table, pointer in TIERS:
            _mark(connection, table, pointer)
            gone = [version for series, version in _due(connection, table, keep, grace_seconds) if series not in kept]
            for part in parts(gone):
                connection.execute(delete(table).where(table.c.version.in_(part)))
                if table is encodings:
                    connection.execute(delete(certificates).where(certificates.c.version.in_(part)))
            dropped += len(gone)
        fault_point("collect.inside")
    return dropped


def _mark(connection: Connection, table: Table, pointer) -> None:
    """Set superseded_at where it is not set yet, and clear it where a version became current again."""
    is_current = select(series_table.c.series).where(
        pointer == table.c.version, series_table.c.series == table.c.series
    )
    since = update(table).where(table.c.superseded_at.is_(None), ~is_current.exists())
    connection.execute(since.values(superseded_at=now()))
    back = update(table).where(table.c.superseded_at.is_not(None), is_current.exists())
    connection.execute(back.values(superseded_at=None))


def _due(connection: Connection, table: Table, keep: int, grace_seconds: float) -> list[tuple[str, str]]:
    """(series, version) of the superseded versions of one tier that may go, the newest `keep` of a series left out."""
    pointer = next(pointer for _, other, pointer in TIERS if other is table)
    points = and_(series_table.c.series == table.c.series, pointer == table.c.version)
    query = (
        select(table.c.series, table.c.version, table.c.superseded_at)
        .outerjoin(series_table, points)
        .where(series_table.c.series.is_(None))
        .order_by(table.c.series, table.c.created_at.desc(), table.c.version)
    )
    before = (datetime.now(UTC) - timedelta(seconds=grace_seconds)).strftime(TIME)
    seen: defaultdict[str, int] = defaultdict(int)
    found = []
    for row in connection.execute(query):
        seen[row.series] += 1
        late = grace_seconds <= 0 or (row.superseded_at is not None and row.superseded_at <= before)
        if seen[row.series] > keep and late:
            found.append((row.series, row.version))
    return found

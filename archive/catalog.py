"""The catalog: what exists, in which version, in what state. A version counts from the moment a row here names it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, Connection, Engine, delete, insert, inspect, select, update

from archive.catalog_commits import CatalogCommits, finite
from archive.catalog_conditions import REFUSED
from archive.catalog_engine import open_database, prepare, reading, upsert, wipe_log, writing
from archive.catalog_queries import parts, select_one
from archive.catalog_schema import (
    OLD_SCHEMA,
    SCHEMA,
    CertificateRow,
    EncodingCommit,
    EncodingRow,
    ModelRow,
    Outcome,
    QuarantineRow,
    RunRow,
    SeriesRow,
    SourceRow,
    VersionRow,
    VolumeCommit,
    now,
)
from archive.catalog_tables import (
    certificates,
    encodings,
    meta,
    models,
    quarantine,
    runs,
    series_table,
    sightings,
    sources,
    tables,
    versions,
)
from archive.errors import MismatchError
from archive.owner import Owner

__all__ = [
    "Catalog",
    "CertificateRow",
    "EncodingCommit",
    "EncodingRow",
    "ModelRow",
    "Outcome",
    "QuarantineRow",
    "RunRow",
    "SeriesRow",
    "SourceRow",
    "VersionRow",
    "VolumeCommit",
]


class Catalog(CatalogCommits):
    """A database of versions and states; every method is one transaction, and every write may be repeated."""

    def __init__(self, url: str | URL) -> None:
        """Open, and make the tables in an empty database. Raises ConfigError NETWORK_FS; StoreError SCHEMA, DAMAGED."""
        self.engine = open_database(url)
        _upgrade(self.engine)
        prepare(self.engine, tables, meta, SCHEMA)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def bind_key(self, fingerprint: str) -> None:
        """Hold the catalog to one pseudonym key, the first it meets. Raises MismatchError WRONG_KEY."""
        query = select(meta.c.value).where(meta.c.key == "key_fingerprint")
        with reading(self.engine) as connection:
            found = connection.execute(query).scalar_one_or_none()
        if found is None:
            with writing(self.engine) as connection:
                found = connection.execute(query).scalar_one_or_none()
                if found is None:
                    connection.execute(insert(meta).values(key="key_fingerprint", value=fingerprint))
                    found = fingerprint
        if found != fingerprint:
            raise MismatchError("WRONG_KEY")

    # -- sources, runs, quarantine

    def register_source(self, alias: str, kind: str) -> None:
        """Enter a source, or its kind anew."""
        row = {"alias": alias, "kind": kind, "registered_at": now()}
        with writing(self.engine) as connection:
            upsert(connection, sources, [row], keep=("registered_at",))

    def unsee(self, source: str, names: Iterable[str]) -> list[str]:
        """Note that a source no longer holds these series; returns those that no other source holds."""
        names = list(names)
        held: set[str] = set()
        with writing(self.engine) as connection:
            for part in parts(names):
                these = sightings.c.series.in_(part)
                connection.execute(delete(sightings).where(these, sightings.c.source == source))
                held.update(connection.execute(select(sightings.c.series).where(these)).scalars())
        return [name for name in names if name not in held]

    def start_run(self, verb: str) -> str:
        """Enter a run and return its id, which sorts by time: 20261122T130000-ab12cd."""
        me = Owner.me()
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        row = {"run": run, "verb": verb, "started_at": now(), "ended_at": None, "state": "running"}
        with writing(self.engine) as connection:
            connection.execute(insert(runs).values(**row, host=me.host, pid=os.getpid(), counts={}))
        return run

    def end_run(self, run: str, state: str, counts: Mapping[str, Any] | None = None) -> None:
        """Close a run with its counts."""
        with writing(self.engine) as connection:
            changes = {"ended_at": now(), "state": state, "counts": finite(counts or {})}
            connection.execute(update(runs).where(runs.c.run == run).values(**changes))

    def set_quarantine(self, source: str, found: Iterable[QuarantineRow], run: str) -> None:
        """Make these the refused items of a source: first_seen of known ones stays, those gone are dropped."""
        when = now()
        fresh = {
            row.key: asdict(replace(row, source=source, run=run, first_seen=when, last_seen=when)) for row in found
        }
        with writing(self.engine) as connection:
            gone = delete(quarantine).where(quarantine.c.source == source)
            known = connection.execute(select(quarantine.c.key).where(quarantine.c.source == source)).scalars()
            for part in parts(key for key in known if key not in fresh):
                connection.execute(gone.where(quarantine.c.key.in_(part)))
            rows = [{**row, "numbers": finite(row["numbers"])} for row in fresh.values()]
            upsert(connection, quarantine, rows, keep=("first_seen",))

    def set_refused(self, refused: Iterable[QuarantineRow], names: Iterable[str], run: str) -> None:
        """Keep why series could not be encoded, in place of what was kept of all those named."""
        when = now()
        with writing(self.engine) as connection:
            gone = delete(quarantine).where(quarantine.c.source.startswith(REFUSED, autoescape=True))
            for part in parts(names):
                connection.execute(gone.where(quarantine.c.key.in_(part)))
            rows = [asdict(replace(row, run=run, first_seen=when, last_seen=when)) for row in refused]
            upsert(connection, quarantine, rows)

    # -- series and models

    def seen(self, names: Iterable[str]) -> None:
        """Note that these series are still there."""
        self._set_series(names, last_seen=now())

    def set_reason(self, names: Iterable[str], reason: str) -> None:
        """Put a reason code, or an empty string, on series."""
        self._set_series(names, reason=reason)

    def _set_series(self, names: Iterable[str], **values: Any) -> None:
        with writing(self.engine) as connection:
            for part in parts(names):
                connection.execute(update(series_table).where(series_table.c.series.in_(part)).values(**values))

    def add_model(self, model: ModelRow) -> ModelRow:
        """Enter a model and return it as it stands; the first one of a group becomes current."""
        with writing(self.engine) as connection:
            known = select_one(connection, ModelRow, models, models.c.model == model.model)
            if known is not None:  # the same weights by another budget: that training need not run again either
                connection.execute(
                    update(models).where(models.c.model == model.model).values(train_key=model.train_key)
                )
                return replace(known, train_key=model.train_key)
            first = select_one(connection, ModelRow, models, models.c.group == model.group) is None
            fresh = replace(model, current=first, created_at=model.created_at or now(), summary=finite(model.summary))
            connection.execute(insert(models).values(**asdict(fresh)))
            return fresh

    # -- checking and removing

    def mark_checked(self, found: Mapping[str, str]) -> None:
        """Note what `verify` found per version of either tier: an empty string, DAMAGED or MISSING.

        Damaged volumes are ingested anew although their source is unchanged, damaged codes are made again by
        `encode`; both stay current until then.
        """
        when = now()
        with writing(self.engine) as connection:
            for version, damage in found.items():
                for table in (versions, encodings):
                    marked = update(table).where(table.c.version == version)
                    connection.execute(marked.values(checked_at=when, damage=damage))

    def remove_series(self, name: str) -> None:
        """Forget a series: every row of it; its folders become orphans."""
        with writing(self.engine) as connection:
            for table in (series_table, versions, sightings, encodings, certificates):
                connection.execute(delete(table).where(table.c.series == name))
            connection.execute(delete(quarantine).where(quarantine.c.key == name))
        wipe_log(self.engine)


def _upgrade(engine: Engine) -> None:
    """Bring a catalog of OLD_SCHEMA to this one: versions know since when they are superseded."""

    def old(connection: Connection) -> bool:
        marked = select(meta.c.key).where(meta.c.key == "schema", meta.c.value == OLD_SCHEMA)
        return inspect(connection).has_table(meta.name) and connection.execute(marked).first() is not None

    with reading(engine) as connection:
        found = old(connection)
    if found:
        with writing(engine) as connection:
            if old(connection):  # another process may have been first
                for table in (versions, encodings):
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN superseded_at TEXT")
                connection.execute(update(meta).where(meta.c.key == "schema").values(value=SCHEMA))

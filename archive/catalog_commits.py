"""How versions enter the catalog: volumes, codes with their certificates, and which model's codes count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from archive.catalog_conditions import done_by, stands
from archive.catalog_engine import upsert, writing
from archive.catalog_queries import CatalogQueries, parts, select_one, select_rows
from archive.catalog_schema import (
    CertificateRow,
    EncodingCommit,
    EncodingRow,
    ModelRow,
    Outcome,
    SeriesRow,
    VersionRow,
    VolumeCommit,
    now,
    row_of,
)
from archive.catalog_tables import (
    certificates,
    encodings,
    models,
    series_table,
    sightings,
    versions,
)
from archive.commit import fault_point
from archive.errors import StoreError


class CatalogCommits(CatalogQueries):
    """The committing half of `archive.catalog.Catalog`."""

    def commit_volumes(self, commits: Sequence[VolumeCommit]) -> list[Outcome]:
        """Enter volumes and point their series at them; one outcome each, in order.

        A content equal to the current version's is `unchanged` and the offered folder an orphan. New content expires
        the certificate of codes made from the old one (state stale).
        """
        with writing(self.engine) as connection:
            outcomes = [self._commit_volume(connection, item) for item in commits]
            fault_point("catalog.volumes.inside")
        fault_point("catalog.volumes.after")
        return outcomes

    def _commit_volume(self, connection: Connection, item: VolumeCommit) -> Outcome:
        when = now()
        row = select_one(connection, SeriesRow, series_table, series_table.c.series == item.series)
        current = None
        if row is not None:
            current = select_one(connection, VersionRow, versions, versions.c.version == row.volume_version)
        same = current is not None and not current.damage and current.content_digest == item.content_digest
        offered = item.committed
        if current is not None and (same or (offered is not None and offered.version == current.version)):
            status, version = "unchanged", current.version
            if offered is not None and offered.version == version:
                status = "ingested"  # the same commit again: a retry after a lost answer
            seen = {"last_seen": when, "source": item.source, "group": item.group, "patient": item.patient}
            connection.execute(update(series_table).where(series_table.c.series == item.series).values(**seen))
            changed = {"fingerprint": item.fingerprint, "source_bytes": item.source_bytes, "source": item.source}
            connection.execute(update(versions).where(versions.c.version == version).values(**changed))
        elif offered is None:
            raise StoreError("MISSING", "a volume was said to be stored already and is not", series=item.series)
        else:
            status, version = "ingested", offered.version
            self._insert_volume(connection, item, row, when)
        sighting = {
            "source": item.source, "series": item.series, "version": version, "fingerprint": item.fingerprint
        }  # fmt: skip
        upsert(connection, sightings, [sighting])
        return Outcome(item.series, version, status)

    def _insert_volume(self, connection: Connection, item: VolumeCommit, row: SeriesRow | None, when: str) -> None:
        offered = item.committed
        assert offered is not None  # the caller has looked
        version = VersionRow(
            version=offered.version,
            series=item.series,
            source=item.source,
            fingerprint=item.fingerprint,
            content_digest=item.content_digest,
            manifest_digest=offered.digest,
            manifest=offered.manifest,
            bytes=offered.bytes,
            source_bytes=item.source_bytes,
            created_at=when,
        )
        # ON CONFLICT: a repeated commit of a version that another one has replaced since must not fail.
        upsert(connection, versions, [asdict(version)], keep=("created_at", "checked_at"))
        fresh = SeriesRow(
            series=item.series,
            patient=item.patient,
            group=item.group,
            modality=item.modality,
            state="stale" if row and row.codes_version else "ingested",
            reason="",
            source=item.source,
            axes=item.axes,
            shape=item.shape,
            dtype=item.dtype,
            spacing_mm=item.spacing_mm,
            units=item.units,
            voxels=item.voxels,
            volume_version=offered.version,
            codes_version=row.codes_version if row else None,
            first_seen=row.first_seen if row else when,
            last_seen=when,
        )
        upsert(connection, series_table, [asdict(fresh)], keep=("first_seen",))
        expire = update(certificates).where(certificates.c.series == item.series)
        connection.execute(expire.values(expired=True))

    def promote(self, model: str) -> ModelRow:
        """Make a model its group's current one.

        Series with codes by it from their current volume point at those (again); codes of other models become stale
        and their certificates expire. Raises StoreError NOT_FOUND.
        """
        with writing(self.engine) as connection:
            chosen = select_one(connection, ModelRow, models, models.c.model == model)
            if chosen is None:
                raise StoreError("NOT_FOUND", "no such model")
            connection.execute(
                update(models).where(models.c.group == chosen.group).values(current=models.c.model == model)
            )
            members = select(series_table).where(
                series_table.c.group == chosen.group, series_table.c.codes_version.is_not(None)
            )
            for row in select_rows(connection, SeriesRow, members):
                own = select(encodings.c.version).where(
                    encodings.c.series == row.series,
                    encodings.c.source_version == row.volume_version,
                    encodings.c.model == model,
                    encodings.c.damage == "",
                )
                newest = own.order_by(encodings.c.created_at.desc()).limit(1)
                version = connection.execute(newest).scalar_one_or_none() or row.codes_version
                self._point(connection, row, version, model)
            fault_point("catalog.promote.inside")
        fault_point("catalog.promote.after")
        return replace(chosen, current=True)

    def _point(self, connection: Connection, row: SeriesRow, version: str | None, model: str) -> str:
        """Make codes current and return the state: stale unless they are by `model` from the current volume."""
        codes = select_one(connection, EncodingRow, encodings, encodings.c.version == version)
        certificate = select_one(connection, CertificateRow, certificates, certificates.c.version == version)
        valid = codes is not None and codes.model == model and codes.source_version == row.volume_version
        state, reasons = "stale", []
        if valid and certificate is not None:
            state = "encoded" if certificate.passed else "quality_failed"
            reasons = certificate.data.get("reasons", [])
        pointer = {"codes_version": version, "state": state, "reason": reasons[0] if reasons else ""}
        connection.execute(update(series_table).where(series_table.c.series == row.series).values(**pointer))
        connection.execute(update(certificates).where(certificates.c.version == version).values(expired=not valid))
        return state

    def commit_encodings(self, commits: Sequence[EncodingCommit], *, beside: bool = False) -> list[Outcome]:
        """Enter codes with their certificates and point their series at them; one outcome each, in order.

        UNIQUE(series, source version, model, settings): whoever comes second is `lost`, and the first one's version
        is returned; a damaged first one is replaced. beside: readers go on with the codes that they have; `promote`
        points at these.
        """
        with writing(self.engine) as connection:
            plain = _never_made(connection, commits)
            _insert_encodings(connection, plain.values(), beside)
            outcomes = [
                Outcome(item.series, item.committed.version, _state(item))
                if item.series in plain
                else self._commit_encoding(connection, item, beside)
                for item in commits
            ]
            fault_point("catalog.encodings.inside")
        fault_point("catalog.encodings.after")
        return outcomes

    def _commit_encoding(self, connection: Connection, item: EncodingCommit, beside: bool) -> Outcome:
        row = select_one(connection, SeriesRow, series_table, series_table.c.series == item.series)
        if row is None or row.volume_version != item.source_version:
            return Outcome(item.series, (row.codes_version or "") if row else "", "lost")
        offered = item.committed
        known = select_one(
            connection,
            EncodingRow,
            encodings,
            (encodings.c.series == item.series)
            & (encodings.c.source_version == item.source_version)
            & (encodings.c.model == item.model)
            & (encodings.c.settings_digest == item.settings_digest),
        )
        if known is not None and known.version != offered.version:
            if not known.damage:
                if not beside:
                    self._point(connection, row, known.version, item.model)
                return Outcome(item.series, known.version, "lost")
            beside = beside and row.codes_version != known.version  # nobody may point at what goes now
            connection.execute(delete(encodings).where(encodings.c.version == known.version))
            connection.execute(delete(certificates).where(certificates.c.version == known.version))
        if known is None or known.version != offered.version:
            _insert_encodings(connection, [item], beside)
        elif not beside:
            _point_at(connection, [item])
        return Outcome(item.series, offered.version, _state(item))

    def adopt_encodings(
        self,
        group: str,
        model: str,
        settings_digest: str,
        *,
        names: Iterable[str] | None = None,
        any_model: bool = False,
    ) -> list[str]:
        """Point series of a group, or those named, at codes that exist already for this model and these settings.

        Returns the series moved: their current codes were other ones, and they need no encoding. any_model: leave those
        whose codes count although another model made them, as `to_encode` does.
        """
        asked = None if names is None else set(names)
        moved = []
        with writing(self.engine) as connection:
            done = done_by(model, settings_digest).scalar_subquery()
            other = or_(series_table.c.codes_version.is_distinct_from(done), series_table.c.state == "stale")
            query = select(series_table, done.label("done")).where(done.is_not(None), other)
            query = query.where(series_table.c.group == group, series_table.c.state != "removed")
            if any_model:
                query = query.where(~stands(settings_digest))
            for found in connection.execute(query).mappings().all():
                row = row_of(SeriesRow, found)
                if asked is None or row.series in asked:
                    self._point(connection, row, found["done"], model)
                    moved.append(row.series)
        return moved


def _never_made(connection: Connection, commits: Sequence[EncodingCommit]) -> dict[str, EncodingCommit]:
    """By series, the commits that are nothing out of the ordinary: the volume is current, no such codes, one each.

    One statement per table for hundreds of them: asked one by one, they are most of what a small series costs.
    """
    by_series = {item.series: item for item in commits}
    if len(by_series) < len(commits):
        return {}
    current: dict[str, str] = {}
    made: set[tuple[str, ...]] = set()
    named = ("series", "source_version", "model", "settings_digest")
    for part in parts(by_series):
        query = select(series_table.c.series, series_table.c.volume_version).where(series_table.c.series.in_(part))
        current.update((row.series, row.volume_version) for row in connection.execute(query))
        known = select(*(encodings.c[name] for name in named)).where(encodings.c.series.in_(part))
        made.update(tuple(row) for row in connection.execute(known))
    return {
        name: item
        for name, item in by_series.items()
        if current.get(name) == item.source_version and tuple(getattr(item, part) for part in named) not in made
    }


def _insert_encodings(connection: Connection, items: Iterable[EncodingCommit], beside: bool) -> None:
    """Rows of new codes and their certificates; their series point at them unless they are to stay beside."""
    when, items = now(), list(items)
    if not items:
        return
    rows = [
        EncodingRow(
            version=item.committed.version,
            series=item.series,
            source_version=item.source_version,
            model=item.model,
            settings_digest=item.settings_digest,
            profile=item.profile,
            manifest_digest=item.committed.digest,
            manifest=item.committed.manifest,
            bytes=item.committed.bytes,
            created_at=when,
        )
        for item in items
    ]
    measured = [
        {
            "version": item.committed.version,
            "series": item.series,
            "psnr": item.psnr,
            "ssim": item.ssim,
            "passed": item.passed,
            "data": finite(item.certificate),
            "expired": False,
            "created_at": when,
        }
        for item in items
    ]
    connection.execute(insert(encodings), [asdict(row) for row in rows])
    connection.execute(insert(certificates), measured)
    if not beside:
        _point_at(connection, items)


def _point_at(connection: Connection, items: Iterable[EncodingCommit]) -> None:
    # SQLAlchemy keeps the names of columns for itself.
    pointer = update(series_table).where(series_table.c.series == bindparam("name"))
    fresh: dict[str, Any] = {
        "codes_version": bindparam("new_version"),
        "state": bindparam("new_state"),
        "reason": bindparam("why"),
    }
    rows = [
        {"name": item.series, "new_version": item.committed.version, "new_state": _state(item), "why": item.reason}
        for item in items
    ]
    connection.execute(pointer.values(**fresh), rows)


def _state(item: EncodingCommit) -> str:
    return "encoded" if item.passed else "quality_failed"


def finite(data: Any) -> Any:
    """JSON that any database takes: numbers that are not finite become null."""
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

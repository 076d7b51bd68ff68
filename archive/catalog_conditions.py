"""Which series a query is about: conditions over the series table that several rooms of the catalog share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, literal, select

from archive.catalog_tables import encodings, models, quarantine, series_table


@dataclass(frozen=True)
class Wanted:
    """Which codes a series should have: by this model and these settings from its current volume.

    any_model: current ones by another model that was asked for since the last promotion will do. again: also of series
    that were refused (NON_FINITE, WORKER_KILLED) for these very codes.
    """

    group: str
    model: str
    settings_digest: str
    any_model: bool = False
    again: bool = False

    def refusal(self, source_version: str) -> str:
        """The `source` of quarantine rows of series that could not be encoded like this from that volume."""
        return f"{REFUSED}{source_version}{self._by}"

    @property
    def _by(self) -> str:
        return f":{self.model}:{self.settings_digest}"


REFUSED = "encode:"


def among(names: Iterable[str]) -> ColumnElement[bool]:
    """For a query over series: whether it is one of those named, few enough for one IN (...)."""
    return series_table.c.series.in_(list(names))


def lacks(wanted: Wanted) -> ColumnElement[bool]:
    """For a query over series: whether it is of the group and has no undamaged codes as wanted."""
    done = done_by(wanted.model, wanted.settings_digest).exists()
    there = and_(series_table.c.group == wanted.group, series_table.c.state != "removed", ~done)
    there = there if wanted.again else and_(there, ~refused(wanted))
    return and_(there, ~stands(wanted.settings_digest)) if wanted.any_model else there


def refused(wanted: Wanted) -> ColumnElement[bool]:
    """For a query over series: whether these very codes were tried, from the current volume, and could not be made."""
    named = literal(REFUSED) + series_table.c.volume_version + wanted._by
    rows = select(quarantine.c.key).where(quarantine.c.key == series_table.c.series, quarantine.c.source == named)
    return rows.correlate(series_table).exists()


def done_by(model: str, settings_digest: str) -> Select[Any]:
    """For a query over series: its undamaged codes of the current volume by this model and these settings."""
    return (
        select(encodings.c.version)
        .where(
            encodings.c.series == series_table.c.series,
            encodings.c.source_version == series_table.c.volume_version,
            encodings.c.model == model,
            encodings.c.settings_digest == settings_digest,
            encodings.c.damage == "",
        )
        .correlate(series_table)
    )


def stands(settings_digest: str) -> ColumnElement[bool]:
    """For a query over series: whether its current codes, by whatever model, count: not stale, whole, these settings."""
    codes = select(encodings.c.version).where(
        models.c.model == encodings.c.model,
        models.c.group == series_table.c.group,
        encodings.c.version == series_table.c.codes_version,
        encodings.c.source_version == series_table.c.volume_version,
        encodings.c.settings_digest == settings_digest,
        encodings.c.damage == "",
    )
    return and_(series_table.c.state.in_(["encoded", "quality_failed"]), codes.correlate(series_table).exists())

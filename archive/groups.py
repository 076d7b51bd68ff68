"""Which group a series belongs to: one per modality, or one of [groups]; stored series follow when that changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from archive.catalog_engine import reading, upsert, writing
from archive.catalog_queries import parts, select_rows
from archive.catalog_schema import SeriesRow
from archive.catalog_tables import certificates, meta, series_table
from archive.errors import StoreError
from archive.plans import group_of
from archive.settings import GroupSettings

if TYPE_CHECKING:
    from archive.catalog import Catalog
    from archive.workspace import Workspace

Groups = Mapping[str, GroupSettings]
KEY = "groups"  # of the catalog's meta table: the digest of what the stored series were last grouped by


def matching(known: Mapping[str, Any], default: str, groups: Groups) -> str:
    """The first configured group whose every `match` equals what is known of a series, else `default`.

    known: its modality, and the allow-listed keys of its acquisition.
    """
    for name, group in groups.items():
        if group.match and all(known.get(key) == value for key, value in group.match.items()):
            return name
    return default


def moves(workspace: Workspace) -> dict[str, str]:
    """Series whose group is another one by the settings than by the catalog, and that group; writes nothing.

    Costs one small query where the settings are those that the series were last grouped by; else the attributes of
    every stored volume are read. A volume that is damaged or gone stays where it is.
    """
    with reading(workspace.catalog.engine) as connection:
        last = connection.execute(select(meta.c.value).where(meta.c.key == KEY)).scalar_one_or_none()
    if last == _digest(workspace.settings.groups):
        return {}
    found = {}
    for row in workspace.catalog.series():
        group = _group_of(workspace, row)
        if group not in (None, row.group):
            found[row.series] = group
    return found


def regroup(workspace: Workspace) -> dict[str, str]:
    """Move stored series to the groups that the settings give them; returns what moved, and where to.

    Their codes are by a model of the old group: they become stale and their certificates expire, and the next encode
    makes new ones (or finds those of an earlier time in this group). May be repeated, and killed anywhere.
    """
    digest = _digest(workspace.settings.groups)
    found = moves(workspace)
    _move(workspace.catalog, found, digest)
    return found


def _move(catalog: Catalog, found: Mapping[str, str], digest: str) -> None:
    query = select(meta.c.value).where(meta.c.key == KEY)
    with reading(catalog.engine) as connection:
        if not found and connection.execute(query).scalar_one_or_none() == digest:
            return
    with writing(catalog.engine) as connection:
        for part in parts(found):
            query = select(series_table).where(series_table.c.series.in_(part), series_table.c.state != "removed")
            for row in select_rows(connection, SeriesRow, query):
                state = "stale" if row.codes_version else row.state
                values = {"group": found[row.series], "state": state, "reason": ""}
                connection.execute(update(series_table).where(series_table.c.series == row.series).values(**values))
            expire = update(certificates).where(certificates.c.series.in_(part))
            connection.execute(expire.values(expired=True))
        upsert(connection, meta, [{"key": KEY, "value": digest}])


def _group_of(workspace: Workspace, row: SeriesRow) -> str | None:
    """None where that cannot be told."""
    from archive.arrays import read_attributes  # zarr takes half a second to import

    groups = workspace.settings.groups
    known: dict[str, Any] = {"modality": row.modality}
    if any(set(group.match) - {"modality"} for group in groups.values()):
        try:
            stored = read_attributes(workspace.volumes / row.series / row.volume_version)["voxbook"]
        except (StoreError, KeyError):
            return None
        known = {**stored.get("acquisition", {}), **known}
    return matching(known, group_of(row.modality, row.channels), groups)


def _digest(groups: Groups) -> str:
    rules = [[name, group.match] for name, group in groups.items() if group.match]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

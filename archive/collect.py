"""Garbage: version folders that no row names, and stage folders of dead processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archive.commit import STAGE, fault_point, remove_tree
from archive.leases import leased_series
from archive.owner import Owner

if TYPE_CHECKING:
    from archive.workspace import Workspace

STAGE_SECONDS = 24 * 3600  # a stage folder of another host, whose processes cannot be seen from here


@dataclass(frozen=True)
class Collected:
    """What was, or in a dry run would be, removed."""

    folders: int
    bytes: int


@dataclass(frozen=True)
class _Version:
    tier: str
    series: str
    version: str
    folder: Path


def collect(workspace: Workspace, dry_run: bool = False) -> Collected:
    """Remove orphaned and superseded versions and dead stage folders; never what a live run or process may need.

    May be killed anywhere and run beside any other verb: whatever is removed is named by no row when it goes, and
    series that a live run holds a lease on are left alone. Superseded versions lose their rows first.
    """
    # The order matters. A run commits under a lease: a folder listed here whose lease is gone by the next line has
    # its row by the line after that.
    stages = [folder for root in (workspace.volumes, workspace.codes) for folder in dead_stages(root)]
    listed = [*_versions("volume", workspace.volumes), *_versions("codes", workspace.codes)]
    leased = leased_series(workspace.catalog)
    if not dry_run:
        workspace.catalog.drop_superseded(keep=leased)
        fault_point("collect.dropped")
    named = workspace.catalog.current_versions() if dry_run else workspace.catalog.referenced_versions()
    garbage = [
        item for item in listed if item.series not in leased and (item.tier, item.series, item.version) not in named
    ]
    size = 0
    for folder in [*stages, *(item.folder for item in garbage)]:
        size += _size(folder) if dry_run else remove_tree(folder)
        fault_point("collect.removed")
    if not dry_run:
        for series in {item.folder.parent for item in garbage}:
            _remove_empty(series)
    return Collected(folders=len(stages) + len(garbage), bytes=size)


def _versions(tier: str, root: Path) -> Iterator[_Version]:
    for series in _folders(root):
        if series.name != STAGE:
            yield from (_Version(tier, series.name, folder.name, folder) for folder in _folders(series))


def dead_stages(root: Path) -> Iterator[Path]:
    """Stage folders of a store whose process is dead, or that nobody has touched for long."""
    for folder in _folders(root / STAGE):
        owner = Owner.from_tag(folder.name)
        alive = None if owner is None else owner.alive()
        if alive is False or (alive is None and _idle_seconds(folder) > STAGE_SECONDS):
            yield folder


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:  # nothing stored yet, or another gc was faster
        return []


def _idle_seconds(folder: Path) -> float:
    return time.time() - max((_changed(path) for path in [folder, *folder.rglob("*")]), default=0.0)


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_empty(series: Path) -> None:
    try:
        series.rmdir()
    except OSError:  # not empty: a version came, or stays
        return

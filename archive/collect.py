"""Garbage: versions and models that no row names, superseded versions after their grace, what dead processes left."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archive import superseded
from archive.commit import STAGE, fault_point, remove_tree
from archive.leases import Lease, holders
from archive.owner import Owner

if TYPE_CHECKING:
    from archive.workspace import Workspace

STAGE_SECONDS = 24 * 3600  # a stage folder of another host, whose processes cannot be seen from here
TRAINING_SECONDS = 30 * 24 * 3600  # a killed training that nobody has gone on with
_MODEL = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Collected:
    """What was, or in a dry run would be, removed.

    folders: of versions, models and what dead processes left. waiting: superseded versions that stay for now.
    """

    folders: int
    bytes: int
    waiting: int = 0


@dataclass(frozen=True)
class _Version:
    tier: str
    series: str
    version: str
    folder: Path


def collect(
    workspace: Workspace, dry_run: bool = False, *, keep: int | None = None, grace_seconds: float | None = None
) -> Collected:
    """Remove orphaned and superseded versions, unnamed models and what dead processes left.

    Never what a live run or process may need: it may be killed anywhere and run beside any other verb. Whatever is
    removed is named by no row when it goes, and series that a live run holds a lease on are left alone. Superseded
    versions lose their rows first. keep: superseded versions of each series and tier that stay; grace_seconds: how
    long superseded ones stay for those who still read them; None: as [gc] says.
    """
    if not dry_run:
        from archive.erase import finish  # which needs this module

        finish(workspace)
    settings = workspace.settings.gc
    keep = settings.keep if keep is None else keep
    grace = settings.grace_seconds if grace_seconds is None else grace_seconds
    # The order matters. A run commits under a lease: a folder listed here whose lease is gone by the next line has
    # its row by the line after that. The same holds for models, published under the lease of their training.
    leftovers = [folder for root in _stores(workspace) for folder in dead_stages(root)]
    stores = (workspace.volumes, workspace.codes)
    parents = [parent for root in stores for parent in _folders(root) if parent.name != STAGE]
    listed = [*_versions("volume", workspace.volumes), *_versions("codes", workspace.codes)]
    bundles, trainings = _folders(workspace.models), _folders(workspace.training)
    held = [lease.resource.partition(":") for lease in holders(workspace.catalog) if _may_live(lease)]
    leased = {name for kind, _, name in held if kind == "series"}
    for group in (name for kind, _, name in held if kind == "train"):  # a training reads its volumes for hours
        leased |= {row.series for row in workspace.catalog.series(group=group)}
    fault_point("collect.listed")
    dropped: set[superseded.Named] = set()
    if dry_run:
        dropped = {item for item in superseded.due(workspace.catalog, keep, grace) if item[1] not in leased}
    else:
        superseded.drop(workspace.catalog, leased, keep, grace)
        fault_point("collect.dropped")
    named = workspace.catalog.referenced_versions() - dropped
    garbage = [
        item for item in listed if item.series not in leased and (item.tier, item.series, item.version) not in named
    ]
    if not any(kind == "train" for kind, _, _ in held):
        leftovers += _unnamed(workspace, bundles, trainings)
    size = 0
    for folder in [*leftovers, *(item.folder for item in garbage)]:
        size += _size(folder) if dry_run else remove_tree(folder)
        fault_point("collect.removed")
    if not dry_run:
        occupied = {item.folder.parent for item in listed}
        for parent in {item.folder.parent for item in garbage} | {one for one in parents if one not in occupied}:
            _remove_empty(parent)
    waiting = len(named - workspace.catalog.current_versions())
    return Collected(folders=len(leftovers) + len(garbage), bytes=size, waiting=waiting)


def _stores(workspace: Workspace) -> tuple[Path, ...]:
    return workspace.volumes, workspace.codes, workspace.models


def _may_live(lease: Lease) -> bool:
    """Whether its holder may still commit: a process of another host that stood still for long may go on.

    Its work may be taken over after ten minutes; its folders stay a day, as its stage folders do.
    """
    return lease.live or (lease.unseen and time.time() - lease.heartbeat < STAGE_SECONDS)


def _versions(tier: str, root: Path) -> Iterator[_Version]:
    for series in _folders(root):
        if series.name != STAGE:
            yield from (_Version(tier, series.name, folder.name, folder) for folder in _folders(series))


def _unnamed(workspace: Workspace, bundles: list[Path], trainings: list[Path]) -> list[Path]:
    """Models that a training published and no row names, and folders of trainings that are over."""
    models = workspace.catalog.models()
    named = {row.model for row in models}
    keys = {row.train_key[:16] for row in models if row.train_key}
    unnamed = [folder for folder in bundles if _MODEL.fullmatch(folder.name) and folder.name not in named]
    over = [
        folder
        for folder in trainings
        if folder.name.rpartition("-")[2] in keys or _idle_seconds(folder) > TRAINING_SECONDS
    ]
    return unnamed + over


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

"""Erase a series or a patient everywhere: linkage, catalog, volumes, codes, quarantine, reports and exports."""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, select, update

from archive import linkage_tables as originals
from archive.catalog_engine import reading, rewrite, wipe_log, writing
from archive.catalog_queries import parts
from archive.catalog_schema import STATES
from archive.catalog_tables import quarantine, series_table
from archive.collect import dead_stages
from archive.commit import fault_point, remove_tree
from archive.errors import StoreError, TransientError
from archive.exported import forget_exports
from archive.keys import Pseudonyms
from archive.leases import Leases
from archive.linkage import Filed, GroupOutcome
from archive.workspace import Workspace


@dataclass(frozen=True)
class Erased:
    """What went. refused: rows of the quarantine. exports: files and folders below the workspace's exports."""

    series: int
    folders: int
    reports: int
    refused: int = 0
    exports: int = 0


@dataclass
class Marked:
    """What is to go. series: stored or once planned; keys: of quarantine rows; files: (source, path) of entries.

    anchors: the keys by which alone it was found; they go last, so that a killed erasure can be found and repeated.
    """

    series: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    files: set[tuple[str, str]] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)


def erase(workspace: Workspace, *, series: str | None = None, patient: str | None = None) -> Erased:
    """Erase one series, or all of a patient; raises StoreError NOT_FOUND, TransientError LEASED.

    series: a pseudonym, or the key of a refused one; patient: a pseudonym, also of one all of whose files were refused;
    of both the beginning is enough. Series are `removed` at once for everybody, then the bytes go, and the rows last:
    the next `forget` or `gc` goes on with an erasure that was killed. What the sources still hold comes back with the
    next ingest.
    """
    finish(workspace)
    return _erased(workspace, series, patient)


def finish(workspace: Workspace) -> int:
    """Go on with erasures that were killed, and not with those that are under way; returns how many series went."""
    pending = workspace.catalog.series(states=["removed"])
    gone = 0
    for row in pending:
        with contextlib.suppress(TransientError, StoreError):  # at work, or gone with another series of the patient
            whole = row.reason == "PATIENT_FORGOTTEN"
            gone += _erased(workspace, None if whole else row.series, row.patient if whole else None).series
    return gone


def marked_by(workspace: Workspace, series: str | None, patient: str | None) -> Marked:
    """What `erase` would erase; nothing is changed. Raises StoreError NOT_FOUND."""
    return _series(workspace, series) if series is not None else _patient(workspace, patient or "-")


def _erased(workspace: Workspace, series: str | None, patient: str | None) -> Erased:
    marked = marked_by(workspace, series, patient)
    with Leases(workspace.catalog, workspace.catalog.start_run("forget")) as leases:
        try:
            erased = _erase(workspace, marked, leases, "FORGOTTEN" if patient is None else "PATIENT_FORGOTTEN")
        except TransientError as error:
            workspace.catalog.end_run(leases.run, "failed", {"code": error.code})
            raise
    for engine in (workspace.catalog.engine, workspace.linkage.engine):
        rewrite(engine)
    workspace.close()  # the last connection empties SQLite's log, where erased rows and leases would still be found
    return erased


def _series(workspace: Workspace, name: str) -> Marked:
    """One series: its files, and the copies and refused files under its SeriesInstanceUID."""
    rows = [row.key for row in workspace.catalog.quarantine() if name and row.key.startswith(name)]
    try:
        marked = Marked(series={workspace.catalog.one(name).series})
    except StoreError:
        if len(set(rows)) != 1:
            raise
        marked = Marked(keys=set(rows), anchors=set(rows))
    wanted = marked.series | marked.keys
    groups = set()
    origins = _origins(workspace)
    for source, outcome in _outcomes(workspace):
        if wanted & _keys(outcome):
            groups.add((source, outcome.grouped))
    for source, entry in _entries(workspace):
        alone = workspace.pseudonyms.file(origins[source], entry.path)
        if alone in wanted or (source, entry.grouped) in groups:
            marked.files.add((source, entry.path))
            marked.keys.add(alone)
    return marked


def _patient(workspace: Workspace, name: str) -> Marked:
    """All of a patient, by the catalog, by the linkage's series, and by the headers of files that came to nothing."""
    marked = Marked()
    for row in workspace.catalog.series(states=STATES):
        if row.patient.startswith(name):
            marked.series.add(row.series)
            marked.patients.add(row.patient)
    table = originals.series
    with reading(workspace.linkage.engine) as connection:
        rows = connection.execute(select(table.c.series, table.c.patient)).all()
    for one, who in rows:
        if who.startswith(name):
            marked.series.add(one)
            marked.patients.add(who)
    groups = set()
    origins = _origins(workspace)
    for source, entry in _entries(workspace):
        origin = origins[source]
        for who in _people(workspace.pseudonyms, origin, entry):
            if who.startswith(name):
                marked.files.add((source, entry.path))
                marked.keys.add(workspace.pseudonyms.file(origin, entry.path))
                marked.patients.add(who)
                groups.add((source, entry.grouped))
    if not marked.patients:
        raise StoreError("NOT_FOUND", "nothing of that patient is known", hint="voxbook inspect --json names them")
    if len(marked.patients) > 1:
        raise StoreError("NOT_FOUND", "several patients begin like that", hint="give more of the pseudonym")
    for source, outcome in _outcomes(workspace):
        if outcome.grouped and (source, outcome.grouped) in groups:
            marked.keys |= _keys(outcome)
    return marked


def _origins(workspace: Workspace) -> dict[str, str]:
    """What files without identifiers are named by, for each source."""
    with reading(workspace.linkage.engine) as connection:
        aliases = connection.execute(select(originals.files.c.source).distinct()).scalars().all()
    return {alias: workspace.linkage.origin(alias) for alias in aliases}


def _people(pseudonyms: Pseudonyms, origin: str, entry: Filed) -> Iterator[str]:
    """The pseudonyms that an entry's patient has or would have: see archive.series, archive.nifti."""
    if not entry.patient:
        yield pseudonyms.patient(entry.series) if entry.series else pseudonyms.patient(origin, entry.path)
        return
    header = entry.entry().header or {}
    yield pseudonyms.patient(entry.patient, str(header.get("issuer") or ""))


def _entries(workspace: Workspace) -> Iterator[tuple[str, Filed]]:
    """Every entry of every source, one at a time: headers of a whole archive do not fit into memory."""
    table = originals.files
    query = select(table.c.source, *(table.c[name] for name in Filed._fields))
    with reading(workspace.linkage.engine) as connection:
        for source, *rest in connection.execute(query.execution_options(yield_per=1000)):
            yield source, Filed(*rest)


def _outcomes(workspace: Workspace) -> Iterator[tuple[str, GroupOutcome]]:
    table = originals.outcomes
    with reading(workspace.linkage.engine) as connection:
        for row in connection.execute(select(table).execution_options(yield_per=1000)):
            yield row.source, GroupOutcome.from_json(row.grouped, row.outcome)


def _keys(outcome: GroupOutcome) -> set[str]:
    """Everything that a group of files is called in the catalog."""
    return {one.series for one in outcome.series} | {finding.key for finding in outcome.findings}


def _erase(workspace: Workspace, marked: Marked, leases: Leases, reason: str) -> Erased:
    names = sorted(marked.series)
    wanted = [f"series:{name}" for name in names]
    if len(leases.acquire(wanted)) < len(wanted):
        raise TransientError("LEASED")
    stored = [row for row in workspace.catalog.series(states=STATES) if row.series in marked.series]
    _remove_from_sight(workspace, names, reason)
    fault_point("erase.hidden")
    for root in (workspace.volumes, workspace.codes):  # what killed runs left unpacked or half written may be anybody's
        for folder in dead_stages(root):
            remove_tree(folder)
    folders = sum(_remove(root / name) for root in (workspace.volumes, workspace.codes) for name in names)
    fault_point("erase.folders")
    exports = forget_exports(workspace.exports, marked.series)
    fault_point("erase.exports")
    groups = {row.group for row in stored}
    for model in workspace.catalog.models():
        if model.group in groups:  # its samples may be slices of this patient
            (workspace.models / model.model / "progress.png").unlink(missing_ok=True)
    for group in groups:  # and so may those of trainings that were killed or go on
        for folder in workspace.training.glob(f"{glob.escape(group)}-*"):
            (folder / "progress.png").unlink(missing_ok=True)
    reports = sum(_remove(folder) for folder in _reports_of(workspace.reports, [*names, *marked.keys]))
    fault_point("erase.reports")
    # Keys of the quarantine are found by the linkage, the linkage by rows of the catalog: each goes before its finder.
    refused = _unlist(workspace, marked.keys - marked.anchors)
    fault_point("erase.refused")
    _forget_files(workspace, marked)
    fault_point("erase.linkage")
    for name in names:
        workspace.linkage.forget(series_id=name)
        workspace.catalog.remove_series(name)
    fault_point("erase.rows")
    refused += _unlist(workspace, marked.anchors | marked.series)
    workspace.catalog.end_run(leases.run, "completed", {"series": len(stored)})
    return Erased(series=len(stored), folders=folders, reports=reports, refused=refused, exports=exports)


def _remove_from_sight(workspace: Workspace, names: list[str], reason: str) -> None:
    gone = {"state": "removed", "reason": reason, "codes_version": None}
    with writing(workspace.catalog.engine) as connection:
        for part in parts(names):
            connection.execute(update(series_table).where(series_table.c.series.in_(part)).values(**gone))


def _forget_files(workspace: Workspace, marked: Marked) -> None:
    """Entries and what was made of their groups; a patient's refused and folded files are in no series' list."""
    files, outcomes = originals.files, originals.outcomes
    by_source: dict[str, list[str]] = {}
    for source, path in marked.files:
        by_source.setdefault(source, []).append(path)
    with writing(workspace.linkage.engine) as connection:
        for source, paths in by_source.items():
            for part in parts(paths):
                where = (files.c.source == source) & files.c.path.in_(part)
                groups = list(connection.execute(select(files.c.grouped).where(where).distinct()).scalars())
                for some in parts(groups):
                    gone = outcomes.c.grouped.in_(some)
                    connection.execute(delete(outcomes).where(outcomes.c.source == source, gone))
                connection.execute(delete(files).where(where))
    wipe_log(workspace.linkage.engine)


def _unlist(workspace: Workspace, keys: Iterable[str]) -> int:
    """Drop rows of the quarantine; returns how many."""
    gone = 0
    with writing(workspace.catalog.engine) as connection:
        for part in parts(keys):
            gone += connection.execute(delete(quarantine).where(quarantine.c.key.in_(part))).rowcount
    wipe_log(workspace.catalog.engine)
    return gone


def _remove(folder: Path) -> int:
    if not folder.exists():
        return 0
    shutil.rmtree(folder)
    return 1


def _reports_of(root: Path, names: list[str]) -> list[Path]:
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.exists() else []
    return [folder for folder in folders if _mentions(folder / "report.json", names)]


def _mentions(path: Path, names: list[str]) -> bool:
    text = path.read_text() if path.exists() else ""
    return any(name in text for name in names)

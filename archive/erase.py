"""Erase a series or a patient everywhere: linkage, catalog, volumes, codes, and the reports that show them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from archive.errors import StoreError, TransientError
from archive.leases import Leases
from archive.workspace import Workspace


@dataclass(frozen=True)
class Erased:
    """What went."""

    series: int
    folders: int
    reports: int


def erase(workspace: Workspace, *, series: str | None = None, patient: str | None = None) -> Erased:
    """Erase one series, or all of a patient; raises StoreError NOT_FOUND, TransientError LEASED.

    The bytes go first and the rows last, so that a killed erasure can be found and repeated.
    """
    if series is not None:
        names = [workspace.catalog.one(series).series]
    else:
        names = [row.series for row in workspace.catalog.series() if row.patient.startswith(patient or "-")]
        if len({workspace.catalog.one(name).patient for name in names}) > 1:
            raise StoreError("NOT_FOUND", "several patients begin like that", hint="give more of the pseudonym")
    if not names:
        raise StoreError("NOT_FOUND", "no series of that patient is known")
    with Leases(workspace.catalog, workspace.catalog.start_run("forget")) as leases:
        erased = _erase(workspace, names, leases, whole_patient=patient is not None)
    workspace.close()  # the last connection empties SQLite's log, where erased rows and leases would still be found
    return erased


def _erase(workspace: Workspace, names: list[str], leases: Leases, whole_patient: bool) -> Erased:
    wanted = [f"series:{name}" for name in names]
    if len(leases.acquire(wanted)) < len(wanted):
        workspace.catalog.end_run(leases.run, "failed", {"code": "LEASED"})
        raise TransientError("LEASED")
    folders = sum(_remove(root / name) for root in (workspace.volumes, workspace.codes) for name in names)
    groups = {workspace.catalog.one(name).group for name in names}
    for model in workspace.catalog.models():
        if model.group in groups:  # its samples may be slices of this patient
            (workspace.models / model.model / "progress.png").unlink(missing_ok=True)
    reports = sum(_remove(folder) for folder in _reports_of(workspace.reports, names))
    # Linkage holds originals: it goes before the catalog rows that would lead to it.
    if whole_patient:
        workspace.linkage.forget(patient=workspace.catalog.one(names[0]).patient)
    for name in names:
        workspace.linkage.forget(series_id=name)
        workspace.catalog.remove_series(name)
    workspace.catalog.end_run(leases.run, "completed", {"series": len(names)})
    return Erased(series=len(names), folders=folders, reports=reports)


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

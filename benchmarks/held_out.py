"""Which series the contestants of a benchmark learn from, and which they never see: split by patients, by folders.

Every benchmark of this folder that trains splits here, so that their tables speak of the same series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from archive.volumes import StoredVolume
from archive.workspace import Workspace
from flows.ingest import ingest

# Folders of ../shared/data with series of a group; each holds other patients than the rest. No PET: it is all of one
# patient, and nobody would be left to judge on.
FOLDERS = {
    "ct": (
        "train/ct_head_phantom_1mm",
        "series/ct_ibsi_lung_phantom",
        "series/ct_lidc_chest",
        "series/sts001_flat_mixed",
    ),
    "mr": (
        "series/mr_breast_dce_ucsf06",
        "series/mr_adc_cmbcrc_scan1",
        "series/mr_t1_7t_studyforrest",
        "series/mr_pd_oblique_papaya",
        "series/sts001_flat_mixed",
    ),
    "nifti": ("train/nifti_hippocampus",),
    "picture": ("train/imagefolder_medmnist64",),
}
# Left out where the caller names nothing: what the project's issue is judged on first.
DEFAULT_LEFT = {
    "ct": ("ct_lidc_chest", "sts001_flat_mixed"),
    "mr": ("mr_breast_dce_ucsf06", "mr_adc_cmbcrc_scan1"),
    "nifti": ("nifti_hippocampus/9",),
    "picture": ("imagefolder_medmnist64/54",),
}


@dataclass(frozen=True)
class Split:
    """learn, unseen: series = stored volume. patients: series = patient. names: series = folder, for tables."""

    group: str
    modality: str
    learn: dict[str, StoredVolume]
    unseen: dict[str, StoredVolume]
    patients: dict[str, str]
    names: dict[str, str]


@contextmanager
def opened(data: Path, group: str, left_out: list[str], workspace: Path | None = None) -> Iterator[Split]:
    """Ingest a group's folders and split its series.

    left_out: folder names, or `folder/N` for N of its patients (chosen by hash); empty takes DEFAULT_LEFT.
    workspace: kept where it is given, so that the next run finds everything ingested. Raises ValueError for a name
    that is no folder of the group, or where nothing is left to learn from or to judge on.
    """
    wanted = dict(_parsed(name) for name in (left_out or DEFAULT_LEFT[group]))
    folders = [data / folder for folder in FOLDERS[group] if (data / folder).is_dir()]
    unknown = set(wanted) - {folder.name for folder in folders}
    if unknown:
        raise ValueError(f"not a folder of {group}: {', '.join(sorted(unknown))}; one of {_names(folders)}")
    with TemporaryDirectory() as spare:
        root = workspace or Path(spare)
        home = Workspace.open(root, create=True)
        sources = [home.register_source(folder, exclude=["**/Ref/**"]) for folder in folders]
        ingest.fn(workspace=str(root), sources=sources, settings=["cluster=inline"])
        yield _split(Workspace.open(root), group, folders, wanted)


def _split(home: Workspace, group: str, folders: list[Path], wanted: dict[str, int | None]) -> Split:
    names = {home.alias_of(folder): folder.name for folder in folders}
    rows = [row for row in home.catalog.series(group=group) if row.source in names]
    patients = {row.series: row.patient for row in rows}
    out: set[str] = set()
    for name, count in wanted.items():
        there = sorted({patients[row.series] for row in rows if names[row.source] == name}, key=_hashed)
        out |= set(there if count is None else there[:count])
    volumes = {row.series: StoredVolume(home.volumes / row.series / row.volume_version) for row in rows}
    learn = {series: volume for series, volume in volumes.items() if patients[series] not in out}
    unseen = {series: volume for series, volume in volumes.items() if series not in learn}
    if not learn or not unseen:
        raise ValueError(f"{len(learn)} series to learn from, {len(unseen)} unseen: leave out something else")
    return Split(
        group=group,
        modality=rows[0].modality,
        learn=learn,
        unseen=unseen,
        patients=patients,
        names={row.series: names[row.source] for row in rows},
    )


def _parsed(name: str) -> tuple[str, int | None]:
    folder, _, count = name.partition("/")
    return folder, int(count) if count else None


def _hashed(patient: str) -> bytes:
    return hashlib.sha256(patient.encode()).digest()


def _names(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders)

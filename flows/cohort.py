"""Give many series back: named by pseudonym or as in BIDS, written side by side, and taken up where a run was ended."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from archive.catalog_schema import SeriesRow
from archive.errors import ConfigError, VoxbookError, describe
from archive.exported import LEDGER, LOCK, STAGED, Ledger, State
from archive.where import matches, parse
from archive.workspace import Workspace
from flows.cohort_pool import Job, Written, processes, written
from flows.export import DISCLAIMER, Tier, choose_tier
from tasks.progress import advance
from tasks.stage import Outcome

logger = logging.getLogger("voxbook")

Format = Literal["nifti", "dicom", "ome-zarr", "png"]
Naming = Literal["pseudonym", "bids"]
SUFFIX: dict[str, str] = {"nifti": ".nii.gz", "dicom": "", "ome-zarr": ".ome.zarr", "png": ".png"}
DAMAGE = ("DAMAGED", "MISSING", "WRONG_MODEL")
BIDS_VERSION = "1.10.0"
# BIDS has folders for MR and PET; those of other modalities are beside the standard, and .bidsignore says so.
BIDS_FOLDERS = {"MR": ("anat", "MR"), "PT": ("pet", "pet"), "CT": ("ct", "ct")}


def export_many(
    workspace: Workspace,
    out: Path,
    *,
    series: Sequence[str] = (),
    group: str | None = None,
    where: str | None = None,
    format: Format = "nifti",
    naming: Naming = "pseudonym",
    tier: Tier = "auto",
    levels: int | None = None,
    roi: str | None = None,
    jobs: int | None = None,
) -> Outcome:
    """Write series into a folder; without series, group and where: all of them.

    What lies there already, of the same version and options, is left as it is; an older export stays until the new one
    is whole; what voxbook did not write, or somebody has changed since, is never touched (OCCUPIED). A series that
    fails is counted by its reason, and the others go on. jobs: processes that write side by side; None: one per core
    as far as memory goes. Raises ConfigError BAD_USAGE, StoreError NOT_FOUND (a series that there is not),
    TransientError LEASED (another export writes into this folder).
    """
    if format not in SUFFIX or naming not in ("pseudonym", "bids"):
        raise ConfigError("BAD_USAGE", "--format is nifti, dicom, ome-zarr or png; --naming is pseudonym or bids")
    if tier == "volume" and levels is not None:
        raise ConfigError("BAD_USAGE", "--levels is for codes; the volume tier has none", hint="--tier codes")
    if out.is_file():
        raise ConfigError("OCCUPIED", f"{out} is a file", hint="name a folder")
    rows = chosen(workspace, series, group, where)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    counts, reasons = Counter(series=len(rows)), Counter[str]()
    problems: list[dict[str, Any]] = []
    with Ledger(out) as ledger:
        if naming == "bids":
            _describe(out)
        todo = []
        for row in rows:
            try:
                job = _job(workspace, row, ledger, out / name_of(row, format, naming), tier, levels, roi)
                state = _state(ledger, job, naming)
            except VoxbookError as error:
                _refused(row.series, error.code, counts, reasons, problems)
                continue
            if state == "done":
                counts["unchanged"] += 1
            elif state == "foreign":
                _refused(row.series, "OCCUPIED", counts, reasons, problems)
            else:
                todo.append(job)
        count = min(len(todo), jobs or processes())
        for number, done in enumerate(written(iter(todo), count), 1):
            code = done.code or _publish(ledger, done, naming)
            if code:
                _refused(done.job.series, code, counts, reasons, problems)
            else:
                counts["written"] += 1
                counts["bytes_out"] += done.told["bytes"]
            advance("decode", number, len(todo), "series")
    told = f"decode: {counts['written']} series written as {format}, {counts['unchanged']} as they were"
    failed = f", {counts['failed']} not: {', '.join(sorted(reasons))}" if counts["failed"] else ""
    keys = ("series", "written", "unchanged", "failed", "bytes_out")
    return Outcome(
        verb="decode",
        run="",
        counts={key: counts[key] for key in keys} | {"out": str(out), "format": format},
        reasons=dict(reasons),
        sentence=f"{told}{failed}",
        found=bool(rows),
        quarantined=sum(count for code, count in reasons.items() if code not in DAMAGE),
        damaged=sum(reasons[code] for code in DAMAGE),
        problems=tuple(problems),
    )


def chosen(workspace: Workspace, series: Sequence[str], group: str | None, where: str | None) -> list[SeriesRow]:
    """The series that are meant, in the order of their names; those that hold nothing to give are left out."""
    named = {workspace.catalog.one(name).series for name in series}
    rows = [row for row in workspace.catalog.series(group=group) if not named or row.series in named]
    if where:
        condition = parse(where)
        certificates = {row.series: row for row in workspace.catalog.certificates()}
        rows = [row for row in rows if matches(condition, row, certificates.get(row.series))]
    return sorted((row for row in rows if row.volume_version or row.codes_version), key=lambda row: row.series)


def name_of(row: SeriesRow, format: Format, naming: Naming) -> Path:
    """Where a series goes, below the folder: pseudonyms only."""
    if naming == "pseudonym":
        return Path(row.series + SUFFIX[format])
    folder, suffix = BIDS_FOLDERS.get(row.modality, ("other", row.modality.lower()))
    subject = f"sub-{row.patient[:12]}"
    return Path(subject) / folder / f"{subject}_acq-{row.series[:12]}_{suffix}{SUFFIX[format]}"


def _job(
    workspace: Workspace, row: SeriesRow, ledger: Ledger, target: Path, tier: Tier, levels: int | None, roi: str | None
) -> Job:
    use = choose_tier(row, tier)
    version = row.codes_version if use == "codes" else row.volume_version
    # With auto some series come from their volumes, which have no levels.
    levels = levels if use == "codes" or tier == "volume" else None
    key = json.dumps([row.series, use, version, levels, roi])
    return Job(workspace.root, row.series, ledger.staged(target), target, key, use, levels, roi)


def _state(ledger: Ledger, job: Job, naming: Naming) -> State:
    """Of the file and, where it has one, of its sidecar."""
    targets = [job.target, *([_sidecar(job.target)] if _has_sidecar(job, naming) else [])]
    states = {ledger.state(target, job.key) for target in targets}
    for state in ("foreign", "absent", "ours"):
        if state in states:
            return state
    return "done"


def _publish(ledger: Ledger, done: Written, naming: Naming) -> str:
    """Put what was written in its place, the sidecar first; the reason code where that cannot be."""
    job = done.job
    try:
        if _has_sidecar(job, naming):
            sidecar = _sidecar(job.target)
            ledger.staged(sidecar).write_text(json.dumps({**done.told, "note": DISCLAIMER}, indent=1) + "\n")
            ledger.publish(sidecar, job.series, job.key)
        ledger.publish(job.target, job.series, job.key)
        return ""
    except VoxbookError as error:
        return error.code
    except OSError as error:
        logger.warning("series %s is not written: %s", job.series, describe(error))
        return "NOT_WRITABLE"


def _has_sidecar(job: Job, naming: Naming) -> bool:
    """BIDS wants a JSON file beside a NIfTI; other formats hold all of it themselves."""
    return naming == "bids" and job.target.name.endswith(SUFFIX["nifti"])


def _sidecar(target: Path) -> Path:
    return target.with_name(target.name.removesuffix(SUFFIX["nifti"]) + ".json")


def _refused(
    series: str, code: str, counts: Counter[str], reasons: Counter[str], problems: list[dict[str, Any]]
) -> None:
    counts["failed"] += 1
    reasons[code] += 1
    problems.append({"series": series, "reason": code})


def _describe(out: Path) -> None:
    """dataset_description.json and .bidsignore, once."""
    described = {
        "Name": "Series given back by voxbook",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "voxbook", "Description": f"Pseudonymous; {DISCLAIMER}."}],
    }
    for name, text in (
        ("dataset_description.json", json.dumps(described, indent=1) + "\n"),
        (".bidsignore", f"{LEDGER}\n{LOCK}\n{STAGED}/\n**/ct/\n**/other/\n**/*_MR.*\n"),
    ):
        path = out / name
        if not path.exists():
            draft = path.with_name(f".{name}.{os.getpid()}.part")
            draft.write_text(text)
            draft.replace(path)

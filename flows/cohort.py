"""Give many series back: named by pseudonym or as in BIDS, written side by side, and taken up where a run was ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from archive.catalog_schema import SeriesRow
from archive.errors import ConfigError, VoxbookError
from archive.where import matches, parse
from archive.workspace import Workspace
from flows.export import DISCLAIMER, Tier, choose_tier, export
from tasks.progress import advance
from tasks.stage import Outcome

Format = Literal["nifti", "dicom", "ome-zarr", "png"]
Naming = Literal["pseudonym", "bids"]
SUFFIX: dict[str, str] = {"nifti": ".nii.gz", "dicom": "", "ome-zarr": ".ome.zarr", "png": ".png"}
LEDGER = ".voxbook-export.jsonl"
DAMAGE = ("DAMAGED", "MISSING", "WRONG_MODEL")
BIDS_VERSION = "1.10.0"
# BIDS has folders for MR and PET; those of other modalities are beside the standard, and .bidsignore says so.
BIDS_FOLDERS = {"MR": ("anat", "MR"), "PT": ("pet", "pet"), "CT": ("ct", "ct")}


@dataclass(frozen=True)
class Job:
    """One series to write: where, and everything that decides what the file holds (`key`)."""

    workspace: Path
    series: str
    target: Path
    key: str
    tier: Tier
    levels: int | None
    roi: str | None


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

    What lies there already, of the same version and options, is left as it is; what an ended run left half-way is made
    again; what voxbook did not write is never touched (OCCUPIED). A series that fails is counted by its reason, and the
    others go on. jobs: processes that write side by side; None: one per core.
    Raises ConfigError BAD_USAGE, StoreError NOT_FOUND (a series that there is not).
    """
    if format not in SUFFIX or naming not in ("pseudonym", "bids"):
        raise ConfigError("BAD_USAGE", "--format is nifti, dicom, ome-zarr or png; --naming is pseudonym or bids")
    if tier == "volume" and levels is not None:
        raise ConfigError("BAD_USAGE", "--levels is for codes; the volume tier has none", hint="--tier codes")
    if out.is_file():
        raise ConfigError("OCCUPIED", f"{out} is a file", hint="name a folder")
    rows = chosen(workspace, series, group, where)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    if naming == "bids":
        _describe(out)
    ledger = Ledger(out)
    todo, counts, reasons = [], Counter(series=len(rows)), Counter[str]()
    problems: list[dict[str, Any]] = []
    for row in rows:
        target = out / name_of(row, format, naming)
        try:
            job = _job(workspace, row, target, tier, levels, roi)
        except VoxbookError as error:
            _refused(row.series, error.code, counts, reasons, problems)
            continue
        state = ledger.state(target, job.key)
        if state == "done":
            counts["unchanged"] += 1
        elif state == "foreign":
            _refused(row.series, "OCCUPIED", counts, reasons, problems)
        else:
            todo.append(job)
    for number, (job, code) in enumerate(_run(todo, ledger, jobs or os.cpu_count() or 1), 1):
        if code:
            _refused(job.series, code, counts, reasons, problems)
        else:
            counts["written"] += 1
            counts["bytes_out"] += _size(job.target)
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


class Ledger:
    """What this folder holds of voxbook's: a line when a series is begun and one when it is there."""

    def __init__(self, out: Path) -> None:
        self.root, self.path = out, out / LEDGER
        self._begun: dict[str, str] = {}
        self._done: dict[str, str] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                entry = json.loads(line)
                kept = self._begun if entry["state"] == "begun" else self._done
                kept[entry["target"]] = entry["key"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by the end of a run

    def state(self, target: Path, key: str) -> Literal["absent", "done", "ours", "foreign"]:
        """done: as asked for. ours: of other options, or perhaps half-written. foreign: not by voxbook."""
        name = str(target.relative_to(self.root))
        if not target.exists():
            return "absent"
        if self._done.get(name) == key and self._begun.get(name) == key:
            return "done"
        return "ours" if name in self._begun else "foreign"

    def write(self, state: str, job: Job) -> None:
        """A line, on the disk before the work that it announces."""
        name = str(job.target.relative_to(self.root))
        (self._begun if state == "begun" else self._done)[name] = job.key
        with self.path.open("a") as file:
            file.write(json.dumps({"state": state, "target": name, "key": job.key}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _job(workspace: Workspace, row: SeriesRow, target: Path, tier: Tier, levels: int | None, roi: str | None) -> Job:
    use = choose_tier(row, tier)
    version = row.codes_version if use == "codes" else row.volume_version
    # With auto some series come from their volumes, which have no levels.
    levels = levels if use == "codes" or tier == "volume" else None
    key = json.dumps([row.series, use, version, levels, roi])
    return Job(workspace.root, row.series, target, key, use, levels, roi)


def _run(todo: Sequence[Job], ledger: Ledger, jobs: int) -> Iterator[tuple[Job, str]]:
    """Each job and its reason code, empty where it was written; processes, so that Python runs on every core."""
    if min(jobs, len(todo)) <= 1:
        for job in todo:
            _begin(job, ledger)
            code = write_one(job)
            _end(job, code, ledger)
            yield job, code
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), context, _start, (jobs,)) as pool:
        running: dict[Future[str], Job] = {}
        waiting = iter(todo)
        for job in _first(waiting, 2 * jobs):
            _begin(job, ledger)
            running[pool.submit(write_one, job)] = job
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                try:
                    code = future.result()
                except BrokenProcessPool:
                    code = "WORKER_KILLED"
                _end(job, code, ledger)
                yield job, code
                for more in _first(waiting, 1):
                    _begin(more, ledger)
                    try:
                        running[pool.submit(write_one, more)] = more
                    except BrokenProcessPool:
                        yield more, "WORKER_KILLED"
        for job in waiting:  # the pool broke: nothing of these was begun, and nobody may take them for written
            yield job, "WORKER_KILLED"


def write_one(job: Job) -> str:
    """Write one series; the reason code where that failed, else an empty string."""
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        done = export(Workspace.open(job.workspace), job.series, job.target, job.tier, job.levels, job.roi)
        if job.target.parent.parent.name.startswith("sub-"):
            _sidecar(job, done.as_dict())
        return ""
    except VoxbookError as error:
        return error.code
    except OSError:
        return "NOT_WRITABLE"


def _begin(job: Job, ledger: Ledger) -> None:
    if ledger.state(job.target, job.key) == "ours":
        shutil.rmtree(job.target) if job.target.is_dir() else job.target.unlink()
    ledger.write("begun", job)


def _end(job: Job, code: str, ledger: Ledger) -> None:
    if not code:
        ledger.write("done", job)


def _start(jobs: int) -> None:
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def _first(items: Iterator[Job], count: int) -> Iterable[Job]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def _refused(
    series: str, code: str, counts: Counter[str], reasons: Counter[str], problems: list[dict[str, Any]]
) -> None:
    counts["failed"] += 1
    reasons[code] += 1
    problems.append({"series": series, "reason": code})


def _size(target: Path) -> int:
    if target.is_dir():
        return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return target.stat().st_size if target.exists() else 0


def _sidecar(job: Job, told: dict[str, Any]) -> None:
    """The JSON beside a file, as BIDS wants it."""
    stem = job.target.name
    for suffix in SUFFIX.values():
        stem = stem.removesuffix(suffix) if suffix else stem
    (job.target.parent / f"{stem}.json").write_text(json.dumps({**told, "note": DISCLAIMER}, indent=1) + "\n")


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
        (".bidsignore", f"{LEDGER}\n**/ct/\n**/other/\n**/*_MR.*\n"),
    ):
        path = out / name
        if not path.exists():
            draft = path.with_name(f".{name}.{os.getpid()}.part")
            draft.write_text(text)
            draft.replace(path)

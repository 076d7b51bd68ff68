"""`voxbook demo`: the whole job on an embedded sample archive, or on one's own, and a table of what was done."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.errors import ConfigError
from archive.volume import Volume
from archive.workspace import Workspace
from flows import console
from flows.encode import encode
from flows.export import export, largest_difference
from flows.ingest import ingest
from flows.recording import run_stage
from flows.report import report
from flows.train import train
from flows.verify import verify
from tasks.stage import Outcome

TRAIN_SECONDS = 230  # the sample's models are shown to work, not to be good
FLOOR_SECONDS = 20
SAMPLE = "sample-archive"


@dataclass(frozen=True)
class Returned:
    """One series decoded from both tiers: the volume tier against the source's store, the codes against it."""

    group: str
    series: str
    shape: str
    volume_error: float
    codes_error: float
    units: str


def run_demo(root: Path, source: Path | None, settings: list[str], as_json: bool) -> int:
    """Run every stage on `source`, or on a sample archive written into the workspace; returns the exit code.

    With a workspace that holds an earlier demo it goes on from there: nothing is done twice.
    """
    if source is None:
        source = write_sample(root)
        settings = [f"train.max_seconds={TRAIN_SECONDS}", f"train.floor_seconds={FLOOR_SECONDS}", *settings]
    if not source.exists():
        raise ConfigError("BAD_USAGE", "--source does not exist", hint="check the path")
    alias = Workspace.open(root, settings, create=True).register_source(source)
    base: dict[str, Any] = {"workspace": str(root), "settings": settings}
    outcomes = [
        run_stage(ingest, console.notice, sources=[alias], **base),
        run_stage(train, console.notice, **base),
        run_stage(encode, console.notice, **base),
        run_stage(verify, console.notice, **{**base, "settings": [*settings, "verify.read_data=true"]}),
    ]
    started = time.monotonic()
    returned = decode_one_per_group(Workspace.open(root, settings))
    decode_seconds = time.monotonic() - started
    outcomes.append(run_stage(report, console.notice, **base))
    data = summary(root, outcomes, returned, decode_seconds)
    if as_json:
        console.emit(data)
    else:
        show(data, outcomes)
    if any(item.volume_error for item in returned):
        return console.DAMAGE
    worst = max(console.exit_code(outcome) for outcome in outcomes)
    # Files that the sample breaks on purpose are part of a demo that went well.
    return console.OK if source.name == SAMPLE and worst == console.QUARANTINED else worst


def write_sample(root: Path) -> Path:
    """The sample archive inside the workspace; written once."""
    from archive.sample import write_sample_archive

    folder = Workspace.open(root, create=True).root / SAMPLE
    if not folder.exists():
        console.notice("writing the sample archive")
        write_sample_archive(folder)
    return folder


def decode_one_per_group(workspace: Workspace) -> list[Returned]:
    """Give the largest series of every group back as NIfTI from both tiers, and measure what came back."""
    returned = []
    rows = workspace.catalog.series(states=["encoded", "quality_failed"])
    # Colour has no plain place in NIfTI.
    largest = {row.group: row for row in sorted(rows, key=lambda row: row.voxels) if "c" not in row.axes}
    with tempfile.TemporaryDirectory(dir=workspace.root) as folder:
        for group, row in sorted(largest.items()):
            source = _stored(workspace, row.series)
            exact = Path(folder) / f"{row.series}-volume.nii.gz"
            coded = Path(folder) / f"{row.series}-codes.nii.gz"
            export(workspace, row.series, exact, "volume")
            export(workspace, row.series, coded, "codes")
            returned.append(
                Returned(
                    group=group,
                    series=row.series,
                    shape="x".join(map(str, row.shape)),
                    volume_error=largest_difference(source, _nifti(exact, source)),
                    codes_error=largest_difference(source, _nifti(coded, source)),
                    units=row.units,
                )
            )
    return returned


def summary(root: Path, outcomes: list[Outcome], returned: list[Returned], decode_seconds: float) -> dict[str, Any]:
    """The JSON of a demo: every stage's own, a row per group, and what came back."""
    from flows.inspection import describe

    entries = describe(Workspace.open(root))["series"]
    certificates = {row.series: row.data for row in Workspace.open(root).catalog.certificates()}
    voxels = {row.series: row.voxels for row in Workspace.open(root).catalog.series()}
    groups = []
    for name in sorted({entry["group"] for entry in entries}):
        members = [entry for entry in entries if entry["group"] == name]
        measured = [entry for entry in members if entry["psnr"] is not None]
        groups.append(
            {
                "group": name,
                "series": len(members),
                "voxels": sum(voxels[entry["series"]] for entry in members),
                "ratio": _mean([certificates[entry["series"]]["ratio"] for entry in measured]),
                "psnr": _mean([entry["psnr"] for entry in measured]),
                "ssim": _mean([entry["ssim"] for entry in measured if entry["ssim"] is not None]),
                "bits_per_voxel": _mean([entry["bits_per_voxel"] for entry in measured]),
            }
        )
    stages = {outcome.verb: outcome.as_dict() for outcome in outcomes}
    stages["decode"] = {"series": len(returned), "seconds": round(decode_seconds, 3)}
    return {
        "verb": "demo",
        "run": outcomes[-1].run,
        "report": outcomes[-1].counts["report"],
        "groups": groups,
        "decoded": [item.__dict__ for item in returned],
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
    }


def show(data: dict[str, Any], outcomes: list[Outcome]) -> None:
    """The same for people."""
    for outcome in outcomes:
        sys.stdout.write(f"{outcome.sentence}\n")
    kept = ("group", "series", "voxels", "ratio", "psnr", "ssim", "bits_per_voxel")
    console.table(kept, [[group[key] for key in kept] for group in data["groups"]], "\nwhat the codes keep")
    back = ("group", "series", "shape", "volume_error", "codes_error", "units")
    rows = [[item[key][:12] if key == "series" else item[key] for key in back] for item in data["decoded"]]
    console.table(back, rows, "\nwhat comes back, largest error of any voxel")
    times = [(name, float(stage["seconds"])) for name, stage in data["stages"].items()]
    console.table(("stage", "seconds"), [*times, ("together", data["seconds"])], "\nhow long it took")
    sys.stdout.write(f"\nreport: {data['report']}\nNot for diagnostic use.\n")


def _stored(workspace: Workspace, series: str) -> Volume:
    from archive.workspace import open_volumes

    return open_volumes(workspace)[series].read()


def _nifti(path: Path, like: Volume) -> Volume:
    """A NIfTI that `export` wrote, read as any other one is, in the source's shape."""
    from archive import read_series, scan

    back = read_series(scan(path).plans[0])
    return like.with_voxels(like.from_values(back.values().reshape(like.voxels.shape)))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

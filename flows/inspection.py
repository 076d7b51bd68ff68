"""What `voxbook inspect` shows; reads the catalog only, imports neither torch nor Prefect."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from archive.catalog_schema import CertificateRow, RunRow, SeriesRow
from archive.errors import REASONS, ConfigError, StoreError
from archive.glance import Answers, glance
from archive.workspace import Workspace
from flows.console import table

RUNS, RUNS_SHOWN = "runs", 20
_RUN = re.compile(r"\d{8}T")  # how a run's id begins; no pseudonym has a T
_PLAIN = re.compile(r"[0-9a-fT-]{1,64}$")  # of what is asked for, only what can be no name of a person is said again
ELSE = "voxbook inspect -w WS lists series and models, voxbook inspect -w WS runs the last runs"

MODEL = {  # what is known of a model, in the words of people; figures are those of its training's measured sample
    "model": "model",
    "group": "group",
    "preset": "preset",
    "current": "current",
    "created_at": "made",
    "series": "series of the group",
    "voxels": "voxels of the group",
    "held_out_patients": "patients held out",
    "psnr": "PSNR, dB",
    "psnr_worst_decile": "PSNR of the worst tenth, dB",
    "ssim": "SSIM",
    "bits_per_voxel": "bits per voxel, entropy of the codes",
    "codebook_use": "codebook use, in the slices measured after training",
    "steps": "steps",
    "seconds": "seconds",
    "ended_by": "ended by",
    "steps_skipped": "steps skipped",
    "rollbacks": "rollbacks",
}
CERTIFICATE = {
    "psnr": "PSNR, dB (999: exact)",
    "ssim": "SSIM",
    "peak": "range that PSNR and SSIM refer to",
    "peak_low": "its low end",
    "peak_high": "its high end",
    "clipped": "values were clipped to it",
    "mean_error": "mean absolute error",
    "max_error": "largest absolute error",
    "units": "units of the errors",
    "perplexity": "codebook perplexity, level by level",
    "codebook_use": "codebook use, share of codes that occur here",
    "level_use": "codebook use, level by level",
    "bits_per_voxel": "bits per voxel",
    "ratio": "bytes of the voxels to bytes on disk, to 1",
    "jpeg2000_psnr": "PSNR of JPEG 2000 at the same bytes, dB",
    "codes_psnr_there": "PSNR of the codes on those slices, dB",
    "passed": "passed the gate",
    "reasons": "what the gate found",
    "model": "model",
    "levels": "levels of codes",
    "profile": "profile",
    "source_version": "version of the volume",
    "voxels": "voxels",
    "slices": "slices",
    "checked_slices": "slices measured against the source",
    "checked_voxels": "voxels measured against the source",
    "sampled_by": "seed that chose the slices (none: all)",
    "rung": "rung of the gate's ladder",
    "rungs": "rungs tried",
    "unlike": "unlike the training, 0 alike to 1, by codes",
    "unlike_distances": "the same by distances of the latents",
}


def describe(workspace: Workspace, item: str | None = None) -> dict[str, Any]:
    """The JSON of inspect: series, models, quarantine and the newest run; of one item its full record as well.

    item: a series or model by the beginning of its name, a run likewise, `runs` for the last 20 of them. Raises
    StoreError NOT_FOUND.
    """
    catalog = glance(workspace)
    runs = catalog.runs()
    last = runs[-1].run if runs else None
    if item is not None and (item == RUNS or _RUN.match(item)):
        found = runs[-RUNS_SHOWN:] if item == RUNS else [run for run in runs if run.run.startswith(item)]
        if not found:
            hint = "voxbook inspect -w WS runs shows the last of them"
            raise StoreError(
                "NOT_FOUND", f"no run begins with {item}" if _PLAIN.match(item) else "no such run", hint=hint
            )
        return {"series": [], "models": [], "quarantine": [], "run": last, "runs": [run_entry(run) for run in found]}
    if item is None:
        rows, models = catalog.series(), catalog.models()
    else:
        rows, models = _find(catalog, item)
    named = rows[0].series if item is not None and rows else None
    certificates = {row.series: row for row in catalog.certificates(named)} if rows else {}
    encodings = catalog.encodings(named) if named else catalog.encodings(current_only=True)
    current = {row.version: row for row in encodings}
    codes = Counter(row.code for row in catalog.quarantine()) if item is None else Counter[str]()
    data: dict[str, Any] = {
        "series": [
            series_entry(row, certificates.get(row.series), current.get(row.codes_version or "")) for row in rows
        ],
        "models": [
            {
                "model": row.model,
                "group": row.group,
                "preset": row.preset,
                "current": row.current,
                "created_at": str(row.created_at),
                "card": str(workspace.models / row.model / "README.md"),
                **row.summary,
            }
            for row in models
        ],
        "quarantine": [{"code": code, "count": count} for code, count in codes.most_common()],
        "run": last,
    }
    if named:
        certificate = certificates.get(named)
        data["certificate"] = certificate.data if certificate else None
        data["encodings"] = [
            {"version": row.version, "model": row.model, "profile": row.profile, "bytes": row.bytes}
            for row in encodings
        ]
    return data


def run_entry(run: RunRow) -> dict[str, Any]:
    """One run of the JSON: what it was, when, how it ended, and what it counted."""
    return {
        "run": run.run,
        "verb": run.verb,
        "state": run.state,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "counts": run.counts,
    }


def series_entry(row: SeriesRow, certificate: CertificateRow | None, encoding: Any) -> dict[str, Any]:
    """One series of the JSON; bits_per_voxel is what lies on disk, everything counted."""
    bits = certificate.data.get("bits_per_voxel", {}) if certificate else {}
    return {
        "series": row.series,
        "patient": row.patient,
        "group": row.group,
        "modality": row.modality,
        "shape": list(row.shape),
        "dtype": row.dtype,
        "spacing_mm": list(row.spacing_mm),
        "units": row.units,
        "state": row.state,
        "reason": row.reason,
        "version": row.codes_version or row.volume_version,
        "volume_version": row.volume_version,
        "codes_version": row.codes_version,
        "model": encoding.model if encoding else None,
        "psnr": certificate.psnr if certificate else None,
        "ssim": certificate.ssim if certificate else None,
        "bits_per_voxel": bits.get("disk"),
        "bits_per_voxel_fixed": bits.get("fixed"),
        "bits_per_voxel_entropy": bits.get("entropy"),
        "expired": certificate.expired if certificate else None,
        "rung": certificate.data.get("rung") if certificate else None,
        "unlike": certificate.data.get("unlike") if certificate else None,
    }


def show(data: dict[str, Any]) -> None:
    """The same for people."""
    if data["series"]:
        columns: Sequence[str] = (
            "series",
            "group",
            "shape",
            "dtype",
            "spacing_mm",
            "state",
            "psnr",
            "ssim",
            "bits_per_voxel",
            "rung",
            "unlike",
        )
        table(columns, [_series_row(entry) for entry in data["series"]])
    if data["models"] and not data["series"] and len(data["models"]) == 1:
        _show_model(data["models"][0])
    elif data["models"]:
        columns = ("model", "group", "preset", "current", "psnr")
        table(columns, [[_cell(entry.get(key), key) for key in columns] for entry in data["models"]])
    if data["quarantine"]:
        refused = [(entry["code"], entry["count"], REASONS[entry["code"]].hint) for entry in data["quarantine"]]
        table(("quarantine", "count", "what to do"), refused)
    if data.get("certificate"):
        told = [(CERTIFICATE.get(key, key), _told(value)) for key, value in data["certificate"].items()]
        table(("certificate", "value"), told)
    if data.get("runs"):
        rows = [
            (run["run"], run["verb"], run["state"], run["started_at"], run["ended_at"] or "", _told(run["counts"]))
            for run in data["runs"]
        ]
        table(("run", "verb", "state", "started", "ended", "counts"), rows)
    if not data["series"] and not data["models"] and not data.get("runs"):
        sys.stdout.write("inspect: the workspace is empty\n")


def _show_model(entry: dict[str, Any]) -> None:
    told = [(words, _told(entry[key])) for key, words in MODEL.items() if entry.get(key) is not None]
    table(("what", "value"), told)
    if entry.get("held_out_patients") == 0:
        sys.stdout.write("measured on patients of the training: too few to hold any out\n")
    sys.stdout.write(f"card: {entry['card']}\n")  # outside the table, which would break the path


def _series_row(entry: dict[str, Any]) -> list[Any]:
    return [
        entry["series"][:12],
        entry["group"],
        "x".join(map(str, entry["shape"])),
        entry["dtype"],
        "x".join(f"{size:.3g}" for size in entry["spacing_mm"]),
        entry["state"] + (f" ({entry['reason']})" if entry["reason"] else ""),
        entry["psnr"],
        entry["ssim"],
        entry["bits_per_voxel"],
        entry["rung"],
        entry["unlike"],
    ]


def _told(value: Any) -> str:
    """A figure, or several, as people read them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(_told(one) for one in value)
    return "" if value is None else str(value)


def _cell(value: Any, key: str) -> Any:
    if key == "model":
        return value[:12]
    return ("yes" if value else "") if key == "current" else value


def find_uid(workspace: Workspace, uid: str) -> str:
    """The series of an original SeriesInstanceUID, from the linkage; raises StoreError NOT_FOUND."""
    found = workspace.linkage.find_uid(uid)
    if not found:
        raise StoreError("NOT_FOUND", "no series of that UID is known")
    if len(found) > 1:
        raise ConfigError("BAD_USAGE", f"that UID was split into {len(found)} series", hint=", ".join(found))
    return found[0]


def show_identity(workspace: Workspace, item: str | None) -> None:
    """Original identifiers of one series, or the files refused by a reason code, for the person on call."""
    if item is None:
        raise ConfigError("BAD_USAGE", "--reveal needs a SERIES, or a reason code such as TRUNCATED")
    if item in REASONS:
        for alias, path in workspace.linkage.refused(item):
            sys.stdout.write(f"{alias}: {path}\n")
        return
    row = workspace.catalog.one(item)
    for name, value in workspace.linkage.reveal(row.series).items():
        sys.stdout.write(f"{name}: {value}\n")


def _find(catalog: Answers, item: str) -> tuple[list[SeriesRow], list[Any]]:
    try:
        return [catalog.one(item)], []
    except StoreError as series_error:
        try:
            return [], [catalog.model(item)]
        except StoreError as model_error:
            several = [error for error in (series_error, model_error) if error.message.startswith("several")]
            raise (several or [_missing(item)])[0] from None


def _missing(item: str) -> StoreError:
    """What was asked for, if that may be said, and what else there is to ask."""
    if item in REASONS:
        hint = f"voxbook inspect -w WS {item} --reveal tells which files, on a terminal"
        return StoreError("NOT_FOUND", f"{item} is a reason code: {REASONS[item].text}", hint=hint)
    if re.fullmatch(r"\d+(\.\d*)+", item):
        return StoreError("NOT_FOUND", "that is a UID, no pseudonym", hint="voxbook inspect -w WS --uid UID finds it")
    if not _PLAIN.match(item):
        return StoreError("NOT_FOUND", "names of series and models have digits 0 to 9 and a to f only", hint=ELSE)
    return StoreError("NOT_FOUND", f"no series or model begins with {item}", hint=ELSE)

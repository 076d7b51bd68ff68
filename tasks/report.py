"""What a report shows, from the catalog; and pictures of the worst series, from the stores."""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import logging
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archive.catalog_schema import CertificateRow, SeriesRow
from archive.codes import StoredCodes
from archive.errors import REASONS, VoxbookError
from archive.volumes import StoredVolume
from model.bundle import load
from model.decoded import DecodedVolume
from model.fidelity import worst_decile
from tasks.figures import figures
from tasks.report_changes import changes, last_report
from tasks.stage import Stage, recorded

logger = logging.getLogger("voxbook")

WORST = 20
OF_THE_JOB = ("ingest", "train", "encode", "verify", "repair")  # whose failure makes the headline
PACKAGES = ("prefect", "dask", "distributed", "torch", "zarr", "pydicom", "nibabel", "numpy", "sqlalchemy")


@recorded("gather")
def gather(stage: Stage) -> dict[str, Any]:
    """Everything of report.json: summary, groups, series, quarantine, models, rates, stages, settings, versions."""
    rows = stage.catalog.series()
    certificates = {row.series: row for row in stage.catalog.certificates()}
    quarantine: collections.Counter[str] = collections.Counter()
    for refused in stage.catalog.quarantine():
        quarantine[refused.code] += 1
    states = collections.Counter(row.state for row in rows)
    stored = [*stage.catalog.volumes_stored(), *stage.catalog.codes_stored()]
    damage = collections.Counter(version.damage for version in stored)
    current = {row.group: row.model for row in stage.catalog.models() if row.current}
    gates = {name: stage.settings.gate_of(name).model_dump(exclude_none=True) for name in {row.group for row in rows}}
    report: dict[str, Any] = {
        "title": "voxbook report",
        "workspace": stage.workspace.root.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "run": stage.run,
        "summary": {
            "series": len(rows),
            "encoded": states["encoded"],
            "ingested": states["ingested"],
            "quality_failed": states["quality_failed"],
            "stale": states["stale"],
            "quarantined": sum(quarantine.values()),
            "damaged": damage["DAMAGED"],
            "missing": damage["MISSING"],
            "voxels": sum(row.voxels for row in rows),
        },
        "stages": [_stage(run) for run in stage.catalog.runs() if run.ended_at and run.verb != "report"][-12:],
        "last": last_outcomes(stage.catalog.runs()),
        "groups": [
            _group([row for row in rows if row.group == name], certificates, name, gates[name], current.get(name))
            for name in sorted(gates)
        ],
        "series": [_series(row, certificates.get(row.series)) for row in rows],
        "quarantine": [
            {"code": code, "count": count, "text": REASONS[code].text, "hint": REASONS[code].hint}
            for code, count in quarantine.most_common()
        ],
        "models": [
            {"model": row.model, "group": row.group, "preset": row.preset, "current": row.current, **row.summary}
            for row in stage.catalog.models()
        ],
        "rate": [_rate(row, certificates[row.series]) for row in rows if row.series in certificates],
        "settings": stage.settings.model_dump(mode="json", exclude={"sources", "database", "linkage"}),
        "versions": versions(),
    }
    report["changes"] = changes(last_report(stage.workspace.reports, stage.run), report)
    return report


@recorded("figures")
def gather_figures(stage: Stage, data: dict[str, Any]) -> list[dict[str, Any]]:
    """The worst series with their pictures: those below the gate first, then by PSNR."""
    measured = [entry for entry in data["series"] if entry["psnr"] is not None]
    worst = sorted(measured, key=lambda entry: (entry["state"] != "quality_failed", entry["psnr"]))[:WORST]
    return [{**entry, "figures": _figures(stage, entry["series"])} for entry in worst]


def _figures(stage: Stage, series: str) -> list[dict[str, Any]]:
    """tasks.figures.figures of a series; empty where its stores are damaged or it has gone: one never ends the report."""
    workspace = stage.workspace
    try:
        row = stage.catalog.one(series)
        original = StoredVolume(workspace.volumes / row.series / (row.volume_version or ""))
        codes = StoredCodes(workspace.codes / row.series / (row.codes_version or ""))
        model = codes.attributes["model"]
        return figures(original, DecodedVolume(load(workspace.models / model, model), codes), row.modality)
    except VoxbookError as error:
        logger.warning("series %s has no picture in the report: %s; %s", series[:12], error.code, error.hint)
    except Exception as error:  # what a damaged file makes a library raise is of any kind; its text may hold a path
        logger.warning("series %s has no picture in the report: %s", series[:12], type(error).__name__)
    return []


def _series(row: SeriesRow, certificate: CertificateRow | None) -> dict[str, Any]:
    data = certificate.data if certificate else {}
    return {
        "series": row.series,
        "group": row.group,
        "modality": row.modality,
        "shape": list(row.shape),
        "state": row.state,
        "psnr": data.get("psnr"),
        "ssim": data.get("ssim"),
        "bits_per_voxel_disk": data.get("bits_per_voxel", {}).get("disk"),
        "jpeg2000_psnr": data.get("jpeg2000_psnr"),
        "max_error": data.get("max_error"),
        "units": row.units,
        "rung": data.get("rung"),
        "unlike": data.get("unlike"),
        "codebook_use": data.get("codebook_use"),
        "reasons": data.get("reasons", []) or ([row.reason] if row.reason else []),
    }


def _group(
    rows: list[SeriesRow], certificates: dict[str, CertificateRow], name: str, gate: dict, current: str | None
) -> dict[str, Any]:
    data = [certificates[row.series].data for row in rows if row.series in certificates]
    bits = [entry["bits_per_voxel"] for entry in data]
    psnr = [entry["psnr"] for entry in data if entry["psnr"] is not None]
    return {
        "group": name,
        "series": len(rows),
        "voxels": sum(row.voxels for row in rows),
        "waiting": sum(row.state in ("ingested", "stale") for row in rows),
        "model": data[0]["model"] if data else None,
        "current_model": current,
        "psnr_mean": _mean(psnr),
        "psnr_worst_decile": worst_decile(psnr) if psnr else None,
        "ssim_mean": _mean([entry["ssim"] for entry in data if entry["ssim"] is not None]),
        "bits_per_voxel_fixed": _mean([entry["fixed"] for entry in bits]),
        "bits_per_voxel_entropy": _mean([entry["entropy"] for entry in bits]),
        "bits_per_voxel_disk": _mean([entry["disk"] for entry in bits]),
        "ratio": _mean([entry["ratio"] for entry in data]),
        "modalities": sorted({row.modality for row in rows}),
        "codebook": [
            _codebook(
                modality,
                [certificates[r.series].data for r in rows if r.modality == modality and r.series in certificates],
            )
            for modality in sorted({row.modality for row in rows})
        ],
        "rungs": dict(collections.Counter(entry.get("rung", "codes") for entry in data)),
        "passed": sum(bool(entry["passed"]) for entry in data),
        "failed": sum(not entry["passed"] for entry in data),
        "gate": gate,
    }


def _codebook(modality: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """How one modality uses the group's codebook: share of codes seen in a series, and perplexity level by level."""
    depth = max((len(entry["perplexity"]) for entry in data), default=0)
    return {
        "modality": modality,
        "series": len(data),
        "use": _mean([entry["codebook_use"] for entry in data]),
        "perplexity": [
            _mean([entry["perplexity"][level] for entry in data if level < len(entry["perplexity"])])
            for level in range(depth)
        ],
    }


def _rate(row: SeriesRow, certificate: CertificateRow) -> dict[str, Any]:
    data = certificate.data
    return {
        "series": row.series,
        "group": row.group,
        "bits_per_voxel": data["bits_per_voxel"]["disk"],
        "psnr": data["psnr"],
        "jpeg2000_psnr": data.get("jpeg2000_psnr"),
    }


def _stage(run: Any) -> dict[str, Any]:
    return {"stage": run.verb, "run": run.run, "state": run.state, **run.counts}


def last_outcomes(runs: Sequence[Any]) -> list[dict[str, Any]]:
    """How each verb's latest run ended: [{stage, run, state, why}]; state `running` where it has not, or was killed."""
    latest = {run.verb: run for run in runs if run.verb in OF_THE_JOB}  # ordered by their start
    return [
        {
            "stage": run.verb,
            "run": run.run,
            "state": run.state if run.ended_at else "running",
            "why": str(run.counts.get("code") or run.counts.get("error") or ""),
        }
        for run in latest.values()
    ]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def versions() -> dict[str, str]:
    """Versions of what decides a result, and the commit of voxbook where it runs from a checkout."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    home = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() if git.returncode == 0 else "not a checkout"
    return {
        "voxbook": importlib.metadata.version("voxbook"),
        "git": commit,
        "python": platform.python_version(),
        **found,
    }

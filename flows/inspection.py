"""What `voxbook inspect` shows; reads the catalog only, imports neither torch nor Prefect."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from archive.catalog_schema import CertificateRow, SeriesRow
from archive.errors import REASONS, ConfigError, StoreError
from archive.workspace import Workspace
from flows.console import table


def describe(workspace: Workspace, item: str | None = None) -> dict[str, Any]:
    """The JSON of inspect: series, models, quarantine and the newest run; of one item its full record as well."""
    catalog = workspace.catalog
    certificates = {row.series: row for row in catalog.certificates()}
    if item is None:
        rows, models = catalog.series(), catalog.models()
    else:
        rows, models = _find(workspace, item)
    codes = Counter(row.code for row in catalog.quarantine())
    runs = catalog.runs()
    current = {row.version: row for row in catalog.encodings(current_only=True)}
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
                **row.summary,
            }
            for row in models
        ],
        "quarantine": [{"code": code, "count": count} for code, count in codes.most_common()],
        "run": runs[-1].run if runs else None,
    }
    if item is not None and rows:
        certificate = certificates.get(rows[0].series)
        data["certificate"] = certificate.data if certificate else None
        data["encodings"] = [
            {"version": row.version, "model": row.model, "profile": row.profile, "bytes": row.bytes}
            for row in catalog.encodings(rows[0].series)
        ]
    return data


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
        )
        table(columns, [_series_row(entry) for entry in data["series"]])
    if data["models"]:
        columns = ("model", "group", "preset", "current", "psnr")
        table(columns, [[_cell(entry.get(key), key) for key in columns] for entry in data["models"]])
    if data["quarantine"]:
        refused = [(entry["code"], entry["count"], REASONS[entry["code"]].hint) for entry in data["quarantine"]]
        table(("quarantine", "count", "what to do"), refused)
    if data.get("certificate"):
        table(("certificate", "value"), [(key, str(value)) for key, value in data["certificate"].items()])
    if not data["series"] and not data["models"]:
        sys.stdout.write("inspect: the workspace is empty\n")


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
    ]


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
    """Original identifiers of one series, for the person on call; reads the linkage."""
    if item is None:
        raise StoreError("NOT_FOUND", "--reveal needs a SERIES")
    row = workspace.catalog.one(item)
    for name, value in workspace.linkage.reveal(row.series).items():
        sys.stdout.write(f"{name}: {value}\n")


def _find(workspace: Workspace, item: str) -> tuple[list[SeriesRow], list[Any]]:
    try:
        return [workspace.catalog.one(item)], []
    except StoreError:
        return [], [workspace.catalog.model(item)]

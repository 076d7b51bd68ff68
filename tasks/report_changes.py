"""What a report says has changed since the one before it: two report.json, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN = 20  # series named of each kind; all are counted
DROP_DB = 0.5  # of PSNR from which on a series counts as worse or better


def last_report(reports: Path, run: str) -> dict[str, Any] | None:
    """report.json of the newest run before `run`; None where there is none that can be read."""
    found = []
    for path in reports.glob("*/report.json"):
        if path.parent.name == run:
            continue
        try:
            found.append((path.stat().st_mtime_ns, path))
        except OSError:
            continue  # erased meanwhile
    for _, path in sorted(found, reverse=True):
        try:
            data = json.loads(path.read_bytes())
            if isinstance(data, dict) and "series" in data:
                return data
        except (OSError, ValueError):
            continue
    return None


def changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """Series that came, went, changed state or fidelity, reasons and models that are new; None without a report before.

    Each kind is {"count", "series": the first 20}. Fidelity: by more than 0.5 dB.
    """
    if before is None:
        return None
    old = {entry["series"]: entry for entry in before.get("series", [])}
    new = {entry["series"]: entry for entry in now["series"]}
    both = sorted(set(old) & set(new))
    moved = {name: _gain(old[name], new[name]) for name in both}

    def failing(entry: Mapping[str, Any]) -> bool:
        return entry["state"] == "quality_failed"

    kinds = {
        "new": sorted(set(new) - set(old)),
        "gone": sorted(set(old) - set(new)),
        "now below the gate": [name for name in both if failing(new[name]) and not failing(old[name])],
        "no longer below the gate": [name for name in both if failing(old[name]) and not failing(new[name])],
        "worse": sorted((name for name in both if moved[name] < -DROP_DB), key=lambda name: moved[name]),
        "better": sorted((name for name in both if moved[name] > DROP_DB), key=lambda name: -moved[name]),
    }
    reasons = {entry["code"]: entry["count"] for entry in before.get("quarantine", [])}
    return {
        "since": before.get("created", ""),
        "run": before.get("run", ""),
        "series": {kind: {"count": len(names), "series": names[:SHOWN]} for kind, names in kinds.items() if names},
        "quarantine": {
            entry["code"]: entry["count"] - reasons.get(entry["code"], 0)
            for entry in now["quarantine"]
            if entry["count"] != reasons.get(entry["code"], 0)
        }
        | {code: -count for code, count in reasons.items() if code not in {e["code"] for e in now["quarantine"]}},
        "models": sorted(_current(now) - _current(before)),
    }


def _gain(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """dB that a series gained; 0 where either was not measured."""
    if old.get("psnr") is None or new.get("psnr") is None:
        return 0.0
    return float(new["psnr"]) - float(old["psnr"])


def _current(report: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(entry["group"], entry["model"]) for entry in report.get("models", []) if entry.get("current")}

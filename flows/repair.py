"""`voxbook repair`: codes whose bytes are damaged or gone are made again from the volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archive.catalog_schema import SeriesRow
from archive.verify import Checked
from archive.workspace import Workspace
from flows.encode import encode
from tasks.stage import Outcome, open_stage
from tasks.verify import verify_versions


def repair(root: Path, series: list[str], group: str | None, settings: list[str]) -> Outcome:
    """Check the current codes byte by byte and encode the series of damaged ones again.

    A damaged volume is not repaired here: its source holds the only other copy, and `ingest` reads it again. Volumes
    that codes must be made from are read whole; of the others files and sizes are looked at, and what `verify` noted.
    """
    with open_stage("repair", root, settings) as stage:
        rows = {row.series: row for row in stage.catalog.series(series, group=group)}
        codes = verify_versions(stage, "codes", {row.codes_version for row in rows.values()}, read_data=True)
        noted = {row.series for row in stage.catalog.volumes_stored() if row.damage}
        suspects = {found.series for found in codes} | (noted & rows.keys())
        thorough = {rows[name].volume_version for name in suspects}
        others = {row.volume_version for row in rows.values()} - thorough
        volumes = verify_versions(stage, "volume", thorough, read_data=True)
        volumes += verify_versions(stage, "volume", others, read_data=False)
        seconds, run = stage.seconds, stage.run
    lost = tuple(_problem(found, rows[found.series]) for found in volumes)
    unsafe = {found.series for found in volumes}
    # The catalog knows them as damaged now, so encode takes them for missing; a stale one is encoded anew.
    broken = sorted({found.series for found in codes} - unsafe)
    counts: dict[str, Any] = {"series": len(rows), "repaired": 0, "to_ingest": len(lost), "seconds": seconds}
    words = "repair: nothing new, all codes are whole" if not codes else "repair: no codes could be made again"
    done = None
    if broken:
        done = encode.fn(workspace=str(Workspace.open(root).root), series=broken, settings=settings)
        run = done.run
        counts |= {"repaired": done.counts["encoded"], "seconds": round(seconds + done.counts["seconds"], 3)}
        words = f"repair: codes of {done.counts['encoded']} of {len(codes)} series made again"
    if lost:
        sources = ", ".join(sorted({problem["source"] for problem in lost}))
        words += f"; {len(lost)} volumes are damaged or gone: voxbook ingest reads them again from {sources}"
    return Outcome(
        verb="repair",
        run=run,
        counts=counts,
        reasons=done.reasons if done else {},
        sentence=words,
        quarantined=done.quarantined if done else 0,
        below_gate=done.below_gate if done else 0,
        damaged=len(lost) + (done.damaged if done else 0),
        problems=lost,
    )


def _problem(found: Checked, row: SeriesRow) -> dict[str, Any]:
    return {
        "series": found.series, "tier": "volume", "version": found.version, "code": found.code, "source": row.source
    }  # fmt: skip

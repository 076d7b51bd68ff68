"""`voxbook repair`: codes whose bytes are damaged or gone are made again from the volumes."""

from __future__ import annotations

from pathlib import Path

from archive.workspace import Workspace
from flows.encode import encode
from tasks.stage import Outcome, open_stage
from tasks.verify import verify_codes


def repair(root: Path, series: list[str], group: str | None, settings: list[str]) -> Outcome:
    """Check the current codes byte by byte and encode the series of damaged ones again.

    A damaged volume is not repaired here: its source holds the only other copy, and `ingest` reads it again.
    """
    with open_stage("repair", root, settings) as stage:
        rows = stage.catalog.series(series, group=group)
        broken = verify_codes(stage, {row.codes_version for row in rows if row.codes_version})
    if not broken:
        counts = {"series": len(rows), "repaired": 0, "seconds": stage.seconds}
        return Outcome("repair", stage.run, counts, sentence="repair: nothing new, all codes are whole")
    # The catalog knows them as damaged now, so encode takes them for missing; a stale one is encoded anew.
    outcome = encode.fn(workspace=str(Workspace.open(root).root), series=broken, settings=settings)
    return Outcome(
        verb="repair",
        run=outcome.run,
        counts={"series": len(rows), "repaired": outcome.counts["encoded"], "seconds": outcome.counts["seconds"]},
        reasons=outcome.reasons,
        sentence=f"repair: codes of {outcome.counts['encoded']} of {len(broken)} series made again",
        quarantined=outcome.quarantined,
        below_gate=outcome.below_gate,
        damaged=outcome.damaged,
    )

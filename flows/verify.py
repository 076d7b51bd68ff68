"""Verify: stored bytes against their manifests, certificates against what they are of."""

from __future__ import annotations

import time

from prefect import flow

from archive.verify import Checked
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from tasks.stage import Outcome, call, open_stage
from tasks.verify import verify_store


@flow(name="verify", flow_run_name="verify {workspace}", persist_result=False)
def verify(workspace: WorkspacePath, settings: Overrides = []) -> Outcome:
    """Check volumes and codes; damage names its series and fails the run."""
    with open_stage("verify", workspace, settings) as stage:
        limit = stage.settings.verify.max_seconds
        deadline = None if limit is None else time.time() + limit
        results: list[Checked] = []
        for tier in ("volume", "codes"):
            results += call(verify_store, stage, tier, deadline)
        damaged = [item for item in results if item.code == "DAMAGED"]
        missing = [item for item in results if item.code == "MISSING"]
        expired = sum(row.expired for row in stage.catalog.certificates())
        stage.reasons.update(item.code for item in damaged + missing)
        problems = tuple(
            {"series": item.series, "tier": item.tier, "version": item.version, "code": item.code}
            for item in damaged + missing
        )
        bad = ", ".join(sorted({item.series for item in damaged + missing}))
        return finish(
            Outcome(
                verb="verify",
                run=stage.run,
                counts={
                    "checked": len(results),
                    "damaged": len(damaged),
                    "missing": len(missing),
                    "expired": expired,
                    "seconds": stage.seconds,
                },
                reasons=dict(stage.reasons),
                sentence=f"verify: {len(results)} versions checked, "
                + (f"{len(problems)} damaged or missing, of series {bad}" if problems else "all whole")
                + (f", {expired} certificates expired" if expired else ""),
                found=bool(results),
                damaged=len(problems),
                problems=problems,
            )
        )

"""Verify: stored bytes against their manifests, certificates against what they are of."""

from __future__ import annotations

import time

from prefect import flow

from flows.parameters import Overrides, WorkspacePath, described
from flows.recording import finish
from tasks.stage import Outcome, call, open_stage
from tasks.verify import verify_stores


@flow(name="verify", flow_run_name="verify {workspace}", persist_result=False)
@described
def verify(workspace: WorkspacePath, settings: Overrides = []) -> Outcome:
    """Check volumes and codes; damage names its series and fails the run."""
    with open_stage("verify", workspace, settings) as stage:
        limit = stage.settings.verify.max_seconds
        deadline = None if limit is None else time.time() + limit
        done = call(verify_stores, stage, deadline)
        damaged = [item for item in done.checked if item.code == "DAMAGED"]
        missing = [item for item in done.checked if item.code == "MISSING"]
        problems = [
            {"series": item.series, "tier": item.tier, "version": item.version, "code": item.code}
            for item in damaged + missing
        ]
        undecodable = [row for row in stage.catalog.encodings(current_only=True) if row.model in done.broken_models]
        problems += [
            {"series": row.series, "tier": "model", "version": row.model, "code": done.broken_models[row.model]}
            for row in undecodable
        ]
        expired = sum(row.expired for row in stage.catalog.certificates())
        stage.reasons.update(problem["code"] for problem in problems)
        bad = ", ".join(sorted({problem["series"] for problem in problems}))
        return finish(
            Outcome(
                verb="verify",
                run=stage.run,
                counts={
                    "checked": len(done.checked),
                    "damaged": len(damaged) + len(undecodable),
                    "missing": len(missing),
                    "expired": expired,
                    "seconds": stage.seconds,
                },
                reasons=dict(stage.reasons),
                sentence=f"verify: {len(done.checked)} versions checked, "
                + (f"{len(problems)} damaged or missing, of series {bad}" if problems else "all whole")
                + (f", {expired} certificates expired" if expired else ""),
                found=done.planned > 0,
                damaged=len(problems),
                problems=tuple(problems),
            ),
            stage,
        )

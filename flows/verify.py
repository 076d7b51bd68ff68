"""Verify: stored bytes against their manifests, certificates against what they are of."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from tasks.stage import Outcome, call
from tasks.verify import verify_stores

NAMED = 10

ReadData = Annotated[
    bool, Field(description="Read every byte and compare its sha256; else only sizes, or as voxbook.toml says.")
]
Sample = Annotated[
    float,
    Field(ge=0, le=1, description="Share of the stored versions, longest unchecked first; 0: as voxbook.toml says."),
]
Seconds = Annotated[
    float,
    Field(ge=0, description="Stop after this time, and the next run goes on from there; 0: as voxbook.toml says."),
]


@stage_flow("verify")
def verify(
    workspace: WorkspacePath,
    read_data: ReadData = False,
    sample: Sample = 0.0,
    max_seconds: Seconds = 0.0,
    settings: Overrides = [],
) -> Outcome:
    """Check volumes and codes; damage names its series and fails the run."""
    extra = ["verify.read_data=true"] if read_data else []
    extra += [f"verify.sample={sample}"] if sample else []
    extra += [f"verify.max_seconds={max_seconds}"] if max_seconds else []
    with staged("verify", workspace, [*settings, *extra]) as stage:
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
        bad = _listed(sorted({problem["series"] for problem in problems}))
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


def _listed(series: list[str]) -> str:
    """The first of them by name, and how many more: the sentence of a run is read in a list of runs."""
    more = len(series) - NAMED
    return ", ".join(series[:NAMED]) + (f" and {more:,} more" if more > 0 else "")

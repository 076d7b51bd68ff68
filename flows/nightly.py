"""The nightly run: everything new comes in, is encoded, a sample is verified, a report is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from archive.errors import VoxbookError, describe
from archive.workspace import Workspace
from flows.artifacts import publish_report, publish_worst
from flows.encode import encode
from flows.ingest import ingest
from flows.live import obey
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from flows.report import report
from flows.staged import stage_flow
from flows.verify import verify
from tasks.stage import Outcome, recording

Sample = Annotated[
    float, Field(gt=0, le=1, description="Share of the stored versions to verify, longest unchecked first.")
]


@stage_flow("nightly")
def nightly(workspace: WorkspacePath, verify_sample: Sample = 0.05, settings: Overrides = []) -> Outcome:
    """Ingest, encode, verify a sample by reading every byte of it, report."""
    Workspace.open(Path(workspace), settings)  # a wrong setting ends the night here, and is no damage of each stage
    parts = [
        _run(ingest, "ingest", workspace=workspace, settings=settings),
        _run(encode, "encode", workspace=workspace, settings=settings),
        _run(verify, "verify", workspace=workspace, read_data=True, sample=verify_sample, settings=settings),
        _run(report, "report", workspace=workspace, settings=settings),
    ]
    if recording():  # on the night's own page too: nobody should have to look for the stage that holds them
        home = Workspace.open(Path(workspace), settings)
        publish_worst(home)
        if "report" in parts[-1].counts:
            publish_report(home, Path(parts[-1].counts["report"]))
    reasons: dict[str, int] = {}
    for part in parts:
        for code, count in part.reasons.items():
            reasons[code] = reasons.get(code, 0) + count
    return finish(
        Outcome(
            verb="nightly",
            run=next((part.run for part in reversed(parts) if part.run), ""),
            counts={part.verb: part.counts for part in parts},
            reasons=reasons,
            sentence="; ".join(part.sentence for part in parts),
            found=parts[0].found,
            # What was refused before is counted, but is no news: an old broken file must not end every night with exit 4.
            quarantined=sum(part.counts.get("quarantined_new", part.quarantined) for part in parts),
            below_gate=sum(part.below_gate for part in parts),
            damaged=sum(part.damaged for part in parts),
            problems=tuple(problem for part in parts for problem in part.problems),
        )
    )


def _run(stage: Any, verb: str, **parameters: Any) -> Outcome:
    """A stage as a subflow in Prefect, or its body directly; one that fails is part of the night's account, not its end."""
    try:
        if not recording():
            return stage.fn(**parameters)
        obey()  # a night that was suspended does not begin its next stage
        result = stage(**parameters, return_state=True).result(raise_on_failure=False)
        if isinstance(result, BaseException):
            raise result
        return result
    except VoxbookError as error:
        code, words = error.code, str(error)
    except Exception as error:  # the later stages may well work, and the report says what did not
        code, words = "UNEXPECTED", describe(error)
    return Outcome(verb, "", {"error": code}, {code: 1}, f"{verb} failed: {words}", damaged=1)

"""Collect garbage: what no catalog row names, and superseded versions whose time is over."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from archive.collect import collect
from flows.parameters import DryRun, Overrides, WorkspacePath, described
from flows.recording import finish
from tasks.stage import Outcome, open_stage

Keep = Annotated[
    int | None,
    Field(ge=0, description="Superseded versions of each series that stay, the newest; none: gc.keep of voxbook.toml."),
]


@flow(name="gc", flow_run_name="gc {workspace}", persist_result=False)
@described
def gc(workspace: WorkspacePath, keep: Keep = None, dry_run: DryRun = False, settings: Overrides = []) -> Outcome:
    """Remove what no catalog row names and no running process holds, and superseded versions after their grace.

    The grace (`gc.grace_seconds`) begins when a gc first sees a version superseded, so that whoever still reads it can
    end. Current versions are never touched.
    """
    with open_stage("gc", workspace, settings) as stage:
        done = collect(stage.workspace, dry_run=dry_run, keep=keep)
        verb = "would be removed" if dry_run else "removed"
        waiting = f"; {done.waiting} superseded versions stay for now" if done.waiting else ""
        return finish(
            Outcome(
                verb="gc",
                run=stage.run,
                counts={
                    "folders": done.folders,
                    "bytes": done.bytes,
                    "waiting": done.waiting,
                    "dry_run": dry_run,
                    "seconds": stage.seconds,
                },
                sentence=f"gc: {done.folders} folders {verb}, {done.bytes} bytes{waiting}",
            ),
            stage,
        )

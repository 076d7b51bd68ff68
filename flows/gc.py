"""Collect garbage: what no catalog row names, and superseded versions whose time is over."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from archive.collect import collect
from flows.parameters import DryRun, Overrides, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from tasks.stage import Outcome

Keep = Annotated[
    int,
    Field(ge=-1, description="Superseded versions of each series that stay, the newest; -1: gc.keep of voxbook.toml."),
]


@stage_flow("gc")
def gc(workspace: WorkspacePath, keep: Keep = -1, dry_run: DryRun = False, settings: Overrides = []) -> Outcome:
    """Remove what no catalog row names and no running process holds, and superseded versions after their grace.

    The grace (`gc.grace_seconds`) begins when a gc first sees a version superseded, so that whoever still reads it can
    end. Current versions are never touched.
    """
    with staged("gc", workspace, settings) as stage:
        done = collect(stage.workspace, dry_run=dry_run, keep=None if keep < 0 else keep)
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

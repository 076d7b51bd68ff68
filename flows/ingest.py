"""Ingest: sources into the volume store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from archive.errors import StoreError
from archive.groups import regroup
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish, sentence
from flows.staged import stage_flow, staged
from tasks.ingest import IngestCounts, ingest_source
from tasks.stage import Outcome, call

Sources = Annotated[list[str], Field(description="Aliases of sources, as in [sources]; none: all of them.")]


@stage_flow("ingest")
def ingest(workspace: WorkspacePath, sources: Sources = [], settings: Overrides = []) -> Outcome:
    """Bring new and changed series of the sources into the volume store; refuse the rest with a reason."""
    with staged("ingest", workspace, settings) as stage:
        regroup(stage.workspace)
        known = {source.alias for source in stage.catalog.sources()}
        aliases = sources or sorted(known | set(stage.settings.sources))
        for alias, path in stage.settings.sources.items():
            stage.workspace.register_source(stage.workspace.root / Path(path).expanduser(), alias)
        for alias in aliases:
            if alias not in known and alias not in stage.settings.sources:
                raise StoreError("NOT_FOUND", f"no source is called {alias!r}", hint="name it in [sources]")
        counts = IngestCounts()
        for alias in aliases:
            counts += call(ingest_source, stage, alias)
        fresh = sum(row.first_seen >= stage.began for row in stage.catalog.quarantine())
        known_ones = "" if fresh >= counts.quarantined else f" ({fresh or 'none'} of them new)"
        shown = {
            "series ingested": counts.ingested,
            "unchanged": counts.unchanged,
            f"quarantined{known_ones}": counts.quarantined,
            "left to another run": counts.leased,
            "files skipped": counts.skipped,
        }
        nothing = counts.ingested == 0 and counts.unchanged > 0
        return finish(
            Outcome(
                verb="ingest",
                run=stage.run,
                counts={
                    "found": counts.found,
                    "ingested": counts.ingested,
                    "unchanged": counts.unchanged,
                    "quarantined": counts.quarantined,
                    "quarantined_new": fresh,
                    "skipped": counts.skipped,
                    "bytes_in": counts.bytes_in,
                    "voxels": counts.voxels,
                    "seconds": stage.seconds,
                },
                reasons=dict(stage.reasons),
                sentence=sentence("ingest", shown, dict(stage.reasons), "nothing found")
                + ("; nothing new" if nothing else ""),
                found=counts.found > 0,
                quarantined=counts.quarantined,
            ),
            stage,
        )

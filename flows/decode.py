"""Decode: series given back in the formats of other tools, as a run of Prefect; `voxbook decode` does the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flows.parameters import Group, Overrides, SeriesIds, Where, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from tasks.stage import Outcome

Out = Annotated[
    str,
    Field(min_length=1, description="Folder to write to; a relative one is made in the workspace's exports folder."),
]
Format = Annotated[Literal["nifti", "dicom", "ome-zarr", "png"], Field(description="What each series is written as.")]
Naming = Annotated[
    Literal["pseudonym", "bids"],
    Field(description="pseudonym: one name per series; bids: sub-…/anat, pet, ct or other."),
]
TierName = Annotated[
    Literal["auto", "codes", "volume"],
    Field(description="codes: decoded; volume: the lossless store; auto: codes where they passed their gate."),
]
Levels = Annotated[
    int, Field(ge=0, description="Decode only this many levels of the codes, which is coarser; 0: all of them.")
]
Roi = Annotated[str, Field(description="Part of the grid as z0:z1,y0:y1,x0:x1 in voxels; empty: the whole volume.")]
Jobs = Annotated[
    int, Field(ge=0, description="Processes that write side by side; 0: one per core as far as memory goes.")
]


@stage_flow("decode")
def decode(
    workspace: WorkspacePath,
    out: Out,
    group: Group = "",
    series: SeriesIds = [],
    where: Where = "",
    format: Format = "nifti",
    naming: Naming = "pseudonym",
    tier: TierName = "auto",
    levels: Levels = 0,
    roi: Roi = "",
    jobs: Jobs = 0,
    settings: Overrides = [],
) -> Outcome:
    """Write series as NIfTI, DICOM, OME-Zarr or pictures; without group, series and where: all of them.

    What is written is patient data: put it where the workspace may be, or safer. A run that was ended goes on where it
    was.
    """
    from flows.cohort import export_many

    with staged("decode", workspace, settings) as stage:
        folder = stage.workspace.exports / Path(out).expanduser()
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = export_many(
            stage.workspace,
            folder,
            series=series,
            group=group or None,
            where=where or None,
            format=format,
            naming=naming,
            tier=tier,
            levels=levels or None,
            roi=roi or None,
            jobs=jobs or None,
        )
        return finish(replace(done, run=stage.run, counts={**done.counts, "seconds": stage.seconds}), stage)

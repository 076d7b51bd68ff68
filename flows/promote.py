"""Promote: another model becomes its group's current one, unless it is worse on the same series."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from archive.comparison import Comparison
from flows.events import PROMOTED, tell
from flows.parameters import DryRun, Overrides, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from tasks.promote import compare_models, is_broken, require
from tasks.stage import Outcome, call

Candidate = Annotated[str, Field(min_length=1, description="The model to promote, or the beginning of its id.")]
Force = Annotated[
    bool, Field(description="Promote even a worse model; nothing is encoded to compare, what is there is shown.")
]


@stage_flow("promote")
def promote(
    workspace: WorkspacePath, model: Candidate, force: Force = False, dry_run: DryRun = False, settings: Overrides = []
) -> Outcome:
    """Compare a model with its group's current one on the same series, and make it current unless it is worse.

    One whose files are gone or broken is not promoted, by force neither; where those of the current one are, nothing is
    encoded to compare and no model is worse.
    Series that it has encoded point at those codes from then on, all in one step; others become stale until the next
    encode. Readers have the codes that they opened.
    """
    with staged("promote", workspace, settings) as stage:
        candidate = stage.catalog.model(model)
        require(stage, candidate)
        current = stage.catalog.current_model(candidate.group)
        compared: Comparison | None = None
        broken = False
        if current is not None and current.model != candidate.model:
            broken = is_broken(stage, current)
            compared = call(compare_models, stage, candidate.group, current, candidate, make=not (force or broken))
        refused = compared is not None and compared.is_worse and not (force or broken)
        if not refused and not dry_run:
            stage.catalog.promote(candidate.model)
            tell(PROMOTED, "model", candidate.model, group=candidate.group, previous=current.model if current else None)
        stale = len(stage.catalog.series(group=candidate.group, states=["stale"]))
        if refused:
            stage.reasons["WORSE_MODEL"] += 1
        return finish(
            Outcome(
                verb="promote",
                run=stage.run,
                counts={
                    "model": candidate.model,
                    "group": candidate.group,
                    "previous": current.model if current else None,
                    "promoted": not refused and not dry_run,
                    "stale": stale,
                    "comparison": compared.as_dict() if compared else None,
                    "seconds": stage.seconds,
                },
                reasons=dict(stage.reasons),
                sentence=_sentence(candidate.model, candidate.group, compared, refused, dry_run, stale)
                + (
                    f"; the files of {current.model[:12]}, the one before, are gone or broken"
                    if current and broken
                    else ""
                ),
                below_gate=int(refused),
            ),
            stage,
        )


def _sentence(model: str, group: str, compared: Comparison | None, refused: bool, dry_run: bool, stale: int) -> str:
    found = "no series to compare" if compared is None else described_in_words(compared)
    if refused:
        return f"promote: {model[:12]} stays out of {group}, it is worse: {found}"
    if dry_run:
        return f"promote: {model[:12]} would become the model of {group}: {found}"
    return f"promote: {model[:12]} is the model of {group}: {found}; {stale} series are stale"


def described_in_words(compared: Comparison) -> str:
    """The comparison in one sentence."""
    before, after = compared.bits
    parts = [
        f"{compared.gain_db:+.2f} dB (noise {compared.noise_db:.2f}) at {after:.4f} bits per voxel, before {before:.4f}",
        f"{compared.better} of {compared.series} series better, {compared.worse} worse",
    ]
    if compared.failed:
        parts.append(f"{compared.failed} not encoded")
    if compared.fails_gate or compared.passes_gate:
        parts.append(f"{compared.fails_gate} more below the gate, {compared.passes_gate} fewer")
    return ", ".join(parts)


def table_of(compared: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows for people: the means, then the worst series."""
    columns = ("series", "dB before", "dB after", "gain", "SSIM before", "SSIM after", "bits before", "bits after")
    rows: list[tuple[Any, ...]] = []
    for pair in compared["worst"]:
        before, after = pair["current"], pair["candidate"]
        rows.append(
            (
                pair["series"][:12],
                f"{before['psnr']:.2f}",
                f"{after['psnr']:.2f}",
                f"{pair['gain_db']:+.2f}",
                "" if before["ssim"] is None else f"{before['ssim']:.4f}",
                "" if after["ssim"] is None else f"{after['ssim']:.4f}",
                f"{before['bits_per_voxel']:.4f}",
                f"{after['bits_per_voxel']:.4f}",
            )
        )
    return columns, rows

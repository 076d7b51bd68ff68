"""Encode: volumes into codes, each with a certificate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from archive import groups
from archive.catalog_schema import CertificateRow, ModelRow, SeriesRow
from archive.errors import MismatchError
from archive.where import Expression, matches, parse
from flows.artifacts import publish_worst
from flows.events import MOST_SERIES, tell_failed
from flows.parameters import DryRun, Group, ModelId, Overrides, SeriesIds, Where, WorkspacePath
from flows.recording import finish, sentence
from flows.staged import stage_flow, staged
from tasks.encode import EncodeCounts, encode_group, plan_jobs
from tasks.stage import Outcome, Stage, call

EncodeProfile = Annotated[
    Literal["configured", "exact", "fast"],
    Field(description="exact: fp32, repeatable to the bit; fast: bf16; configured: as voxbook.toml says."),
]


@stage_flow("encode")
def encode(
    workspace: WorkspacePath,
    group: Group = "",
    series: SeriesIds = [],
    where: Where = "",
    model: ModelId = "",
    profile: EncodeProfile = "configured",
    dry_run: DryRun = False,
    settings: Overrides = [],
) -> Outcome:
    """Encode what is new, stale or asked for, with the current model of each group or the one named.

    Codes by a model that was named count until the next promotion: encode without `model` leaves them. New versions are
    written beside the old, and a series moves from one to the other in one step.
    """
    condition = parse(where) if where else None
    extra = [] if profile == "configured" else [f'encode.profile="{profile}"']
    with staged("encode", workspace, [*settings, *extra]) as stage:
        moved = groups.moves(stage.workspace) if dry_run else groups.regroup(stage.workspace)
        named = stage.catalog.model(model) if model else None
        if named and not group and not series:
            group = named.group
        rows = chosen(stage, group or None, series, condition)
        counts, no_model, planned = EncodeCounts(), [], 0
        for name in sorted({row.group for row in rows}):
            members = [row for row in rows if row.group == name]
            with_model = _model_for(stage, name, named)
            if with_model is None:
                no_model += members
            elif dry_run:
                jobs, unchanged = plan_jobs(stage, members, with_model, any_model=named is None)
                # A series that is to move to another group has codes of the wrong model, whatever group it was asked by.
                going = {row.series for row in members if row.series in moved} - {job.series for job in jobs}
                planned += len(jobs) + len(going)
                counts += EncodeCounts(series=len(members), unchanged=unchanged - len(going))
            else:
                counts += call(encode_group, stage, name, members, with_model, any_model=named is None)
        counts += EncodeCounts(series=len(no_model))
        if no_model and not dry_run:
            stage.catalog.set_reason([row.series for row in no_model], "NO_MODEL")
            stage.reasons["NO_MODEL"] += len(no_model)
        scope = {row.series for row in rows}
        below = sum(row.series in scope for row in stage.catalog.series(group=group or None, states=["quality_failed"]))
        shown = {
            "series encoded": counts.encoded,
            "would be encoded": planned,
            "below the gate": counts.below_gate,
            "not encoded": counts.failed - counts.below_gate,
            "without a model": len(no_model),
            "unchanged": counts.unchanged,
            "left to another run": counts.leased,
            "moved to another group": 0 if dry_run else len(moved),
        }
        if not dry_run:
            publish_worst(stage.workspace)
            if counts.below_gate:
                tell_failed(_failed_now(stage), stage.workspace.root.name)
        nothing = not (counts.encoded or counts.failed or planned)
        return finish(
            Outcome(
                verb="encode",
                run=stage.run,
                counts={
                    "series": counts.series,
                    "encoded": counts.encoded,
                    "unchanged": counts.unchanged,
                    "failed": counts.failed,
                    "voxels": counts.voxels,
                    "bytes_out": counts.bytes_out,
                    "seconds": stage.seconds,
                    **({"planned": planned} if dry_run else {}),
                    **({"regrouped": len(moved)} if moved else {}),
                },
                reasons=dict(stage.reasons),
                sentence=sentence("encode", shown, dict(stage.reasons), "no series")
                + ("; nothing new" if nothing and counts.unchanged else ""),
                found=bool(rows),
                quarantined=counts.failed - counts.below_gate - counts.damaged,
                below_gate=below,  # those of earlier runs too: a night does not turn green by being repeated
                damaged=counts.damaged,
            ),
            stage,
        )


def chosen(stage: Stage, group: str | None, series: list[str], condition: Expression | None) -> list[SeriesRow]:
    """The series with a volume that the filters leave; raises StoreError NOT_FOUND for one that does not exist."""
    rows = stage.catalog.series(series, group=group)
    if condition is None:
        return rows
    certificates = {row.series: row for row in stage.catalog.certificates()}
    return [row for row in rows if matches(condition, row, certificates.get(row.series))]


def _failed_now(stage: Stage) -> list[CertificateRow]:
    """Certificates of what missed its gate since this run began, the worst first."""
    worst = stage.catalog.worst_certificates(MOST_SERIES)
    return [row for row in worst if not row.passed and row.created_at >= stage.began]


def _model_for(stage: Stage, group: str, named: ModelRow | None) -> ModelRow | None:
    if named is None:
        return stage.catalog.current_model(group)
    if named.group != group:
        raise MismatchError("WRONG_MODEL", f"the model is of group {named.group!r}, not {group!r}")
    return named

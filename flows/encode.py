"""Encode: volumes into codes, each with a certificate."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from archive.catalog_schema import SeriesRow
from archive.errors import MismatchError
from archive.where import matches, parse
from flows.parameters import Group, ModelId, Overrides, SeriesIds, Where, WorkspacePath, described
from flows.recording import finish, sentence
from tasks.encode import EncodeCounts, encode_group, plan_jobs
from tasks.stage import Outcome, Stage, call, open_stage

DryRun = Annotated[bool, Field(description="Only say what would be encoded.")]


@flow(name="encode", flow_run_name="encode {workspace}", persist_result=False)
@described
def encode(
    workspace: WorkspacePath,
    group: Group = None,
    series: SeriesIds = [],
    where: Where = None,
    model: ModelId = None,
    dry_run: DryRun = False,
    settings: Overrides = [],
) -> Outcome:
    """Encode what is new, stale or asked for, with the current model of each group or the one named."""
    with open_stage("encode", workspace, settings) as stage:
        if model and group is None and not series:
            group = stage.catalog.model(model).group
        rows = chosen(stage, group, series, where)
        counts, no_model, planned = EncodeCounts(), [], 0
        for name in sorted({row.group for row in rows}):
            members = [row for row in rows if row.group == name]
            chosen_model = stage.catalog.model(model) if model else stage.catalog.current_model(name)
            if chosen_model is None:
                no_model += members
                continue
            if model and chosen_model.group != name:
                raise MismatchError("WRONG_MODEL", f"the model is of group {chosen_model.group!r}, not {name!r}")
            if dry_run:
                jobs, unchanged = plan_jobs(stage, members, chosen_model)
                planned += len(jobs)
                counts += EncodeCounts(series=len(members), unchanged=unchanged)
                continue
            counts += call(encode_group, stage, name, members, chosen_model)
        if no_model and not dry_run:
            stage.catalog.set_reason([row.series for row in no_model], "NO_MODEL")
            stage.reasons["NO_MODEL"] += len(no_model)
            counts += EncodeCounts(series=len(no_model))
        scope = {row.series for row in rows}
        below = sum(row.state == "quality_failed" and row.series in scope for row in stage.catalog.series())
        shown = {
            "series encoded": counts.encoded,
            "would be encoded": planned,
            "failed": counts.failed,
            "without a model": len(no_model),
            "unchanged": counts.unchanged,
            "left to another run": counts.leased,
        }
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


def chosen(stage: Stage, group: str | None, series: list[str], where: str | None) -> list[SeriesRow]:
    """The series with a volume that the filters leave; raises StoreError NOT_FOUND for one that does not exist."""
    rows = stage.catalog.series(series, group=group)
    if where is None:
        return rows
    conditions = parse(where)
    certificates = {row.series: row for row in stage.catalog.certificates()}
    return [row for row in rows if matches(conditions, row, certificates.get(row.series))]

"""Encode: volumes into codes, each with a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from archive import groups
from archive.catalog_schema import CertificateRow, ModelRow
from archive.errors import MismatchError
from archive.where import Expression, matches, parse
from flows.artifacts import publish_worst
from flows.events import MOST_SERIES, tell_failed
from flows.parameters import DryRun, Group, ModelId, Overrides, SeriesIds, Where, WorkspacePath
from flows.recording import finish, sentence
from flows.staged import stage_flow, staged
from tasks.encode import EncodeCounts, encode_group, wanted_of
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
        asked = chosen(stage, group or None, series, condition)
        counts, no_model, planned = EncodeCounts(), 0, 0
        for name, (members, names) in asked.items():
            with_model = _model_for(stage, name, named)
            if with_model is None:
                no_model += members
                counts += EncodeCounts(series=members)
                if not dry_run:
                    _without_model(stage, name, names)
            elif dry_run:
                missing = _missing(stage, with_model, names, moved, any_model=named is None)
                planned += missing
                counts += EncodeCounts(series=members, unchanged=members - missing)
            else:
                counts += call(encode_group, stage, name, with_model, names, any_model=named is None)
        # Those of earlier runs too: a night does not turn green by being repeated.
        below = sum(
            sum(stage.catalog.count_series(names, group=name, state="quality_failed").values())
            for name, (_, names) in asked.items()
        )
        shown = {
            "series encoded": counts.encoded,
            "would be encoded": planned,
            "below the gate": counts.below_gate,
            "not encoded": counts.failed - counts.below_gate,
            "without a model": no_model,
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
                found=bool(asked),
                quarantined=counts.failed - counts.below_gate - counts.damaged,
                below_gate=below,
                damaged=counts.damaged,
            ),
            stage,
        )


def chosen(
    stage: Stage, group: str | None, series: list[str], condition: Expression | None
) -> dict[str, tuple[int, list[str] | None]]:
    """Per group how many series the filters leave, and which; None is all of the group.

    Raises StoreError NOT_FOUND for a series that does not exist.
    """
    if not series and condition is None:
        return {name: (count, None) for name, count in stage.catalog.count_series(group=group).items()}
    found: dict[str, list[str]] = {}
    for rows in [stage.catalog.series(series, group=group)] if series else stage.catalog.pages(group):
        certificates = stage.catalog.certificates_of(row.series for row in rows) if condition is not None else {}
        for row in rows:
            if condition is None or matches(condition, row, certificates.get(row.series)):
                found.setdefault(row.group, []).append(row.series)
    return {name: (len(names), names) for name, names in sorted(found.items())}


def _without_model(stage: Stage, group: str, names: list[str] | None) -> None:
    """Put NO_MODEL on the series of a group, or those named of it."""
    pages = ([row.series for row in rows] for rows in stage.catalog.pages(group)) if names is None else [names]
    for page in pages:
        stage.catalog.set_reason(page, "NO_MODEL")
        stage.reasons["NO_MODEL"] += len(page)


def _missing(
    stage: Stage, model: ModelRow, names: list[str] | None, moved: Mapping[str, str], *, any_model: bool
) -> int:
    """How many series of a group a run would encode.

    A series that is to move to another group has codes of the wrong model, whatever group it was asked by.
    """
    wanted = wanted_of(stage, model, any_model=any_model)
    going = [row.series for row in stage.catalog.series(moved, group=model.group)] if moved else []
    if names is not None:
        going = sorted(set(going) & set(names))
    return stage.catalog.left_to_encode(wanted, names)[0] + len(going) - stage.catalog.left_to_encode(wanted, going)[0]


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

"""Encode: volumes into codes, each with a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from archive import groups
from archive.catalog_schema import CertificateRow, ModelRow
from archive.errors import MismatchError, StoreError
from archive.where import Expression, matches, parse
from flows.artifacts import publish_worst
from flows.events import MOST_SERIES, tell_failed
from flows.parameters import DryRun, Group, ModelId, Overrides, SeriesIds, Where, WorkspacePath
from flows.recording import finish, sentence
from flows.staged import stage_flow, staged
from tasks.encode import EncodeCounts, encode_group, wanted_of
from tasks.stage import Outcome, Stage, call

NO_FILES = "restore its folder in models/ from a copy, or voxbook train, then voxbook encode"

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
        models = {name: _model_for(stage, name, named) for name in asked}
        counts, no_model, planned = EncodeCounts(), 0, 0
        stopped: list[dict[str, Any]] = []
        for name, (members, names) in asked.items():
            with_model = models[name]
            done = EncodeCounts()
            if with_model is None:
                no_model += members
                if not dry_run:
                    _without_model(stage, name, names)
            else:
                try:
                    for part, any_model in _parts(stage, with_model, names, any_model=named is None):
                        if dry_run:
                            planned += _missing(stage, with_model, part, moved, any_model=any_model)
                        else:
                            done += call(encode_group, stage, name, with_model, part, any_model=any_model)
                except (MismatchError, StoreError) as error:
                    stopped.append(_stopped(stage, with_model, error))
            counts += replace(done, series=members)
        if dry_run:
            untouched = no_model + sum(asked[problem["group"]][0] for problem in stopped)
            counts = replace(counts, unchanged=counts.series - planned - untouched)
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
            "refused before (voxbook encode --series tries again)": counts.refused,
            "without a model": no_model,
            "pointed at codes that exist": counts.adopted,
            "unchanged": counts.unchanged - counts.adopted,
            "left to another run": counts.leased,
            "moved to another group": 0 if dry_run else len(moved),
        }
        if not dry_run:
            publish_worst(stage.workspace)
            if counts.below_gate:
                tell_failed(_failed_now(stage), stage.workspace.root.name)
        nothing = not (counts.encoded or counts.failed or counts.adopted or planned)
        fresh = counts.failed - counts.below_gate - counts.damaged
        return finish(
            Outcome(
                verb="encode",
                run=stage.run,
                counts={
                    "series": counts.series,
                    "encoded": counts.encoded,
                    "unchanged": counts.unchanged,
                    "adopted": counts.adopted,
                    "failed": counts.failed,
                    "quarantined_new": fresh,
                    "voxels": counts.voxels,
                    "bytes_out": counts.bytes_out,
                    "seconds": stage.seconds,
                    **({"planned": planned} if dry_run else {}),
                    **({"regrouped": len(moved)} if moved else {}),
                },
                reasons=dict(stage.reasons),
                sentence=sentence("encode", shown, dict(stage.reasons), "no series")
                + ("; nothing new" if nothing and counts.unchanged and not stopped else "")
                + "".join(
                    f"; {problem['group']} stopped: {problem['message']}. {problem['hint']}" for problem in stopped
                ),
                found=bool(asked),
                quarantined=fresh + counts.refused,
                below_gate=below,
                damaged=counts.damaged + len(stopped),
                problems=tuple(stopped),
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


def _parts(
    stage: Stage, model: ModelRow, names: list[str] | None, *, any_model: bool
) -> list[tuple[list[str] | None, bool]]:
    """The series of a group, or those named, by whether codes of another model will do: not where its files are gone.

    Raises StoreError MISSING where those of the model itself are gone.
    """
    home, catalog = stage.workspace, stage.catalog
    if not home.has_model(model.model):
        raise StoreError("MISSING", "the files of its model are gone", hint=NO_FILES, model=model.model)
    gone = {other.model for other in catalog.models(model.group) if not home.has_model(other.model)}
    if not any_model or not gone:
        return [(names, any_model)]
    readable: list[str] = []
    unreadable: list[str] = []
    for rows in catalog.pages(model.group) if names is None else [catalog.series(names)]:
        certificates = catalog.certificates_of(row.series for row in rows)
        for row in rows:
            found = certificates.get(row.series)
            (unreadable if found and found.data.get("model") in gone else readable).append(row.series)
    return [(part, any_model) for part, any_model in ((unreadable, False), (readable, True)) if part]


def _stopped(stage: Stage, model: ModelRow, error: MismatchError | StoreError) -> dict[str, Any]:
    """What stopped one group, noted; raises it again where no other group can go on either."""
    if error.code == "NOT_WRITABLE":  # a disk that is full is full for all of them
        raise error
    stage.reasons[error.code] += 1
    tier = {"tier": "model"} if error.code in ("MISSING", "WRONG_MODEL") else {}
    return {
        "group": model.group, **tier, "version": model.model, "code": error.code, "message": str(error.message),
        "hint": error.hint,
    }  # fmt: skip


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

"""Is a model better than its group's current one? Both on the same series, encoded first where codes are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from archive.catalog_schema import ModelRow, SeriesRow
from archive.comparison import Comparison, compare, figures_of, pairs_of
from tasks.encode import encode_group, settings_digest
from tasks.stage import Stage, recorded


def require(stage: Stage, model: ModelRow) -> None:
    """Raise StoreError MISSING or MismatchError WRONG_MODEL unless a model's files, read anew, can decode and encode."""
    from model.bundle import load, read  # torch takes seconds to import

    folder = stage.workspace.models / model.model
    read(folder, model.model)
    load(folder, model.model)


def is_broken(stage: Stage, model: ModelRow) -> bool:
    """Whether a model's files, read anew, are gone or not those of its id."""
    from model.bundle import check

    return bool(check(stage.workspace.models / model.model))


@recorded("compare-models", "compare models of {group}")
def compare_models(
    stage: Stage, group: str, current: ModelRow, candidate: ModelRow, make: bool = True
) -> Comparison | None:
    """Compare two models by their certificates on the same series; None where there is no series to compare.

    Where fewer than `promote.series` have codes by both, a sample of the group is encoded (make), beside the codes in
    use: readers see nothing of it. Everything that both have encoded is compared then.
    """
    settings, catalog = stage.settings, stage.catalog
    gate = settings.gate_of(group)
    rules = (settings_digest(settings.encode.profile, settings.encode.levels, gate), gate)
    names = (group, current.model, candidate.model)
    failed: set[str] = set()
    if make and len(pairs_of(catalog, *names, *rules)) < settings.promote.series:
        rows = sample(catalog.series(group=group), candidate.model, settings.promote.series, settings.promote.voxels)
        chosen = {row.series for row in rows}
        for model in (current, candidate):
            there = figures_of(catalog, group, model.model, *rules)
            encode_group(stage, group, model, [row.series for row in rows if row.series not in there], beside=True)
        ours, theirs = (figures_of(catalog, group, model.model, *rules) for model in (current, candidate))
        failed = chosen & ours.keys() - theirs.keys()
    pairs = pairs_of(catalog, *names, *rules)
    return compare(
        current.model, candidate.model, pairs, tolerance_db=settings.promote.tolerance_db, failed=len(failed)
    )


def sample(rows: Sequence[SeriesRow], seed: str, series: int, voxels: int) -> list[SeriesRow]:
    """At most so many series with at most so many voxels together (one at least), the same ones for the same seed."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}{row.series}".encode()).digest())
    found: list[SeriesRow] = []
    for row in order:
        if len(found) < series and (not found or sum(one.voxels for one in found) + row.voxels <= voxels):
            found.append(row)
    return found

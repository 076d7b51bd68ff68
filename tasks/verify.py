"""Check stored versions against their manifests, the longest unchecked first."""

from __future__ import annotations

import random
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

from archive.catalog_schema import ModelRow
from archive.verify import Check, Checked, plan, record, verify_version
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.stage import Stage, recorded

BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Models:
    """Reason code by id of the models whose files are not what their id says; left: how many were not read."""

    broken: dict[str, str] = field(default_factory=dict)
    left: int = 0


@dataclass(frozen=True)
class Verified:
    """How many versions were due, what was found of them, and the models."""

    planned: int
    checked: tuple[Checked, ...]
    models: Models


@recorded("verify-stores", "verify")
def verify_stores(stage: Stage, deadline: float | None) -> Verified:
    """Check versions of both tiers in turn; stops at `deadline` (Unix time), and the next run goes on from there."""
    settings = stage.settings.verify
    codes, volumes = (plan(stage.workspace, tier, settings.sample) for tier in ("codes", "volume"))
    # In turn, so that a short time does not go to one tier night after night.
    checks = [check for pair in zip_longest(codes, volumes) for check in pair if check is not None]
    models = check_models(stage, settings.read_data, deadline)
    found = run_checks(stage, checks, settings.read_data, deadline)
    return Verified(len(checks), tuple(found), models)


def check_models(stage: Stage, read_data: bool, deadline: float | None) -> Models:
    """Look whether the files of every model are there; read_data: also hash them, in half of the time at most.

    In any order, so that where time is short each has its turn some night.
    """
    from model.bundle import check

    home, now = stage.workspace, time.time()
    until = None if deadline is None else now + (deadline - now) / 2
    rows: list[ModelRow] = stage.catalog.models()
    broken = {row.model: "MISSING" for row in rows if not home.has_model(row.model)}
    if not read_data:
        return Models(broken)
    unread = [row.model for row in rows]
    random.shuffle(unread)
    while unread and (until is None or time.time() <= until):
        model = unread.pop()
        broken.pop(model, None)
        code = check(home.models / model)
        if code:
            broken[model] = code
    return Models(broken, len(unread))


def verify_versions(stage: Stage, tier: str, versions: Container[str | None], read_data: bool) -> list[Checked]:
    """Check these versions of one tier; those that are damaged or gone."""
    checks = [check for check in plan(stage.workspace, tier) if check.version in versions]
    return [found for found in run_checks(stage, checks, read_data, None) if found.code]


def run_checks(stage: Stage, checks: Sequence[Check], read_data: bool, deadline: float | None) -> list[Checked]:
    """Spread checks over the cluster and write what they find into the catalog as they come back."""
    results: list[Checked] = []
    work = partial(verify_batch, read_data=read_data, deadline=deadline)
    for done in stage.cluster.run(work, batches_by_size(checks, _cost, BATCH_BYTES, stage.cluster.workers)):
        results += record(stage.workspace, done.result or [])
        advance("verify", len(results), len(checks), "versions")
    return results


def verify_batch(checks: Sequence[Check], *, read_data: bool, deadline: float | None) -> list[Checked]:
    """Check a batch in a worker process; what is left at the deadline is not reported as checked."""
    results = []
    for check in checks:
        if deadline is not None and time.time() > deadline:
            break
        results.append(verify_version(check, read_data))
    return results


def _cost(check: Check) -> int:
    return max(1, check.bytes)

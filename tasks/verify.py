"""Check stored versions against their manifests, the longest unchecked first."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from archive.errors import VoxbookError
from archive.verify import Check, Checked, plan, record, verify_version
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.stage import Stage, recorded

BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Verified:
    """How many versions were due, what was found, and the models whose files are not what their id says."""

    planned: int
    checked: tuple[Checked, ...]
    broken_models: dict[str, str]


@recorded("verify-stores", "verify")
def verify_stores(stage: Stage, deadline: float | None) -> Verified:
    """Check versions of both tiers in turn; stops at `deadline` (Unix time), and the next run goes on from there."""
    settings = stage.settings.verify
    codes, volumes = (plan(stage.workspace, tier, settings.sample) for tier in ("codes", "volume"))
    # In turn, so that a short time does not go to one tier night after night.
    checks = [check for pair in zip_longest(codes, volumes) for check in pair if check is not None]
    found = run_checks(stage, checks, settings.read_data, deadline)
    return Verified(len(checks), tuple(found), broken_models(stage) if settings.read_data else {})


def broken_models(stage: Stage) -> dict[str, str]:
    """Reason code by id of every model that current codes name and that cannot decode them any more."""
    from model.bundle import load

    broken = {}
    for name in sorted({row.model for row in stage.catalog.encodings(current_only=True)}):
        try:
            load(stage.workspace.models / name, name, device="cpu")
        except VoxbookError as error:
            broken[name] = "MISSING" if error.code == "MISSING" else "DAMAGED"
    return broken


def verify_versions(stage: Stage, tier: str, versions: Container[str | None], read_data: bool) -> list[Checked]:
    """Check these current versions of one tier; those that are damaged or gone."""
    checks = [check for check in plan(stage.workspace, tier) if check.version in versions]
    return [found for found in run_checks(stage, checks, read_data, None) if found.code]


def run_checks(stage: Stage, checks: Sequence[Check], read_data: bool, deadline: float | None) -> list[Checked]:
    """Spread checks over the cluster and write what they find into the catalog as they come back."""
    results: list[Checked] = []
    work = partial(verify_batch, read_data=read_data, deadline=deadline)
    for done in stage.cluster.run(work, batches_by_size(checks, _cost, BATCH_BYTES, stage.cluster.workers)):
        found = done.result or []
        record(stage.workspace, found)
        results += found
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

"""Check stored versions against their manifests, the longest unchecked first."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE

from archive.verify import Check, Checked, plan, record, verify_version
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.stage import Stage

BATCH_BYTES = 64 * 2**20


@task(name="verify-store", task_run_name="verify {tier}", cache_policy=NO_CACHE, persist_result=False)
def verify_store(stage: Stage, tier: str, deadline: float | None) -> list[Checked]:
    """Check the versions of one tier; stops at `deadline` (Unix time), and the next run goes on from there."""
    settings = stage.settings.verify
    return run_checks(stage, tier, plan(stage.workspace, tier, settings.sample), settings.read_data, deadline)


def verify_codes(stage: Stage, versions: Container[str]) -> list[str]:
    """Read every byte of these versions of codes; the series whose codes are damaged or gone."""
    checks = [check for check in plan(stage.workspace, "codes") if check.version in versions]
    return [found.series for found in run_checks(stage, "codes", checks, True, None) if found.code]


def run_checks(
    stage: Stage, tier: str, checks: Sequence[Check], read_data: bool, deadline: float | None
) -> list[Checked]:
    """Spread checks over the cluster and write what they find into the catalog as they come back."""
    results: list[Checked] = []
    work = partial(verify_batch, read_data=read_data, deadline=deadline)
    for done in stage.cluster.run(work, batches_by_size(checks, _cost, BATCH_BYTES, stage.cluster.workers)):
        found = done.result or []
        record(stage.workspace, found)
        results += found
        advance(f"verify {tier}", len(results), len(checks), "versions")
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

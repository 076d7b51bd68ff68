"""Events that automations can listen to: a gate that was missed, a model that was promoted, a store that is damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from archive.catalog_schema import CertificateRow
from tasks.stage import Outcome, recording

logger = logging.getLogger("voxbook")

MOST_SERIES = 50  # events of one run about single series; the run's own event holds the count of all

SERIES_FAILED = "voxbook.series.quality_failed"
GATE_FAILED = "voxbook.gate.failed"
QUARANTINED = "voxbook.series.quarantined"
DAMAGED = "voxbook.store.damaged"
TRAINED = "voxbook.model.trained"
PROMOTED = "voxbook.model.promoted"
REPORTED = "voxbook.report.written"


def tell(event: str, kind: str, name: str, **payload: Any) -> None:
    """Send one event about one thing: a workspace by its folder's name, a series or a model by its id.

    Prefect adds the flow run that it came from. Nothing is sent where nothing is recorded.
    """
    if not recording():
        return
    from prefect.events import emit_event

    try:
        emit_event(event, {"prefect.resource.id": f"voxbook.{kind}.{name}", "voxbook.kind": kind}, payload=payload)
    except Exception as error:  # an automation that hears nothing is no reason to lose the work
        logger.warning(
            "event %s was not sent (%s): automations do not hear of it; the work goes on", event, type(error).__name__
        )


def tell_outcome(outcome: Outcome, workspace: str) -> None:
    """The events that follow from what any stage did."""
    about = {"verb": outcome.verb, "run": outcome.run, "sentence": outcome.sentence, "reasons": outcome.reasons}
    if outcome.below_gate:
        tell(GATE_FAILED, "workspace", workspace, count=outcome.below_gate, **about)
    if outcome.quarantined:
        tell(QUARANTINED, "workspace", workspace, count=outcome.quarantined, **about)
    if outcome.damaged:
        series = sorted(
            {problem["series"] for problem in outcome.problems if "series" in problem and problem.get("current", True)}
        )
        tell(DAMAGED, "workspace", workspace, count=outcome.damaged, series=series[:MOST_SERIES], **about)


def tell_failed(failed: Iterable[CertificateRow], workspace: str) -> None:
    """An event for each series that missed its gate, the first of them only."""
    for row in list(failed)[:MOST_SERIES]:
        tell(
            SERIES_FAILED,
            "series",
            row.series,
            workspace=workspace,
            psnr=row.psnr,
            ssim=row.ssim,
            reasons=row.data.get("reasons", []),
        )

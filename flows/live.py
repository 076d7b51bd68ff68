"""While a stage runs in Prefect: its progress as people watch it, its turn, and the wish to suspend it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from archive.errors import TransientError
from flows.artifacts import key
from tasks.progress import Step, listening
from tasks.stage import Stage, recording

logger = logging.getLogger("voxbook")

UPDATE_S = 5.0  # between two updates of a progress artifact: a request each, whatever the archive's size
TURN_S = 5.0
LONGEST_WAIT_S = 24 * 3600.0
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

_runs: list[UUID] = []  # the flow runs that this process is in, the outermost first


@contextmanager
def attended(stage: Stage) -> Iterator[None]:
    """Take the stage's turn on its workspace, then show how far it is until it ends.

    Two runs of one stage on one workspace: the later one of Prefect waits. Outside Prefect nobody waits: the leases of
    single series keep two runs apart as well, and a person at a terminal sees both.
    """
    if not recording():
        stage.leases.acquire([_turn(stage)])
        yield
        return
    take_turn(stage)
    with listening(Live(stage.workspace.root.name)):
        yield


@contextmanager
def within(run: UUID) -> Iterator[None]:
    """Note that this process is in a flow run: suspending any of them suspends the work."""
    _runs.append(run)
    try:
        yield
    finally:
        _runs.remove(run)


def take_turn(stage: Stage, wait_s: float = LONGEST_WAIT_S) -> None:
    """Wait until no other live run of this stage works on this workspace. Raises TransientError LEASED after `wait_s`."""
    started = time.monotonic()
    told = False
    while not stage.leases.acquire([_turn(stage)]):
        if time.monotonic() - started > wait_s:
            raise TransientError("LEASED", f"another run of {stage.verb} has held this workspace for {wait_s:.0f} s")
        if not told:
            holder = next((lease for lease in stage.leases.holders() if lease.resource == _turn(stage)), None)
            whose = f"run {holder.run}, process {holder.pid} of {holder.host}" if holder else "another run"
            logger.info("%s waits for its turn: %s works on this workspace", stage.verb, whose)
            told = True
        time.sleep(TURN_S)
        obey()
    stage.started = time.monotonic()  # waiting is no part of what the stage took


def obey() -> None:
    """Leave where somebody suspended one of our flow runs, and stand still where one is paused.

    Raises prefect's Pause, a BaseException: everything that a stage holds is given back on the way out, and whoever
    resumes the run starts the stage again, which goes on from what the catalog says.
    """
    from prefect.exceptions import Pause

    while (state := _paused()) is not None:
        if state.state_details.pause_reschedule:
            logger.info("suspended: what is done stays done; resume goes on from here")
            raise Pause(state=state)
        time.sleep(UPDATE_S)


def _paused() -> Any:
    """The paused state of one of our flow runs; None where all may go on, or the server does not say."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(run).state for run in _runs]
    except Exception as error:  # a server that restarts is no reason to stop
        logger.warning("Prefect does not answer (%s); going on", type(error).__name__)
        return None
    return next((state for state in states if state is not None and state.is_paused()), None)


class Live:
    """A listener that keeps one progress artifact for every step of a stage."""

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace
        self._shown: dict[str, UUID] = {}
        self._began: dict[str, tuple[float, float]] = {}
        self._due = 0.0

    def __call__(self, step: Step) -> None:
        """Create or update the artifact, at most every few seconds; then look whether the run is to stand still."""
        now = time.monotonic()
        started, already = self._began.setdefault(step.stage, (now, step.done))
        ends = step.done >= step.total
        if step.stage in self._shown and not ends and now < self._due:
            return
        self._due = now + UPDATE_S
        try:
            self._show(step, described(step, now - started, step.done - already))
        except Exception as error:  # work goes on where nobody can see it
            logger.warning("progress is not shown in Prefect (%s); the work goes on", type(error).__name__)
        if not ends:
            obey()

    def _show(self, step: Step, words: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = 100.0 * min(1.0, step.done / step.total) if step.total else 100.0
        known = self._shown.get(step.stage)
        if known is None:
            made = create_progress_artifact(share, key=key(self.workspace, step.stage, "progress"), description=words)
            self._shown[step.stage] = made  # type: ignore[assignment]
        else:
            update_progress_artifact(known, share, description=words)


def described(step: Step, elapsed_s: float, gained: float) -> str:
    """Where a step stands, in words: what is done, how fast, and how long it will still take."""
    parts = [f"{step.stage}: {scaled(step.done)} of {scaled(step.total)} {step.unit}"]
    if step.text:
        parts.append(step.text)
    if step.unit != "s" and elapsed_s > 0 and gained > 0:
        rate = gained / elapsed_s
        parts.append(f"{scaled(rate)} {step.unit}/s")
        if step.done < step.total:
            parts.append(f"about {lasting((step.total - step.done) / rate)} left")
    elif step.unit == "s" and step.done < step.total:
        parts.append(f"{lasting(step.total - step.done)} left")
    return ", ".join(parts)


def scaled(number: float) -> str:
    """A number as people say it: 940, 12.5 k, 3.1 M, 1.2 G."""
    for size, letter in SCALES:
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def lasting(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _turn(stage: Stage) -> str:
    return f"stage:{stage.verb}"

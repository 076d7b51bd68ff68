"""What makes a stage a flow: its names and tags in Prefect, its turn and progress, and words for what stops it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow

from archive.errors import REASONS, VoxbookError, describe
from flows.live import attended, within
from flows.parameters import described
from flows.recording import workspace_name
from tasks.stage import Stage, open_stage, recording

logger = logging.getLogger("voxbook")

P = ParamSpec("P")
R = TypeVar("R")


def stage_flow(verb: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function the flow of a verb.

    Its runs are named by verb, workspace, group and model, and tagged so that the UI can filter by each. What stops one
    becomes its state's message: a sentence and what to do. No message of another library gets there, nor a traceback:
    either may hold a path or a name.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        described(function)

        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> R:
            if not recording():
                return function(*args, **kwargs)
            from prefect.context import FlowRunContext

            context = FlowRunContext.get()
            assert context is not None and context.flow_run is not None  # `recording` has looked
            try:
                _tag(context.flow_run, tags_of(verb, context.parameters or {}))
                with within(context.flow_run.id):
                    return function(*args, **kwargs)
            except Exception as error:
                return _stopped(verb, error)

        # Prefect would look for the names in annotations here, where they are unknown.
        body.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        return flow(name=verb, flow_run_name=lambda: _name(verb), persist_result=False)(body)

    return decorate


@contextmanager
def staged(verb: str, workspace: str | Path, overrides: Sequence[str] = (), *, create: bool = False) -> Iterator[Stage]:
    """A stage with its turn on the workspace and, inside Prefect, its progress for all to see."""
    with open_stage(verb, workspace, overrides, create=create) as stage, attended(stage):
        yield stage


def run_name(verb: str, parameters: dict[str, Any]) -> str:
    """The name of a run: `encode archive, ct, model 3f2a91c04b77, dry run`; never a path."""
    parts = [f"{verb} {workspace_name(parameters)}".strip()]
    if parameters.get("group"):
        parts.append(str(parameters["group"]))
    if parameters.get("model"):
        parts.append(f"model {str(parameters['model'])[:12]}")
    if parameters.get("series"):
        parts.append(f"{len(parameters['series'])} series")
    if parameters.get("dry_run"):
        parts.append("dry run")
    return ", ".join(parts)


def tags_of(verb: str, parameters: dict[str, Any]) -> list[str]:
    """What the UI filters runs by: voxbook, the verb, the workspace's folder and the group."""
    found = ["voxbook", verb, f"workspace:{workspace_name(parameters)}"]
    return [*found, f"group:{parameters['group']}"] if parameters.get("group") else found


def _tag(run: Any, found: list[str]) -> None:
    """Put tags on a flow run, whoever started it: a deployment knows neither workspace nor group beforehand."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=sorted({*run.tags, *found}))
    except Exception as error:  # runs that are harder to find are no reason to lose the work
        logger.warning("the run has no tags in Prefect (%s); the work goes on", type(error).__name__)


def _name(verb: str) -> str:
    from prefect.runtime import flow_run

    return run_name(verb, flow_run.parameters)


def _stopped(verb: str, error: Exception) -> Any:
    """The Failed state of a run that something stopped, with the error as what `run_stage` raises again."""
    from prefect.states import Failed

    if isinstance(error, VoxbookError):
        words = f"{verb} stopped: {error.message} ({error.code}). {error.hint}".strip()
    else:
        words = f"{verb} stopped: UNEXPECTED, {describe(error)}. {REASONS['UNEXPECTED'].hint}"
    logger.error(words)
    return Failed(message=words, data=error)

"""What every stage has around its work: the workspace, a row in the runs table, leases, a cluster, one summary."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from archive.catalog_schema import now
from archive.errors import VoxbookError, describe
from archive.leases import Leases
from archive.settings import Settings
from archive.workspace import Workspace
from tasks.cluster import Cluster, open_cluster

logger = logging.getLogger("voxbook")

# What ends a run without being an error: by the names of Prefect's signals, which nothing here imports.
ENDED = {"Pause": "suspended", "TerminationSignal": "cancelled", "KeyboardInterrupt": "interrupted"}

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What a stage did: counts for programs, one sentence for people, and what the exit code follows from.

    quarantined, below_gate, damaged and found decide the exit code (flows.console.exit_code).
    """

    verb: str
    run: str
    counts: dict[str, Any]
    reasons: dict[str, int] = field(default_factory=dict)
    sentence: str = ""
    found: bool = True
    quarantined: int = 0
    below_gate: int = 0
    damaged: int = 0
    problems: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The one JSON object of `--json`."""
        data = {"verb": self.verb, **self.counts, "run": self.run}
        if self.reasons:
            data["reasons"] = dict(self.reasons)
        if self.problems:
            data["problems"] = list(self.problems)
        return data


class Stage:
    """One run of one verb on one workspace. A plain class, so that Prefect does not walk through its fields."""

    def __init__(self, verb: str, workspace: Workspace, run: str, leases: Leases, cluster: Cluster) -> None:
        self.verb = verb
        self.workspace = workspace
        self.run = run
        self.leases = leases
        self.cluster = cluster
        self.started = time.monotonic()
        self.began = now()
        self.reasons: collections.Counter[str] = collections.Counter()
        self.counts: dict[str, float] = {}  # what the runs table and the report show of it
        self.state = "completed"

    @property
    def catalog(self):
        """The workspace's catalog; only this process writes it."""
        return self.workspace.catalog

    @property
    def settings(self):
        """The resolved settings of this run."""
        return self.workspace.settings

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return round(time.monotonic() - self.started, 3)


@contextmanager
def open_stage(verb: str, root: str | Path, overrides: Sequence[str] = (), *, create: bool = False) -> Iterator[Stage]:
    """Open a workspace for one run of a verb; the run's row is closed whatever happens."""
    workspace = Workspace.open(Path(root), overrides, create=create)
    catalog = workspace.catalog
    run = catalog.start_run(verb)
    try:
        with (
            Leases(catalog, run) as leases,
            open_cluster(workspace.settings.cluster, gpu=_computes(verb, workspace.settings)) as cluster,
        ):
            stage = Stage(verb, workspace, run, leases, cluster)
            yield stage
    except VoxbookError as error:
        with contextlib.suppress(VoxbookError):  # a full disk takes not even that; what ended the run must stay visible
            catalog.end_run(run, "failed", {"code": error.code})
        raise
    except BaseException as error:
        # The type alone: a message of another library may hold a path or a name.
        name = type(error).__name__
        catalog.end_run(run, ENDED.get(name, "failed"), {"error": name})
        raise
    else:
        catalog.end_run(run, stage.state, {**stage.counts, "seconds": stage.seconds, "reasons": dict(stage.reasons)})


def _computes(verb: str, settings: Settings) -> bool:
    """Whether a verb's workers compute on a GPU where there is one."""
    return verb in ("encode", "repair", "promote") and settings.encode.device != "cpu"


def recorded(name: str, run_name: str | None = None) -> Callable[[Function], Function]:
    """Mark a function as a task of Prefect, for `call`; it stays a plain function, and its module free of Prefect.

    Workers import these modules: Prefect would double the time that they take to start. run_name: a template over the
    function's arguments; none: the name.
    """

    def mark(function: Function) -> Function:
        function.__dict__["task_options"] = {"name": name, "task_run_name": run_name or name}
        return function

    return mark


def recording() -> bool:
    """Whether a Prefect flow run is under way here."""
    context = sys.modules.get("prefect.context")  # nobody who has not imported it runs in a flow
    return context is not None and context.FlowRunContext.get() is not None


def call(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """A `recorded` function: as a task run inside a Prefect flow run, as itself where nothing is recorded."""
    if not recording():
        return function(*args, **kwargs)
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Failed

    done: list[Result] = []
    stopped: list[Exception] = []

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            done.append(function(*args, **kwargs))
        except Exception as error:
            # Prefect would keep the message and the traceback of the error itself, which may hold a path.
            stopped.append(error)
            if isinstance(error, VoxbookError):
                return Failed(message=f"{error.message} ({error.code}). {error.hint}")
            return Failed(message=describe(error))
        return None

    as_task: Any = task(**function.__dict__["task_options"], cache_policy=NO_CACHE, persist_result=False)
    state = as_task(told)(*args, return_state=True, **kwargs)
    if stopped:
        raise stopped[0]
    if not done:  # ended by Prefect before it began
        state.result()
    return done[0]

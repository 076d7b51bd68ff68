"""What every stage has around its work: the workspace, a row in the runs table, leases, a cluster, one summary."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive.errors import VoxbookError
from archive.leases import Leases
from archive.workspace import Workspace
from tasks.cluster import Cluster, open_cluster

logger = logging.getLogger("voxbook")


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
        with Leases(catalog, run) as leases, open_cluster(workspace.settings.cluster) as cluster:
            stage = Stage(verb, workspace, run, leases, cluster)
            yield stage
    except VoxbookError as error:
        catalog.end_run(run, "failed", {"code": error.code})
        raise
    except BaseException as error:
        # The type alone: a message of another library may hold a path or a name.
        catalog.end_run(run, "failed", {"error": type(error).__name__})
        raise
    else:
        catalog.end_run(run, stage.state, {**stage.counts, "seconds": stage.seconds, "reasons": dict(stage.reasons)})


def call(task: Any, *args: Any, **kwargs: Any) -> Any:
    """A task inside a Prefect flow run; the plain function behind it where nothing is recorded."""
    from prefect.context import FlowRunContext

    return task(*args, **kwargs) if FlowRunContext.get() else task.fn(*args, **kwargs)

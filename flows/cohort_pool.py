"""Series written side by side by processes: what one of them does to its worker is its own affair."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive.errors import VoxbookError, describe
from archive.workspace import Workspace
from flows.export import Tier, export
from tasks.machine import cores, memory_bytes

logger = logging.getLogger("voxbook")

PROCESS_BYTES = 3 * 2**28  # of memory, whatever it writes; measured: 0.2 to 0.4 GiB of volumes, 0.4 to 0.5 of codes


@dataclass(frozen=True)
class Job:
    """One series to write: where it is made (`staged`) and goes (`target`), and what decides what it holds (`key`)."""

    workspace: Path
    series: str
    staged: Path
    target: Path
    key: str
    tier: Tier
    levels: int | None
    roi: str | None


@dataclass(frozen=True)
class Written:
    """What became of a job: what was written, or the reason code why it was not."""

    job: Job
    code: str = ""
    told: dict[str, Any] = field(default_factory=dict)


def processes() -> int:
    """How many series this machine writes side by side."""
    return max(1, min(cores(), memory_bytes() // PROCESS_BYTES))


def written(jobs: Iterator[Job], count: int) -> Iterator[Written]:
    """Each job as it ends, by so many processes; they end with this one, however it ends.

    A job whose process dies is tried once more, alone; dies that too, it is WORKER_KILLED. The others go on.
    """
    if count <= 1:
        yield from map(write_one, jobs)
        return
    while True:
        suspects: deque[Job] = deque()
        yield from _together(jobs, count, suspects)
        if not suspects:
            return
        for job in suspects:
            yield from _alone(job)


def _together(jobs: Iterator[Job], count: int, suspects: deque[Job]) -> Iterator[Written]:
    """Jobs until all are done, or until the pool breaks: those under way are `suspects` then."""
    running: dict[Future[Written], Job] = {}
    with _pool(count) as pool:
        while True:
            while len(running) <= count and not suspects and (job := next(jobs, None)) is not None:
                try:
                    running[pool.submit(write_one, job)] = job
                except BrokenProcessPool:
                    suspects.append(job)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    suspects.append(job)


def _alone(job: Job) -> Iterator[Written]:
    with _pool(1) as pool:
        try:
            yield pool.submit(write_one, job).result()
        except BrokenProcessPool:
            yield Written(job, "WORKER_KILLED")


def write_one(job: Job) -> Written:
    """Write one series where it is staged; whatever goes wrong is the reason code of this series alone."""
    try:
        _clear(job.staged)
        done = export(Workspace.open(job.workspace), job.series, job.staged, job.tier, job.levels, job.roi)
        return Written(job, told=done.as_dict())
    except VoxbookError as error:
        return Written(job, error.code)
    except OSError as error:
        logger.warning("series %s is not written: %s", job.series, describe(error))
        return Written(job, "NOT_WRITABLE")
    except Exception as error:  # one odd series must not stop ten thousand others; it is listed, not hidden
        logger.warning("series %s is not written: %s", job.series, describe(error))
        return Written(job, "UNEXPECTED")


def _clear(staged: Path) -> None:
    """What an attempt that died left there."""
    from archive.commit import remove_tree

    if staged.is_dir():
        remove_tree(staged)
    else:
        staged.unlink(missing_ok=True)


def _pool(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _start, (count,))


def _start(count: int) -> None:
    """In a process of the pool: its share of the cores, and its end when its parent is gone."""
    import torch

    torch.set_num_threads(max(1, cores() // count))
    threading.Thread(target=_end_with_parent, name="voxbook-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # it holds both ends of the pool's pipes itself, so they never close
        parent.join()
        os._exit(1)

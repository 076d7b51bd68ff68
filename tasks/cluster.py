"""Where batches run: in Dask workers started here, on a scheduler somebody else started, or in this process."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from archive.errors import StoreError
from archive.settings import ClusterSettings

logger = logging.getLogger("voxbook")

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30
AHEAD = 3  # batches per worker that are ready or running; what a generator has not made yet takes no memory

# What every process that we start is told: no telemetry, no user file before ours, one thread per core's worker.
WORKER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Dask tells glibc to give memory back at once, and so every slice to fault its pages in anew: a third of the time.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20)}


@dataclass(frozen=True)
class Done:
    """One batch that came back: its items, and the result, or None where its worker died with it again and again."""

    items: Sequence[Any]
    result: Any | None


class Cluster:
    """Runs an importable function over batches; started on first use, so a stage with nothing to do starts nothing."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._local: Any = None

    @property
    def workers(self) -> int:
        """How many batches run side by side (of a remote scheduler: its workers now)."""
        if self._settings.address == "inline":
            return 1
        if self._settings.address == "local":
            return self._settings.workers or os.cpu_count() or 1
        return max(1, len(self._connect().scheduler_info(n_workers=-1)["workers"]))

    def run(self, function: Callable[[list[Item]], Result], batches: Iterable[list[Item]]) -> Iterator[Done]:
        """Yield each batch as it is done; batches are taken from a generator only as far as workers need them.

        A batch that kills its worker comes back as its single items tried again, the killer as Done(items, None).
        Exceptions of `function` are raised here: it is expected to turn what belongs to one item into its result.
        """
        if self._settings.address == "inline":
            for batch in batches:
                yield Done(batch, function(batch))
            return
        yield from self._run_dask(function, iter(batches))

    def _run_dask(self, function: Callable[[list[Item]], Result], batches: Iterator[list[Item]]) -> Iterator[Done]:
        first = next(batches, None)
        if first is None:
            return
        from distributed import KilledWorker, as_completed

        client = self._connect()
        queue = as_completed(loop=client.loop)
        waiting: dict[Any, list[Item]] = {}
        room = AHEAD * self.workers

        def submit(more: Iterable[list[Item]]) -> None:
            for batch in more:
                future = client.submit(function, batch, pure=False)
                waiting[future] = batch
                queue.add(future)

        submit([first])
        submit(itertools.islice(batches, room - 1))
        suspects: list[Item] = []
        for future in queue:
            batch = waiting.pop(future)
            submit(itertools.islice(batches, 1))
            try:
                yield Done(batch, future.result())
            except KilledWorker:
                suspects += batch
            future.release()
        # Dask blames everything that lay on a worker when it died; alone, only the killer is left to blame.
        for item in suspects:
            try:
                yield Done([item], client.submit(function, [item], pure=False).result())
            except KilledWorker:
                yield Done([item], None)
        if suspects:
            logger.warning("%d items were on workers that died again and again; each was tried alone", len(suspects))

    def _connect(self) -> Any:
        if self._client is None:
            from distributed import Client

            address: Any = self._settings.address
            if address == "local":
                self._local = address = _local_cluster(self._settings, self.workers)
            try:
                self._client = Client(address, set_as_default=False, timeout=CONNECT_SECONDS)
            except OSError as error:
                raise StoreError(
                    "NOT_FOUND",
                    f"no Dask scheduler answers at {self._settings.address}",
                    hint="start it, or cluster=local",
                ) from error
        return self._client

    def close(self) -> None:
        """End what was started here; a remote scheduler is only left."""
        if self._client is not None:
            self._client.close()
        if self._local is not None:
            self._local.close()
        self._client = self._local = None


def _local_cluster(settings: ClusterSettings, workers: int) -> Any:
    """Workers on this machine: those that were started ahead, or new ones."""
    global _ahead
    ahead, _ahead = _ahead, None
    if ahead is not None:
        return ahead.result()
    return _start(settings, workers)


def _start(settings: ClusterSettings, workers: int, preload: Sequence[str] = ()) -> Any:
    import dask
    from distributed import LocalCluster

    for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Dask's own warnings print arguments, and those hold paths.
    dask.config.set({"distributed.admin.log-length": 0, "distributed.worker.daemon": False})
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in MALLOC.items()})
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=settings.memory_limit,
        env=WORKER_ENVIRONMENT,
        preload=list(preload),
    )


_ahead: Future[Any] | None = None


def start_ahead(settings: ClusterSettings, preload: str) -> None:
    """Start local workers in a thread, for a verb that is sure to need them, while it still imports Prefect.

    preload: the module whose functions they will run. The next `open_cluster` of this process takes them over.
    """
    global _ahead
    if settings.address != "local" or _ahead is not None:
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="start-workers")
    _ahead = pool.submit(_start, settings, Cluster(settings).workers, (preload,))
    pool.shutdown(wait=False)


@contextmanager
def open_cluster(settings: ClusterSettings) -> Iterator[Cluster]:
    """A Cluster that is closed at the end, with workers that were started ahead and not needed."""
    cluster = Cluster(settings)
    try:
        yield cluster
    finally:
        try:
            cluster.close()
        finally:
            if _ahead is not None:
                with contextlib.suppress(Exception):  # nobody needed them, not even to fail
                    _local_cluster(settings, 0).close()


def batches_by_size(items: Sequence[Item], size: Callable[[Item], int], limit: int, workers: int) -> list[list[Item]]:
    """Cut items into batches of at most `limit` (one item may exceed it), at least four per worker where there are.

    The order of the items is kept, so that a run and its repetition cut alike.
    """
    total = sum(size(item) for item in items)
    return list(cut(items, size, max(1, min(limit, -(-total // (4 * workers))))))


def cut(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Items in batches of at most `limit` (one item may exceed it), each as soon as it is full."""
    batch: list[Item] = []
    filled = 0
    for item in items:
        if batch and filled + size(item) > limit:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += size(item)
    if batch:
        yield batch

"""Where batches run: in Dask workers started here, on a scheduler somebody else started, or in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from archive.errors import StoreError
from archive.settings import ClusterSettings

logger = logging.getLogger("voxbook")

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30

# What every process that we start is told: no telemetry, no user file before ours, one thread per core's worker.
WORKER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


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

    def run(self, function: Callable[[list[Item]], Result], batches: Sequence[list[Item]]) -> Iterator[Done]:
        """Yield each batch as it is done.

        A batch that kills its worker comes back as its single items tried again, the killer as Done(items, None).
        Exceptions of `function` are raised here: it is expected to turn what belongs to one item into its result.
        """
        if not batches:
            return
        if self._settings.address == "inline":
            for batch in batches:
                yield Done(batch, function(batch))
            return
        yield from self._run_dask(function, batches)

    def _run_dask(self, function: Callable[[list[Item]], Result], batches: Sequence[list[Item]]) -> Iterator[Done]:
        from distributed import KilledWorker, as_completed

        client = self._connect()
        waiting = {client.submit(function, batch, pure=False): batch for batch in batches}
        suspects: list[Item] = []
        for future in as_completed(list(waiting), loop=client.loop):
            batch = waiting.pop(future)
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
            logger.warning("%d series were on workers that died again and again; each was tried alone", len(suspects))

    def _connect(self) -> Any:
        if self._client is None:
            import dask
            from distributed import Client, LocalCluster

            for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler"):
                logging.getLogger(name).setLevel(logging.ERROR)
            # Dask's own warnings print arguments, and those hold paths.
            dask.config.set({"distributed.admin.log-length": 0, "distributed.worker.daemon": False})
            address: Any = self._settings.address
            if address == "local":
                self._local = LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=self._settings.memory_limit,
                    env=WORKER_ENVIRONMENT,
                )
                address = self._local
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


@contextmanager
def open_cluster(settings: ClusterSettings) -> Iterator[Cluster]:
    """A Cluster that is closed at the end."""
    cluster = Cluster(settings)
    try:
        yield cluster
    finally:
        cluster.close()


def batches_by_size(items: Sequence[Item], size: Callable[[Item], int], limit: int, workers: int) -> list[list[Item]]:
    """Cut items into batches of at most `limit` (one item may exceed it), at least four per worker where there are.

    The order of the items is kept, so that a run and its repetition cut alike.
    """
    total = sum(size(item) for item in items)
    limit = max(1, min(limit, -(-total // (4 * workers))))
    batches: list[list[Item]] = []
    filled = 0
    for item in items:
        if not batches or filled + size(item) > limit:
            batches.append([])
            filled = 0
        batches[-1].append(item)
        filled += size(item)
    return batches

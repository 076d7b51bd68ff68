"""Where batches run: in Dask workers started here or by SLURM, on somebody's scheduler, or in this process."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from archive.errors import ConfigError, StoreError
from archive.settings import ClusterSettings
from tasks.builds import build, run_as
from tasks.machine import gpus, local_workers

logger = logging.getLogger("voxbook")

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30
NO_WORKERS = "60s"  # after which a cluster of ours without a worker gives up
KILLS = 3  # workers that an item may kill, alone on them, until it is given up
PIECES = 8  # a batch that killed its worker is cut into; a killer among 2,000 items is then alone after four deaths
AHEAD = 3  # batches per worker that are ready or running; what a generator has not made yet takes no memory

# What every process that we start is told: no telemetry, no user file before ours, one thread per core's worker.
WORKER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Dask's logs of what its state machines did hold every batch that was sent: 150 kB each, thousands of them.
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "0",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "0",
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

    def __init__(self, settings: ClusterSettings, *, gpu: bool = False) -> None:
        """gpu: the stage computes on a GPU where there is one, so that local workers are one per GPU."""
        self._settings = settings
        self._gpu = gpu
        self._client: Any = None
        self._local: Any = None

    @property
    def workers(self) -> int:
        """How many batches run side by side (of a scheduler elsewhere: its workers now)."""
        address = self._settings.address
        if address == "inline":
            return 1
        if address == "local":
            return self._settings.workers or local_workers(gpu=self._gpu)
        if address == "local-gpu":
            return len(_devices())
        known = len(self._connect().scheduler_info(n_workers=-1)["workers"])
        slurm = self._settings.slurm
        return max(1, known, slurm.jobs * slurm.cores if address == "slurm" else 0)

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
                future = self._submit(function, batch)
                waiting[future] = batch
                queue.add(future)

        submit([first])
        submit(itertools.islice(batches, room - 1))
        suspects: list[Item] = []
        for future in queue:
            batch = waiting.pop(future)
            submit(itertools.islice(batches, 1))
            try:
                yield Done(batch, _result(future))
            except KilledWorker:
                # Dask blames all that lay on a worker when it died, so every piece gets another chance.
                if len(batch) == 1:
                    suspects += batch
                else:
                    submit(_pieces(batch))
            future.release()
        for item in suspects:
            yield self._alone(function, item)
        if suspects:
            logger.warning(
                "%d items were on workers that died; each was tried alone, and only a killer is given up",
                len(suspects),
            )

    def _alone(self, function: Callable[[list[Item]], Result], item: Item) -> Done:
        """One item with no other beside it: only then is a worker's death its own doing."""
        from distributed import KilledWorker

        allowed = self._connect().run_on_scheduler(_allowed_failures)
        for _ in range(-(-KILLS // (1 + allowed))):
            try:
                return Done([item], _result(self._submit(function, [item])))
            except KilledWorker:
                continue
        return Done([item], None)

    def _submit(self, function: Callable[[list[Item]], Result], batch: list[Item]) -> Any:
        client = self._connect()
        if self._settings.address in ("local", "local-gpu"):  # the same files, by the same interpreter
            return client.submit(function, batch, pure=False)
        return client.submit(run_as, build(), function, batch, pure=False)

    def _connect(self) -> Any:
        if self._client is None:
            from distributed import Client

            address: Any = self._settings.address
            if address == "local":
                self._local = address = _local_cluster(self._settings, self.workers)
            elif address == "local-gpu":
                self._local = address = _start(self._settings, self.workers, devices=_devices())
            elif address == "slurm":
                from tasks.slurm import slurm_cluster

                self._local = address = slurm_cluster(self._settings.slurm, {**WORKER_ENVIRONMENT, **MALLOC})
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


def _pieces(batch: list[Item]) -> list[list[Item]]:
    size = -(-len(batch) // PIECES)
    return [batch[at : at + size] for at in range(0, len(batch), size)]


def _result(future: Any) -> Any:
    """A future's result; StoreError NOT_FOUND where its scheduler or every worker is gone for good."""
    from distributed.scheduler import NoValidWorkerError

    try:
        return future.result()
    except NoValidWorkerError as error:  # its words name keys of tasks, which say nothing to anybody
        raise StoreError("NOT_FOUND", "no Dask worker is left", hint="run again: what is done stays done") from error
    except CancelledError as error:
        raise StoreError(
            "NOT_FOUND", "the Dask scheduler is gone", hint="start it and run again: what is done stays done"
        ) from error


def _allowed_failures(dask_scheduler: Any) -> int:
    return int(dask_scheduler.allowed_failures)


def _devices() -> list[str]:
    """The GPUs of this machine. Raises ConfigError BAD_VALUE where there is none."""
    found = gpus()
    if not found:
        raise ConfigError("BAD_VALUE", "cluster = local-gpu finds no GPU here", hint="cluster=local")
    return found


def _local_cluster(settings: ClusterSettings, workers: int) -> Any:
    """Workers on this machine: those that were started ahead, or new ones."""
    global _ahead
    ahead, _ahead = _ahead, None
    if ahead is not None:
        return ahead.result()
    return _start(settings, workers)


def _start(settings: ClusterSettings, workers: int, preload: Sequence[str] = (), devices: Sequence[str] = ()) -> Any:
    """devices: what CUDA_VISIBLE_DEVICES is for each worker."""
    import dask
    from distributed import LocalCluster, Nanny, Scheduler, SpecCluster

    for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Dask's own warnings print arguments, and those hold paths; its logs of states hold whole batches.
    dask.config.set({"distributed.admin.log-length": 0, "distributed.admin.low-level-log-length": 0})
    dask.config.set({"distributed.worker.daemon": False})
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{key}": value for key, value in MALLOC.items()})
    dask.config.set({"distributed.scheduler.allowed-failures": 0})  # what died with its worker comes back to us at once
    # A worker is not back within 15 s where imports are slow, and Dask would close its nanny for good (deploy/spec.py).
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})
    # Where no nanny is left all the same, nothing else would ever end the wait.
    dask.config.set({"distributed.scheduler.no-workers-timeout": NO_WORKERS})
    if not devices:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # not 8787, which another cluster of this machine may have
            memory_limit=settings.memory_limit,
            env=WORKER_ENVIRONMENT,
            preload=list(preload),
        )
    # What dask-cuda would do for us here: no arrays travel, so its spilling and UCX have nothing to do.
    specification = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "host": "127.0.0.1",
                "dashboard_address": None,
                "dashboard": False,
                "memory_limit": settings.memory_limit,
                "env": {**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": device},
                "preload": list(preload),
            },
        }
        for number, device in enumerate(devices[:workers])
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": None}}
    return SpecCluster(workers=specification, scheduler=scheduler, name="local-gpu")


_ahead: Future[Any] | None = None


def start_ahead(settings: ClusterSettings, preload: str, *, gpu: bool = False) -> None:
    """Start local workers in a thread, for a verb that is sure to need them, while it still imports Prefect.

    preload: the module whose functions they will run; gpu: as for Cluster. The next `open_cluster` of this process takes
    them over.
    """
    global _ahead
    if settings.address != "local" or _ahead is not None:
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="start-workers")
    _ahead = pool.submit(_start, settings, Cluster(settings, gpu=gpu).workers, (preload,))
    pool.shutdown(wait=False)


@contextmanager
def open_cluster(settings: ClusterSettings, *, gpu: bool = False) -> Iterator[Cluster]:
    """A Cluster that is closed at the end, with workers that were started ahead and not needed."""
    cluster = Cluster(settings, gpu=gpu)
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
    return list(cut(items, size, batch_limit(sum(size(item) for item in items), limit, workers)))


def batch_limit(total: int, limit: int, workers: int) -> int:
    """The largest batch: `limit`, or less where there would be fewer than four per worker."""
    return max(1, min(limit, -(-total // (4 * workers))))


def cut(
    items: Iterable[Item], size: Callable[[Item], int], limit: int, most: int | None = None
) -> Iterator[list[Item]]:
    """Items in batches of at most `limit` (one item may exceed it) and `most` items, each as soon as it is full."""
    batch: list[Item] = []
    filled = 0
    for item in items:
        if batch and filled + size(item) > limit:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += size(item)
        if filled >= limit or len(batch) == most:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch

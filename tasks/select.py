"""Cross-validate candidates: one training per candidate, fold and seed, side by side in workers, none done twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from archive.catalog_schema import SeriesRow
from archive.errors import InputError
from archive.settings import ClusterSettings, TrainSettings
from archive.volumes import StoredVolume
from model.config import ModelConfig
from model.select import Candidate, Folds, Result, configured, evaluate
from tasks.cluster import Cluster
from tasks.progress import advance
from tasks.stage import Stage, recorded

logger = logging.getLogger("voxbook")

LEAST_STEPS = 20  # of a short rung, where steps and not time decide
# A remote worker may run several tasks in threads: trainings take turns, for threads and random numbers are a process's.
_ONE_TRAINING = threading.Lock()


@dataclass(frozen=True)
class SelectJob:
    """One training: which candidate, on which volumes, measured on which; small and picklable. key names its result."""

    candidate: Candidate
    fold: int
    training: dict[str, Path] = field(repr=False)
    testing: dict[str, Path] = field(repr=False)
    config: ModelConfig = field(repr=False)
    settings: TrainSettings = field(repr=False)
    seconds: float
    key: str


@dataclass(frozen=True)
class Validated:
    """Results of all jobs, and how many of them were trained now: the others lay there from an earlier run."""

    results: list[Result]
    trained: int


class Selection:
    """What all trainings of one selection share; `jobs` plans those of a rung. A plain class, as Stage is.

    cluster: where they run (`training_cluster`); every training gets the same share of the machine in every rung.
    """

    def __init__(
        self,
        stage: Stage,
        cluster: ClusterSettings,
        group: str,
        rows: Sequence[SeriesRow],
        cut: Folds,
        config: ModelConfig,
        seconds: float,
    ) -> None:
        self.cut, self.config, self.seconds = cut, config, seconds
        self.settings = share_machine(stage.settings.train_of(group), cluster)
        self.ledger = Ledger(stage.workspace.root / "selections" / "trainings.jsonl")
        self._digests = {row.series: stage.catalog.version(row.volume_version).content_digest for row in rows}
        self._where = {row.series: stage.workspace.volumes / row.series / row.volume_version for row in rows}

    def jobs(self, candidates: Sequence[Candidate], share: float = 1.0, seeds: Sequence[int] = ()) -> list[SelectJob]:
        """A job for every candidate, fold and seed; fold by fold, so that an early end has seen every candidate.

        share: of the full seconds, and of train.steps where they are set. seeds: train.seed alone where none are given.
        Raises ConfigError BAD_VALUE for a candidate that no model can have.
        """
        return [
            self._job(candidate, fold, shortened(self.settings, share, seed), self.seconds * share)
            for seed in seeds or [self.settings.seed]
            for fold in range(len(self.cut.tests))
            for candidate in candidates
        ]

    def _job(self, candidate: Candidate, fold: int, settings: TrainSettings, seconds: float) -> SelectJob:
        test = list(self.cut.tests[fold])
        learn = sorted(set(self._where) - set(test))
        chosen = configured(candidate, self.config, settings)
        spent = [seconds, settings.seed, settings.threads, settings.device]
        digests = [sorted(self._digests[series] for series in names) for names in (learn, test)]
        text = json.dumps([chosen.model_dump(mode="json"), spent, digests], sort_keys=True)
        return SelectJob(
            candidate=candidate,
            fold=fold,
            training={series: self._where[series] for series in learn},
            testing={series: self._where[series] for series in test},
            config=self.config,
            settings=settings,
            seconds=seconds,
            key=hashlib.sha256(text.encode()).hexdigest(),
        )


def shortened(settings: TrainSettings, share: float, seed: int) -> TrainSettings:
    """Settings of a rung: its share of the steps and epochs, where they are set; seconds are shared by the job."""
    given = {"steps": settings.steps, "epochs": settings.epochs}
    least = {"steps": LEAST_STEPS, "epochs": 1}
    fewer = {key: min(n, max(least[key], round(n * share))) for key, n in given.items() if n is not None}
    return settings.model_copy(update={"seed": seed, **fewer})


def training_cluster(cluster: ClusterSettings, device: str, trainings: int, gpus: int) -> ClusterSettings:
    """The cluster that trainings run on: no more local workers than the last rung has, nor than GPUs where they train.

    So the machine is shared alike in every rung, and the last one leaves no core idle.
    """
    if cluster.address != "local":
        return cluster
    workers = min(cluster.workers or os.cpu_count() or 1, max(1, trainings))
    if gpus and device != "cpu":
        workers = min(workers, gpus if device in ("auto", "cuda") else 1)
    return cluster.model_copy(update={"workers": workers})


def share_machine(settings: TrainSettings, cluster: ClusterSettings) -> TrainSettings:
    """The settings of one of several trainings that run side by side on this machine: its share of cores and cache."""
    if cluster.address != "local":
        return settings
    cores = os.cpu_count() or 1
    beside = cluster.workers or cores
    threads = settings.threads or max(1, cores // beside)
    return settings.model_copy(update={"threads": threads, "cache_bytes": max(1, settings.cache_bytes // beside)})


@recorded("cross-validate", "cross-validate {words}")
def cross_validate(stage: Stage, cluster: Cluster, ledger: Ledger, jobs: Sequence[SelectJob], words: str) -> Validated:
    """Train and measure what has no result yet; each result is written as it comes, so a killed run goes on.

    A training that diverges, does not fit or kills its worker is a Result with a code, and counted.
    """
    known = ledger.read()
    results: dict[str, Result | None] = {job.key: known.get(job.key) for job in jobs}
    todo = [job for job in jobs if results[job.key] is None]
    advance(words, len(jobs) - len(todo), len(jobs), "trainings")
    for number, done in enumerate(cluster.run(evaluate_batch, [[job] for job in todo]), 1):
        job = done.items[0]
        found = done.result[0] if done.result else failure(job, "WORKER_KILLED")
        results[job.key] = found
        if found.code:
            stage.reasons[found.code] += 1
        else:
            ledger.add(job.key, found)
        advance(words, len(jobs) - len(todo) + number, len(jobs), "trainings", f"{found.psnr:.1f} dB")
    return Validated([result for result in results.values() if result is not None], len(todo))


def evaluate_batch(jobs: Sequence[SelectJob]) -> list[Result]:
    """Train and measure in a worker process; a training that diverges or does not fit is its own result."""
    with _ONE_TRAINING:
        return [_evaluate(job) for job in jobs]


def _evaluate(job: SelectJob) -> Result:
    training, testing = (
        {series: StoredVolume(folder) for series, folder in part.items()} for part in (job.training, job.testing)
    )
    settings = placed(job.settings, *_whereabouts())
    try:
        return evaluate(job.candidate, training, testing, job.config, settings, job.seconds, job.fold)
    except InputError as error:
        if error.code != "NON_FINITE":
            raise
        return failure(job, error.code)
    except (MemoryError, torch.OutOfMemoryError):
        return failure(job, "NO_MEMORY")


def failure(job: SelectJob, code: str) -> Result:
    """The result of a training that came to nothing."""
    return Result(job.candidate, job.fold, job.settings.seed, job.seconds, code=code)


def placed(settings: TrainSettings, threads: int | None, name: Any, gpus: int) -> TrainSettings:
    """Settings as they hold in a Dask worker: the threads it was given, and of several GPUs one of its own.

    threads, name: of the worker, None outside of one. name: a number where voxbook started the worker.
    """
    if threads is not None and settings.threads is None:
        settings = settings.model_copy(update={"threads": threads})
    if gpus > 1 and settings.device in ("auto", "cuda") and isinstance(name, int):
        settings = settings.model_copy(update={"device": f"cuda:{name % gpus}"})
    return settings


def _whereabouts() -> tuple[int | None, Any, int]:
    from distributed import get_worker

    gpus = torch.cuda.device_count()
    try:
        worker = get_worker()
    except ValueError:  # not in a worker: inline
        return None, None, gpus
    return worker.state.nthreads, worker.name, gpus


class Ledger:
    """Results of trainings by key, one JSON object a line; what a killed run wrote is there for the next.

    Only the driver writes. A line is one write to the end of the file, so that two selections do not tear each other's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Result]:
        """Results by key; a line that does not read is left out, and its training is done again."""
        found: dict[str, Result] = {}
        if not self.path.exists():
            return found
        broken = 0
        for line in self.path.read_bytes().splitlines():
            try:
                data = json.loads(line)
                key, point = data.pop("key"), data.pop("candidate")
                candidate = Candidate(**{**point, "downsample": tuple(point["downsample"])})
                found[key] = Result(candidate, **data)
            except (ValueError, TypeError, KeyError, AttributeError):
                broken += bool(line.strip())
        if broken:
            logger.warning("%d stored results do not read; those trainings are done again", broken)
        return found

    def add(self, key: str, result: Result) -> None:
        """Append one result, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.open("ab+") as file:
            torn = b""
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = b"" if file.read(1) == b"\n" else b"\n"  # a killed run's half line must not take this one along
            file.write(torn + json.dumps({"key": key, **asdict(result)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

"""Cross-validate candidates: one training per candidate and fold, side by side in workers, none done twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from archive.catalog_schema import SeriesRow
from archive.errors import InputError
from archive.settings import TrainSettings
from archive.volumes import StoredVolume
from model.config import ModelConfig
from model.select import Candidate, Folds, Result, configured, evaluate
from tasks.progress import advance
from tasks.stage import Stage

logger = logging.getLogger("voxbook")


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


def plan_jobs(
    stage: Stage,
    rows: Sequence[SeriesRow],
    cut: Folds,
    candidates: Sequence[Candidate],
    config: ModelConfig,
    seconds: float,
) -> list[SelectJob]:
    """A job for every candidate and fold; fold by fold, so that an early end has seen every candidate as often."""
    versions = {row.series: stage.catalog.version(row.volume_version) for row in rows}
    where = {row.series: stage.workspace.volumes / row.series / row.volume_version for row in rows}
    settings = share_machine(stage.settings.train, stage.cluster.workers, stage.settings.cluster.address)
    jobs = []
    for number, test in enumerate(cut.tests):
        learn = sorted(set(where) - set(test))
        digests = [[versions[series].content_digest for series in names] for names in (learn, test)]
        for candidate in candidates:
            chosen = configured(candidate, config, settings)
            spent = [seconds, settings.seed, settings.threads, settings.device]
            text = json.dumps([chosen.model_dump(mode="json"), spent, *map(sorted, digests)], sort_keys=True)
            jobs.append(
                SelectJob(
                    candidate=candidate,
                    fold=number,
                    training={series: where[series] for series in learn},
                    testing={series: where[series] for series in test},
                    config=config,
                    settings=settings,
                    seconds=seconds,
                    key=hashlib.sha256(text.encode()).hexdigest(),
                )
            )
    return jobs


def share_machine(settings: TrainSettings, workers: int, address: str) -> TrainSettings:
    """The settings of one of several trainings that run side by side on this machine: its share of cores and cache."""
    if address != "local":
        return settings
    threads = settings.threads or max(1, (os.cpu_count() or 1) // workers)
    return settings.model_copy(update={"threads": threads, "cache_bytes": max(1, settings.cache_bytes // workers)})


@task(name="cross-validate", task_run_name="cross-validate {group}", cache_policy=NO_CACHE, persist_result=False)
def cross_validate(stage: Stage, group: str, jobs: Sequence[SelectJob]) -> Validated:
    """Train and measure what has no result yet; each result is written as it comes, so a killed run goes on."""
    folder = stage.workspace.root / "selections" / "trainings"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    results = {job.key: read_result(folder / f"{job.key}.json", job) for job in jobs}
    todo = [job for job in jobs if results[job.key] is None]
    advance(f"select {group}", len(jobs) - len(todo), len(jobs), "trainings")
    for number, done in enumerate(stage.cluster.run(evaluate_batch, [[job] for job in todo]), 1):
        job = done.items[0]
        found = done.result[0] if done.result else Result(job.candidate, job.fold, code="WORKER_KILLED")
        results[job.key] = found
        if found.code:
            stage.reasons[found.code] += 1
        else:
            write_result(folder / f"{job.key}.json", found)
        words = f"{found.candidate.codebook_size} codes, width {found.candidate.width}: {found.psnr:.1f} dB"
        advance(f"select {group}", len(jobs) - len(todo) + number, len(jobs), "trainings", words)
    return Validated([result for result in results.values() if result is not None], len(todo))


def evaluate_batch(jobs: Sequence[SelectJob]) -> list[Result]:
    """Train and measure in a worker process; a training that diverges is its own result."""
    return [_evaluate(job) for job in jobs]


def _evaluate(job: SelectJob) -> Result:
    training, testing = (
        {series: StoredVolume(folder) for series, folder in part.items()} for part in (job.training, job.testing)
    )
    try:
        return evaluate(job.candidate, training, testing, job.config, job.settings, job.seconds, job.fold)
    except InputError as error:
        if error.code != "NON_FINITE":
            raise
        return Result(job.candidate, job.fold, code=error.code)


def read_result(path: Path, job: SelectJob) -> Result | None:
    """The result of an earlier run of the same training; None where there is none that reads."""
    try:
        data = json.loads(path.read_bytes())
        return Result(**{**data, "candidate": job.candidate, "fold": job.fold})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        logger.warning("a stored result does not read; its training is done again")
        return None


def write_result(path: Path, result: Result) -> None:
    """All or nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(asdict(result)), encoding="utf-8")
    draft.rename(path)

"""Workers as jobs of a SLURM queue, through dask-jobqueue (`pip install voxbook[slurm]`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from archive.errors import ConfigError
from archive.settings import SlurmSettings


def slurm_cluster(settings: SlurmSettings, environment: dict[str, str]) -> Any:
    """A scheduler in this process, and its workers asked for from the queue: a fixed number of jobs, or as needed.

    Workers of other nodes must reach the scheduler, so it listens beyond loopback, and therefore speaks TLS only, with
    certificates made for this run; they lie in `settings.folder`, which every node must see. Raises ConfigError
    BAD_VALUE where dask-jobqueue or the queue's commands are missing.
    """
    import dask
    from distributed import Security

    cluster_type = _cluster_type()
    if shutil.which("sbatch") is None:  # dask-jobqueue would wait for jobs that nobody took
        raise ConfigError("BAD_VALUE", "no SLURM here: sbatch is not found", hint="run it on a login node")
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    folder = Path(settings.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster = cluster_type(security=Security.temporary(), **options(settings, environment))
    if settings.minimum_jobs is None:
        cluster.scale(jobs=settings.jobs)
    else:
        cluster.adapt(minimum_jobs=settings.minimum_jobs, maximum_jobs=settings.jobs)
    return cluster


def job_script(settings: SlurmSettings, environment: dict[str, str]) -> str:
    """What would be given to sbatch, without asking the queue."""
    cluster = _cluster_type()(n_workers=0, **options(settings, environment, host="127.0.0.1", protocol="tcp://"))
    try:
        return cluster.job_script()
    finally:
        cluster.close()


def options(
    settings: SlurmSettings, environment: dict[str, str], host: str | None = None, protocol: str = "tls://"
) -> dict[str, Any]:
    """Our settings in the words of dask_jobqueue.SLURMCluster."""
    folder = str(Path(settings.folder).expanduser())
    scheduler: dict[str, Any] = {"dashboard_address": None, "dashboard": False}
    if host or settings.host:
        scheduler["host"] = host or settings.host
    exports = [f"export {name}={value}" for name, value in environment.items()]
    return {
        "queue": settings.queue,
        "account": settings.account,
        "cores": settings.cores,
        "processes": settings.cores,  # one thread each: codes must not depend on how many a worker has
        "memory": settings.memory,
        "walltime": settings.walltime,
        "interface": None if host else settings.interface,
        "protocol": protocol,
        "scheduler_options": scheduler,
        "job_extra_directives": list(settings.directives),
        "job_script_prologue": [*exports, *settings.prologue],
        "log_directory": folder,
        "shared_temp_directory": folder,
        "local_directory": settings.scratch,
        "name": "voxbook",
        "job_name": "voxbook",
        "silence_logs": "error",
    }


def _cluster_type() -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ConfigError(
            "BAD_VALUE", "cluster = slurm needs dask-jobqueue", hint="pip install 'voxbook[slurm]'"
        ) from None
    return SLURMCluster

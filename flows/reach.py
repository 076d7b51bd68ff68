"""What a workspace depends on beyond this process: its disk and permissions, clocks, the database, Prefect, Dask."""

from __future__ import annotations

import email.utils
import json
import os
import secrets
import shutil
import socket
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from archive.settings import ClusterSettings
from archive.workspace import Workspace
from flows.checks import Check
from flows.server import authorization, password_of

LEAST_FREE_BYTES = 2 * 2**30
SKEW_S = 5.0  # leases and graces count in minutes; what is far above a round trip is worth a look
TIMEOUT_S = 5
PRIVATE = ("linkage.sqlite", "catalog.sqlite")


def disk(root: Path) -> Check:
    """Free space where the workspace lies, or will lie."""
    folder = _there(root)
    free = shutil.disk_usage(folder).free
    return Check(
        "disk",
        free > LEAST_FREE_BYTES,
        f"{free / 2**30:.1f} GiB free where the workspace lies",
        "make room (voxbook gc removes what is superseded), or choose another disk",
    )


def permissions(root: Path) -> Check:
    """Whether files can be made, renamed and linked there, and whether others can read what they must not."""
    folder = _there(root)
    draft = folder / f".doctor-{secrets.token_hex(6)}"
    target = draft.with_suffix(".moved")
    try:
        with draft.open("xb") as file:
            file.write(b"voxbook")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
    except OSError as error:
        return Check(
            "permissions",
            False,
            f"files cannot be made and renamed in the workspace ({error.strerror})",
            "give this user write access (chown, chmod u+rwx), or choose a folder of this user's",
        )
    finally:
        for path in (draft, target):
            path.unlink(missing_ok=True)
    open_files = [name for name in PRIVATE if (path := root / name).exists() and _others(path)]
    if open_files:
        return Check(
            "permissions", False, f"others can read {', '.join(open_files)}", f"chmod 600 {' '.join(open_files)}"
        )
    return Check("permissions", True, "files can be written; catalog and linkage are for this user only")


def file_clock(root: Path) -> Check:
    """This machine's clock against that of the file system, which is a server's where it lies on one."""
    folder = _there(root)
    draft = folder / f".doctor-{secrets.token_hex(6)}"
    try:
        before = time.time()
        draft.touch(exist_ok=False)
        now = (before + time.time()) / 2
        skew = draft.stat().st_mtime - now
    except OSError:
        return Check("clock: files", False, "no file could be made in the workspace", "see permissions")
    finally:
        draft.unlink(missing_ok=True)
    return skewed("clock: files", skew, "the workspace's file system")


def database(workspace: Workspace) -> list[Check]:
    """Whether catalog and linkage open, by which key, and the clock of a database server."""
    series = len(workspace.catalog.series())
    engine = workspace.catalog.engine
    workspace.linkage  # noqa: B018 (opens it)
    found = [Check("workspace", True, f"{series} series; catalog ({engine.dialect.name}) and linkage open, key fits")]
    if engine.dialect.name == "postgresql":
        from sqlalchemy import text

        with engine.connect() as connection:
            before = time.time()
            theirs = float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
            now = (before + time.time()) / 2
        found.append(skewed("clock: database", theirs - now, "the database server"))
    return found


def prefect(url: str | None) -> list[Check]:
    """Whether the Prefect API answers, takes our password, is of our version, and has our time."""
    if url is None:
        text = "none configured: stages run directly, and nothing is recorded; voxbook up starts one"
        return [Check("Prefect API", True, text)]
    import importlib.metadata

    ours = importlib.metadata.version("prefect")
    place = without_password(url)
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/version", headers=authorization(password_of(url)))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            theirs = json.loads(response.read())
            date = response.headers.get("Date")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            hint = "set PREFECT_API_AUTH_STRING (user:password) to what the server has"
            return [Check("Prefect API", False, f"{place} refuses the password", hint)]
        hint = "PREFECT_API_URL must end in /api"
        return [Check("Prefect API", False, f"{place} answers with HTTP {error.code}", hint)]
    except (OSError, ValueError):
        hint = "start it (voxbook up, or the shared server's service), or unset PREFECT_API_URL to run without it"
        return [Check("Prefect API", False, f"{place} does not answer", hint)]
    hint = f"install prefect=={theirs} here, or prefect=={ours} there (pip install -c constraints.txt)"
    found = [Check("Prefect API", theirs == ours, f"{place}, version {theirs}; here {ours}", hint)]
    if date:  # whole seconds
        skew = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - time.time()
        found.append(skewed("clock: Prefect", skew, "the Prefect server"))
    return found


def dask(settings: ClusterSettings) -> Check:
    """Whether stages will find their workers: a scheduler that answers, SLURM's programs, or this machine."""
    address = settings.address
    if address.startswith(("tcp://", "tls://")):
        return _scheduler(address)
    if address == "slurm":
        return _slurm(settings)
    if address == "inline":
        return Check("Dask", True, "none: stages run in one process (cluster.address = inline)")
    from tasks.machine import gpus, local_workers, memory_bytes

    devices = gpus()
    if address == "local-gpu" and not devices:
        hint = 'cluster.address = "local", or look why nvidia-smi -L lists none'
        return Check("Dask", False, "cluster.address is local-gpu and no GPU is listed", hint)
    workers = settings.workers or local_workers(gpu=True)
    memory = memory_bytes() / 2**30
    text = f"{workers} local worker{'s' if workers != 1 else ''}, {memory / workers:.1f} GiB of memory for each"
    hint = "cluster.workers lower: a worker needs 1 GiB at the least"
    return Check("Dask", memory / workers >= 1, text, hint)


def _scheduler(address: str) -> Check:
    parts = urlsplit(address)
    hint = "start it (dask scheduler), look at the firewall, or cluster.address = local"
    try:
        with socket.create_connection((parts.hostname, parts.port or 8786), timeout=TIMEOUT_S):
            pass
    except OSError:
        return Check("Dask", False, f"no scheduler answers at {address}", hint)
    if parts.scheme == "tls":
        return Check("Dask", True, f"{address} takes connections; its certificates are looked at by the first stage")
    from distributed import Client

    try:
        with Client(address, set_as_default=False, timeout=TIMEOUT_S) as client:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            versions = client.get_versions()
    except (OSError, ValueError, TimeoutError):
        return Check("Dask", False, f"what answers at {address} is no Dask scheduler of a version that fits", hint)
    if not workers:
        return Check("Dask", False, f"{address} has no workers", f"dask worker {address} --nthreads 1, on its machines")
    differ = different(versions)
    hint = "install the same versions everywhere: pip install -c constraints.txt"
    text = f"{address}, {workers} workers" + (f"; other versions there: {', '.join(differ)}" if differ else "")
    return Check("Dask", not differ, text, hint)


def different(versions: dict[str, dict]) -> list[str]:
    """Packages of another version on the scheduler or a worker than here, from Client.get_versions."""
    wanted = ("python", "distributed", "dask", "numpy", "cloudpickle", "msgpack")

    def of(entry: dict) -> dict[str, str]:
        packages = entry.get("packages", {})
        return {name: str(packages.get(name)) for name in wanted}

    ours = of(versions["client"])
    others = [of(versions["scheduler"]), *(of(worker) for worker in versions["workers"].values())]
    return [name for name in wanted if any(other[name] != ours[name] for other in others)]


def _slurm(settings: ClusterSettings) -> Check:
    missing = [program for program in ("sbatch", "squeue") if shutil.which(program) is None]
    if missing:
        hint = "run this on a login or service node of the cluster, or cluster.address = local"
        return Check("Dask", False, f"SLURM's {' and '.join(missing)} not found here", hint)
    folder = _there(Path(settings.slurm.folder).expanduser())
    if not os.access(folder, os.W_OK):
        return Check("Dask", False, "cluster.slurm.folder cannot be written", "choose a folder that all nodes see")
    return Check("Dask", True, f"SLURM is here; {settings.slurm.jobs} jobs of {settings.slurm.cores} cores each")


def skewed(name: str, skew: float, whose: str) -> Check:
    """A difference of clocks, in seconds, as a check."""
    hint = "set both clocks by NTP (timedatectl set-ntp true): leases and graces go by them"
    return Check(name, abs(skew) <= SKEW_S, f"{abs(skew):.1f} s {'ahead of' if skew < 0 else 'behind'} {whose}", hint)


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)

"""What an archive of many small series costs: time, memory and database per series, at 1,000 to 50,000 of them.

    python benchmarks/scale.py --series 1000 10000 50000 --workers 2 [--prefect] [--database URL]

Series of 8x32x32 voxels are committed straight into store and catalog (scale_archive.fill: no DICOM, no fsync); the model
is tiny and untrained. The `encode` flow runs in a process of its own against a scheduler and workers that are processes
of their own too, started fresh for each size and warm before the clock starts. Overhead is the flow's wall time over
that of the same encoding and certifying of volumes in memory on the same workers at the same time. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import scale_archive
from scale_watch import Server, Watch, free_port, started, stopped
from scores import machine

HERE = Path(__file__).resolve().parent
PURE = 4000  # series in memory at most: enough for a per-series figure
SETTINGS = ["train.threads=1"]


def measure(
    root: Path, series: int, workers: int, api: str | None, server: Server | None, database: str | None
) -> dict:
    """Everything about one size; the archive stays in `root` for the caller to remove."""
    began = time.monotonic()
    scale_archive.fill(root, series, workers, database)
    filled = time.monotonic() - began
    empty = scale_archive.database_bytes(root, database)
    with dask(workers) as (address, watched):
        pure = in_memory(address, root, min(series, PURE), workers)
        with Watch({**watched, **({"server": server.process} if server else {})}) as watch:
            first = drive(root, address, api)
        again = drive(root, address, None)
    if first["encoded"] != series or again["unchanged"] != series:
        raise RuntimeError(f"{first['encoded']} encoded and {again['unchanged']} unchanged of {series}")
    full = scale_archive.database_bytes(root, database)
    stores = scale_archive.count_files(root)
    return {
        "series": series,
        "synthesis_s": round(filled, 1),
        "flow_s": first["seconds"],
        "flow_ms_per_series": 1e3 * first["seconds"] / series,
        "pure_ms_per_series": 1e3 * pure,
        "overhead_ms_per_series": 1e3 * (first["seconds"] / series - pure),
        "again_s": again["seconds"],
        "again_ms_per_series": 1e3 * again["seconds"] / series,
        "rss_mib": {**watch.peak_mib, "driver": first["rss_mib"]},
        "rss_mib_before": watch.first_mib,
        "driver_rss_mib_before": first["rss_mib_before"],
        "database_bytes": full,
        "database_bytes_per_10000": round(full / series * 1e4),
        "database_bytes_per_10000_ingested": round(empty / series * 1e4),
        **stores,
    }


def in_memory(address: str, root: Path, series: int, workers: int) -> float:
    """Seconds per series of encoding and certifying alone, all workers at once, nothing read and nothing written."""
    from distributed import Client

    each = -(-series // workers)
    with Client(address, set_as_default=False) as client:
        parts = [list(range(at, at + each)) for at in range(0, each * workers, each)]
        for numbers in ([[0]] * workers, parts):  # the first loads the model
            futures = client.map(scale_archive.pure, numbers, root=root, pure=False)
            seconds = client.gather(futures)
    return max(seconds) / (each * workers)


def drive(root: Path, address: str, api: str | None) -> dict[str, Any]:
    """Run the flow in a process of its own."""
    command = [sys.executable, str(HERE / "scale.py"), "--drive", str(root), "--address", address]
    done = subprocess.run(
        [*command, *(["--api", api] if api else [])], stdout=subprocess.PIPE, check=True, text=True, env=_environment()
    )
    return json.loads(done.stdout.splitlines()[-1])


def driver(root: str, address: str, api: str | None) -> dict[str, Any]:
    """What that process does: one encode of everything; its own peak memory, start-up and imports apart."""
    import resource

    import psutil

    if api:
        os.environ["PREFECT_API_URL"] = api
    from flows.encode import encode
    from flows.environment import prepare
    from flows.recording import run_stage

    prepare()
    before = psutil.Process().memory_info().rss / 2**20
    parameters = {"workspace": root, "settings": [*SETTINGS, f"cluster={address}"]}
    began = time.monotonic()
    outcome = run_stage(encode, lambda text: None, **parameters) if api else encode.fn(**parameters)
    return {
        "seconds": time.monotonic() - began,
        "encoded": outcome.counts["encoded"],
        "unchanged": outcome.counts["unchanged"],
        "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "rss_mib_before": round(before),
    }


@contextmanager
def dask(workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A scheduler and workers of one thread each on loopback; their address, and the processes by name."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    python = [sys.executable, "-m"]
    processes: dict[str, Any] = {}
    try:
        processes["scheduler"] = started(
            [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            _environment(),
        )
        for number in range(workers):
            command = [*python, "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1"]
            processes[f"worker{number}"] = started([*command, "--no-nanny", "--no-dashboard"], _environment())
        from distributed import Client

        with Client(address, set_as_default=False, timeout=60) as client:
            client.wait_for_workers(workers, timeout=60)
        yield address, processes
    finally:
        stopped(processes.values())


def projection(rows: Sequence[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """What one and ten million such series need, from the largest size measured."""
    last = rows[-1]
    found = []
    for series in (10**6, 10**7):
        share = series / last["series"]
        found.append(
            {
                "series": series,
                "encode_hours": last["flow_s"] * share / 3600,
                "overhead_hours": last["overhead_ms_per_series"] * series / 3.6e6,
                "nothing_new_minutes": last["again_s"] * share / 60,
                "database_gib": last["database_bytes"] * share / 2**30,
                "files": round(last["files_per_series"] * series),
                "folders": round(last["folders_per_series"] * series),
                "driver_gib": (last["rss_mib"]["driver"] - last["driver_rss_mib_before"]) * share / 2**10,
                "workers": workers,
            }
        )
    return found


def _environment() -> dict[str, str]:
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    known = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "DO_NOT_TRACK": "1", "PREFECT_LOGGING_LEVEL": "ERROR"}
    # As docs/scale.md advises for a cluster of one's own: without them scheduler and workers remember batches.
    logs = {f"DASK_DISTRIBUTED__ADMIN__{name}LOG_LENGTH": "0" for name in ("", "LOW_LEVEL_")}
    return {**os.environ, **threads, **known, **logs, "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What is worth a glance."""
    lines = [
        f"{'series':>8} {'flow s':>8} {'ms each':>8} {'pure':>6} {'over':>6} {'again':>6}"
        f" {'sched':>6} {'worker':>6} {'driver':>6} {'server':>6} {'db/10k MiB':>10}"
    ]
    for row in rows:
        rss = row["rss_mib"]
        worker = max((value for name, value in rss.items() if name.startswith("worker")), default=math.nan)
        lines.append(
            f"{row['series']:>8} {row['flow_s']:>8.1f} {row['flow_ms_per_series']:>8.2f} {row['pure_ms_per_series']:>6.2f}"
            f" {row['overhead_ms_per_series']:>6.2f} {row['again_ms_per_series']:>6.2f} {rss.get('scheduler', 0):>6}"
            f" {worker:>6} {rss['driver']:>6} {rss.get('server', 0):>6} {row['database_bytes_per_10000'] / 2**20:>10.1f}"
        )
    return "\n".join(lines)


def run(sizes: Sequence[int], workers: int, prefect: bool, database: str | None, folder: Path) -> dict[str, Any]:
    """Every size in turn, smallest first, each with an archive of its own that is removed after it."""
    rows = []
    with ExitStack() as stack:
        server = stack.enter_context(Server(folder / "prefect", _environment())) if prefect else None
        for series in sorted(sizes):
            root = folder / f"ws{series}"
            rows.append(measure(root, series, workers, server.api if server else None, server, database))
            if server:
                rows[-1]["prefect_database_bytes"] = server.database_bytes()
            print(table(rows[-1:]), file=sys.stderr, flush=True)
            shutil.rmtree(root)
    costs = [row["flow_ms_per_series"] for row in rows]
    return {
        "benchmark": "scale",
        "workers": workers,
        "recorded": prefect,
        "rows": rows,
        "spread": max(costs) / min(costs) - 1,
        "goals": {
            "flat within 20 %": max(costs) / min(costs) <= 1.2,
            "overhead at most 10 ms": all(row["overhead_ms_per_series"] <= 10 for row in rows),
        },
        "projection": projection(rows, workers),
        "machine": machine(),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prefect", action="store_true", help="record the flow on a Prefect server of its own")
    parser.add_argument("--database", help="an SQLAlchemy URL of an empty database, for one size; none: SQLite")
    parser.add_argument("--folder", type=Path, help="where the archives lie while they are measured")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--api", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps(driver(arguments.drive, arguments.address, arguments.api)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = run(arguments.series, arguments.workers, arguments.prefect, arguments.database, Path(folder))
    print(table(found["rows"]), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

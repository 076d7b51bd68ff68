"""kill -9 everywhere: drivers, workers, the Prefect server and every named fault point, two runs at once on one archive.

    python benchmarks/crash.py --kills 300 --each 10 > crash.json

Claims: 0 acknowledged series lost, 0 unreadable, 0 encoded twice, 0 orphan bytes after gc, the next run goes on within
60 s and without anybody's help. Exits 1 where one does not hold. Everything happens in a folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # a process that has started threads cannot be forked
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"

HOME = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds after which a driver that does not end counts as stuck
TRAINING = ("bundle.", "train.")
STARTING_SECONDS = 6.0
WORKERS = 3
NEEDED = ("flows.ingest", "flows.encode", "flows.train", "flows.verify", "model.bundle", "model.certificate")


@dataclass
class Tally:
    """Kills by what was killed, how long going on took, and what was found wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    continued_s: list[float] = field(default_factory=list)
    stuck: int = 0
    failed: int = 0
    found: Any = None


class Crashes:
    """One benchmark run on one archive."""

    def __init__(self, base: Path, series: int, seed: int) -> None:
        import crash_checks
        import crash_drivers
        import numpy as np

        self.drivers, self.checks = crash_drivers, crash_checks
        self.place = crash_drivers.Place(base)
        self.rng = np.random.default_rng(seed)
        self.tally = Tally(found=crash_checks.Found())
        child = self._fork(lambda place: crash_drivers.lay_out(place, series, np.random.default_rng(seed)))
        if crash_drivers.wait(child, 600) != 0:
            raise SystemExit(f"the archive could not be laid out: see {base / 'log.txt'}")

    def _fork(self, work: Any, *rest: Any, fault: str = "") -> int:
        return self.drivers.fork(work, self.place, *rest, fault=fault)

    def settle(self, killed_at: float) -> None:
        """Without anybody's help: a run that is started now ends the work; then look at everything."""
        began = time.monotonic()
        child = self._fork(self.drivers.nightly, "inline")
        ended = self.drivers.wait(child, PATIENCE)
        if ended is None:
            self.tally.stuck += 1
            self.drivers.kill(child)
        elif ended != 0:
            self.tally.failed += 1
        self.tally.continued_s.append(time.monotonic() - max(began, killed_at))
        self.look()

    def look(self) -> None:
        """Examine the archive in a child, as looking at it starts threads."""
        answer = self.place.base / "found.json"

        def work(place: Any) -> None:
            answer.write_text(json.dumps(self.checks.examine(place).__dict__))

        child = self._fork(work)
        if self.drivers.wait(child, PATIENCE) != 0:
            raise SystemExit(f"the check itself failed: see {self.place.base / 'log.txt'}")
        self.tally.found += self.checks.Found(**json.loads(answer.read_text()))

    # -- what is killed

    def fault_points(self, points: list[str], each: int) -> None:
        """A driver dies at each named point `each` times, another one at work beside it."""
        for point in points:
            for _ in range(each):
                self.place.next_round(self.rng)
                for attempt in range(4):  # the other may have done all the work before this one came to the point
                    beside = None
                    if attempt < 2 and not point.startswith(("erase.", "catalog.promote")):
                        beside = self._fork(self.drivers.nightly, "inline")
                        time.sleep(self.rng.uniform(0, 0.2))
                    child = self._fork(self._work_of(point), fault=point)
                    ended = self.drivers.wait(child, PATIENCE)
                    at = time.monotonic()
                    if beside is not None:
                        self._reap(beside)
                    if ended is None:
                        self.tally.stuck += 1
                        self.drivers.kill(child)
                    if ended == -signal.SIGKILL:
                        self.tally.kills[point] += 1
                        break
                    self.place.next_round(self.rng)
                if point.startswith(TRAINING):  # the same training again: it goes on from its checkpoint, or is there
                    self._reap(self._fork(self.drivers.train_once))
                if point.startswith("erase."):  # gc ends the erasure, and the next ingest finds the file again
                    self._reap(self._fork(self.drivers.nightly, "inline"))
                self.place.next_round(self.rng, changed=1)
                self.settle(at)
            sys.stderr.write(f"{point}: {self.tally.kills[point]} kills, {self.tally.found.bad} bad so far\n")

    def _work_of(self, point: str) -> Any:
        if point == "bundle.moved":
            return self.drivers.train_over_broken
        if point.startswith(TRAINING):
            return self.drivers.train_once
        if point.startswith("catalog.promote"):
            return self.drivers.promote_other
        if point.startswith("erase."):
            return self.drivers.forget_one
        return lambda place: self.drivers.nightly(place, "inline")

    def _reap(self, pid: int) -> None:
        """Wait for a driver that nobody kills; it must end by itself and well."""
        ended = self.drivers.wait(pid, PATIENCE)
        self.tally.ends[str(ended)] += 1
        if ended is None:
            self.tally.stuck += 1
            self.drivers.kill(pid)
        elif ended > 0:
            self.tally.failed += 1

    def flows(self, kills: int) -> None:
        """Two drivers, night after night; one or the other dies at any moment and is started again."""
        with self._pair("inline") as pair:
            for number in range(kills):
                time.sleep(self.rng.uniform(0.02, 1.0))
                victim = int(self.rng.integers(2))
                self._strike(pair, victim, "flow")
                at = time.monotonic()
                self.place.change(self.rng, 3)
                if number % 20 == 19 or number == kills - 1:
                    self._rest(pair)
                    self.settle(at)
                    sys.stderr.write(f"flows: {number + 1} kills, {self.tally.found.bad} bad so far\n")
                    pair[:] = [self._driver("inline") for _ in range(2)]

    def workers(self, kills: int) -> None:
        """Two drivers on one Dask scheduler with three workers; a worker dies, and its nanny starts another."""
        if not kills:
            return
        with self._dask() as (address, nannies), self._pair(address) as pair:
            for number in range(kills):
                time.sleep(self.rng.uniform(0.2, 1.5))
                self.place.change(self.rng, 3)
                victims = _children(nannies)
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victims[int(self.rng.integers(len(victims)))], signal.SIGKILL)
                        self.tally.kills["worker"] += 1
                at = time.monotonic()
                for place, pid in enumerate(pair):
                    if self.drivers.wait(pid, 0.005) is not None:
                        self.tally.failed += 1
                        pair[place] = self._driver(address)
                if number % 20 == 19 or number == kills - 1:
                    self._rest(pair)
                    self.settle(at)
                    sys.stderr.write(f"workers: {number + 1} kills, {self.tally.found.bad} bad so far\n")
                    pair[:] = [self._driver(address) for _ in range(2)]

    def servers(self, kills: int) -> None:
        """A Prefect server dies while two recorded runs are under way; then it is started again and so are they."""
        if not kills:
            return
        port = _free_port()
        api = f"http://127.0.0.1:{port}/api"
        for number in range(kills):
            server = self._server(port)
            self.place.next_round(self.rng)
            pair = [self._fork(self.drivers.recorded_encode, api) for _ in range(2)]
            time.sleep(self.rng.uniform(0.1, 1.0))
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            self.tally.kills["server"] += 1
            self.tally.ends["alive when the server went"] += sum(_alive(pid) for pid in pair)
            at = time.monotonic()
            for pid in pair:  # a run whose server is gone may end with an error; it must not hang
                ended = self.drivers.wait(pid, PATIENCE)
                self.tally.ends[f"server gone: {ended}"] += 1
                if ended is None:
                    self.tally.stuck += 1
                    self.drivers.kill(pid)
            if number % 6 == 5 or number == kills - 1:
                self.settle(at)
                sys.stderr.write(f"servers: {number + 1} kills, {self.tally.found.bad} bad so far\n")

    # -- what runs meanwhile

    def _driver(self, cluster: str) -> int:
        return self._fork(self.drivers.night_after_night, cluster)

    @contextlib.contextmanager
    def _pair(self, cluster: str) -> Iterator[list[int]]:
        pair = [self._driver(cluster) for _ in range(2)]
        try:
            yield pair
        finally:
            for pid in pair:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    self.drivers.kill(pid)

    def _strike(self, pair: list[int], victim: int, what: str) -> None:
        ended = self.drivers.wait(pair[victim], 0.001)
        if ended is None:
            self.drivers.kill(pair[victim])
            self.tally.kills[what] += 1
        elif ended > 0:
            self.tally.failed += 1
        pair[victim] = self._driver("inline")

    def _rest(self, pair: list[int]) -> None:
        """Let both drivers end what they are doing."""
        self.place.stop.touch()
        for pid in pair:
            self._reap(pid)
        self.place.stop.unlink()
        self.place.next_round(self.rng)

    @contextlib.contextmanager
    def _dask(self) -> Iterator[tuple[str, int]]:
        port = _free_port()
        code = (
            "import sys, time; sys.path[:0] = sys.argv[2:]\n"
            "import dask; dask.config.set({'distributed.deploy.lost-worker-timeout': '1 day'})\n"  # tasks/cluster.py
            "from distributed import LocalCluster\n"
            "if __name__ == '__main__':\n"
            f"    found = LocalCluster(n_workers={WORKERS}, threads_per_worker=1, host='127.0.0.1',\n"
            "        scheduler_port=int(sys.argv[1]), dashboard_address=None)\n"
            "    print('up', flush=True); time.sleep(1e6)\n"
        )
        script = self.place.base / "scheduler.py"
        script.write_text(code)
        with (self.place.base / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(script), str(port), str(HOME)],
                cwd=HOME,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"up":
            raise SystemExit(f"no Dask scheduler: see {self.place.base / 'log.txt'}")
        try:
            yield f"tcp://127.0.0.1:{port}", process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _server(self, port: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PREFECT_HOME": str(self.place.base / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (self.place.base / "server.log").open("ab") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=1):
                return server
            time.sleep(0.1)
        raise SystemExit(f"no Prefect server: see {self.place.base / 'server.log'}")


def _alive(pid: int) -> bool:
    """Whether a child still runs; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _children(parent: int) -> list[int]:
    """Worker processes that are up: a nanny gives up for good when its worker dies while it starts."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return [
            child.pid
            for child in psutil.Process(parent).children()
            if "spawn_main" in " ".join(child.cmdline()) and time.time() - child.create_time() > STARTING_SECONDS
        ]
    return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report(crashes: Crashes, points: list[str], seconds: float) -> dict[str, Any]:
    """What is printed: kills by kind, what was found, and whether every claim holds."""
    from scores import machine

    tally, found = crashes.tally, crashes.tally.found
    named = {point: tally.kills[point] for point in points}
    random_kills = {kind: tally.kills[kind] for kind in ("flow", "worker", "server")}
    worst = max(tally.continued_s, default=0.0)
    holds = found.bad == 0 and tally.stuck == 0 and worst <= 60 and all(named.values())
    return {
        "benchmark": "crash",
        "random_kills": random_kills,
        "random_kills_total": sum(random_kills.values()),
        "kills_at_points": named,
        "checks": found.checks,
        "acknowledged": len(crashes.place.ledger.read_text().splitlines()),
        "lost": found.lost,
        "unreadable": found.unreadable,
        "absent": found.absent,
        "encoded_twice": found.twice,
        "orphan_bytes": found.orphan_bytes,
        "stuck": tally.stuck,
        "drivers_that_failed": tally.failed,
        "continued_s_worst": round(worst, 2),
        "ends": dict(tally.ends),
        "words": found.words[:20],
        "seconds": round(seconds, 1),
        "holds": holds,
        **machine("distributed", "prefect", "zarr"),
    }


def main() -> None:
    """Parse, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="random kills: 70 %% flows, 22 %% workers, 8 %% servers")
    parser.add_argument("--each", type=int, default=10, help="kills at each named fault point")
    parser.add_argument("--points", nargs="*", help="only these points")
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-server", action="store_true", help="leave the Prefect server out")
    parser.add_argument("--no-workers", action="store_true", help="leave the Dask workers out")
    parser.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    arguments = parser.parse_args()
    result = run(arguments)
    print(json.dumps(result))
    sys.exit(0 if result["holds"] else 1)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All phases in a temporary folder."""
    for name in NEEDED:  # before the first fork
        import_module(name)
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="voxbook-crash-"))
    os.environ.setdefault("VOXBOOK_KEY", "a key for a benchmark that protects nothing")
    os.environ["VOXBOOK_HOME"] = str(base / "home")
    os.environ.pop("PREFECT_API_URL", None)
    try:
        crashes = Crashes(base, arguments.series, arguments.seed)
        points = arguments.points if arguments.points is not None else crashes.checks.points(HOME)
        workers = 0 if arguments.no_workers else round(arguments.kills * 0.22)
        servers = 0 if arguments.no_server else round(arguments.kills * 0.08)
        crashes.flows(arguments.kills - workers - servers)
        crashes.fault_points(points, arguments.each)
        crashes.workers(workers)
        crashes.servers(servers)
        return report(crashes, points, time.monotonic() - began)
    finally:
        if arguments.keep:
            sys.stderr.write(f"kept: {base}\n")
        else:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()

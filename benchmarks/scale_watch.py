"""Processes that a benchmark starts, and how much memory they come to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

EVERY_S = 0.25


class Watch:
    """Peak resident memory of some processes while the context lasts, in MiB, by their names."""

    def __init__(self, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        self._processes = {name: psutil.Process(process.pid) for name, process in processes.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.first_mib = {name: _mib(process) for name, process in self._processes.items()}
        self.peak_mib = dict(self.first_mib)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            for name, process in self._processes.items():
                self.peak_mib[name] = max(self.peak_mib[name], _mib(process))


class Server:
    """A Prefect server on loopback with a database of its own, ended with the context."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.folder = folder
        self.api = f"http://127.0.0.1:{port}/api"
        own = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": self.api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = started(command, {**environment, **own})

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=2):
                    return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    stopped([self.process])
                    raise RuntimeError("the Prefect server does not answer") from None
                time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        stopped([self.process])

    def database_bytes(self) -> int:
        """Its database with the log beside it."""
        return sum(path.stat().st_size for path in self.folder.glob("prefect.db*"))


def started(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A quiet process."""
    return subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def stopped(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes and wait for them."""
    found = list(processes)
    for process in found:
        process.terminate()
    for process in found:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _mib(process: psutil.Process) -> int:
    try:
        return round(process.memory_info().rss / 2**20)
    except psutil.NoSuchProcess:
        return 0

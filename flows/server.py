"""`voxbook up` and `down`: a Prefect server on loopback and the served deployments, as two processes of ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from archive.errors import ConfigError, TransientError
from archive.workspace import Workspace

READY_SECONDS = 120


@dataclass(frozen=True)
class Started:
    """One process that we started: its id and start time, which tell it from a later one of the same id."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """The process, while it is still the one we started."""
        try:
            process = psutil.Process(self.pid)
            return process if abs(process.create_time() - self.created) < 1 else None
        except psutil.NoSuchProcess:
            return None


def home() -> Path:
    """Where the server keeps its data."""
    return Path(os.environ.get("VOXBOOK_HOME") or Path("~/.voxbook").expanduser())


def running_api() -> str | None:
    """URL of the API that `voxbook up` started, while its server lives."""
    state = _read()
    if not state or Started(**state["processes"][0]).process() is None:
        return None
    return state["api"]


def start(workspace: Path, port: int) -> dict[str, Any]:
    """Start the server and serve the workspace's deployments; raises ConfigError OCCUPIED where one runs already."""
    if running_api():
        raise ConfigError("OCCUPIED", "voxbook is up already", hint="voxbook down ends it")
    if not _free(port):
        raise ConfigError("OCCUPIED", f"port {port} is taken", hint="choose another with --port")
    root = Workspace.open(workspace, create=True).root
    folder = home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_UI_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONSAFEPATH": "1",
    }
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    processes = [_spawn(server, environment, folder / "server.log")]
    try:
        _wait(api, processes[0])
        processes.append(
            _spawn([sys.executable, "-m", "flows.cli", "serve", "-w", str(root)], environment, folder / "serve.log")
        )
    except BaseException:
        _end(processes)
        raise
    state = {"api": api, "processes": [process.__dict__ for process in processes], "workspace": str(root)}
    draft = folder / f".up.json.{os.getpid()}"
    draft.write_text(json.dumps(state))
    draft.rename(folder / "up.json")
    return {"api": api, "ui": f"http://127.0.0.1:{port}", "home": str(folder), "workspace": str(root)}


def stop() -> int:
    """End the processes that `start` began, by their ids; returns how many were still there."""
    state = _read()
    if not state:
        return 0
    ended = _end([Started(**process) for process in state["processes"]])
    (home() / "up.json").unlink(missing_ok=True)
    return ended


def _read() -> dict[str, Any] | None:
    try:
        return json.loads((home() / "up.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> Started:
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return Started(process.pid, psutil.Process(process.pid).create_time())


def _wait(api: str, server: Started) -> None:
    from flows.recording import answers

    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process() is None or server.process().status() == psutil.STATUS_ZOMBIE:  # type: ignore[union-attr]
            raise TransientError("NOT_FOUND", "the Prefect server ended while starting", hint="see server.log")
        if answers(api):
            return
        time.sleep(0.3)
    raise TransientError(
        "NOT_FOUND", f"the Prefect server did not answer within {READY_SECONDS} s", hint="see server.log"
    )


def _end(processes: list[Started]) -> int:
    alive = [found for process in processes if (found := process.process()) is not None]
    family = [child for process in alive for child in process.children(recursive=True)] + alive
    for process in family:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(family, timeout=10)
    for process in left:
        process.kill()
    return len(alive)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

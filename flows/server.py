"""`voxbook up` and `down`: a Prefect server on loopback and the served deployments, as two processes of ours."""

from __future__ import annotations

import importlib.metadata
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
REFERENCE = "UI_SERVE_BASE"  # the file by which Prefect knows that it has copied the pages of its UI
NOWHERE = "http://127.0.0.1:9"  # a port that nobody listens on

# What keeps a server on one machine small (measured: docs/prefect.md), and to itself.
SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
}
# In place of the second UI: whoever chooses it is back in the first one.
BACK = """<!doctype html><title>Prefect</title>
<script>document.cookie = "prefect_ui_version=v1; path=/"; location.replace("/")</script>
<a href="/">This page would ask a service outside of this machine; go back</a>
"""
# Prefect's server looks for its catalog of blocks and workers on GitHub, and takes the copy it ships where that fails.
CLOSED = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), NOWHERE),
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


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


def start(workspace: Path, port: int, *, limit: int = 1, outgoing: bool = False) -> dict[str, Any]:
    """Start the server and serve the workspace's deployments; raises ConfigError OCCUPIED where one runs already.

    limit: runs at a time. outgoing: let the server send requests to other machines, as notifications of automations do;
    without it a proxy that does not exist takes them all.
    """
    if running_api():
        raise ConfigError("OCCUPIED", "voxbook is up already", hint="voxbook down ends it")
    stop()  # what an ended server left behind: another one would serve the same deployments beside it
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
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(_one_ui(folder / "ui")),
        **{name: value for name, value in SERVER.items() if name not in os.environ},
        "DO_NOT_TRACK": "1",
        "PYTHONSAFEPATH": "1",
    }
    if secret := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        environment.setdefault("PREFECT_API_AUTH_STRING", secret)
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    processes = [_spawn(server, environment | ({} if outgoing else CLOSED), folder / "server.log")]
    try:
        _wait(api, processes[0])
        serve = [sys.executable, "-m", "flows.cli", "serve", "-w", str(root), "--limit", str(limit)]
        processes.append(_spawn([*serve, "--reports-port", str(port + 1)], environment, folder / "serve.log"))
    except BaseException:
        _end(processes)
        raise
    state = {"api": api, "processes": [process.__dict__ for process in processes], "workspace": str(root)}
    draft = folder / f".up.json.{os.getpid()}"
    draft.write_text(json.dumps(state))
    draft.rename(folder / "up.json")
    return {"api": api, "ui": f"http://127.0.0.1:{port}", "home": str(folder), "workspace": str(root)}


def _one_ui(folder: Path) -> Path:
    """A folder for the pages of the UI without its second version, which asks an analytics service even where it is off.

    Prefect copies its pages into it once, and leaves what says that it is a copy of this version.
    """
    second = folder / "v2"
    second.mkdir(parents=True, exist_ok=True)
    (second / "index.html").write_text(BACK)
    (second / REFERENCE).write_text(f"v2:{importlib.metadata.version('prefect')}:/v2")
    return folder


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

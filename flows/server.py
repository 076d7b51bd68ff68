"""`voxbook up` and `down`: a Prefect server on loopback and the served deployments, as two processes of ours."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from archive.errors import ConfigError, TransientError
from archive.workspace import Workspace

READY_SECONDS = 120
REFERENCE = "UI_SERVE_BASE"  # the file by which Prefect knows that it has copied the pages of its UI
PASSWORD = "password"  # the file that holds what the server asks for, mode 0600
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


def password_of(api: str) -> str | None:
    """What that API asks for as `user:password`: our settings', or what `voxbook up` gave the server it started."""
    from prefect.settings import get_current_settings

    secret = get_current_settings().api.auth_string
    if secret is not None:
        return secret.get_secret_value()
    if api != running_api():
        return None
    with contextlib.suppress(FileNotFoundError):
        return (home() / PASSWORD).read_text().strip()
    return None


def authorization(secret: str | None) -> dict[str, str]:
    """The header that a Prefect API with a password wants."""
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}


def start(
    workspace: Path, port: int, *, limit: int = 1, outgoing: bool = False, password: bool = False
) -> dict[str, Any]:
    """Start the server and serve the workspace's deployments, and return when both are there.

    limit: runs at a time. outgoing: let the server send requests to other machines, as notifications of automations do;
    without it a proxy that does not exist takes them all. password: ask for one, which lies in `home()` for its owner
    alone. Raises ConfigError OCCUPIED where a server runs already or a port is taken, TransientError NOT_STARTED where
    one of the two does not come up; nothing of it runs on then.
    """
    from flows.recording import answers

    if running_api():
        raise ConfigError("OCCUPIED", "voxbook is up already", hint="voxbook down ends it")
    stop()  # what an ended server left behind: another one would serve the same deployments beside it
    for taken in (one for one in (port, port + 1) if not _free(one)):
        raise ConfigError(
            "OCCUPIED", f"port {taken} is taken", hint="choose another with --port; reports take the next"
        )
    root = Workspace.open(workspace).root
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
    if secret := _password(folder, password):
        environment |= {"PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_API_AUTH_STRING": secret}
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    serve = [sys.executable, "-m", "flows.cli", "serve", "-w", str(root), "--limit", str(limit)]
    serve += ["--reports-port", str(port + 1)]
    state: dict[str, Any] = {"api": api, "processes": [], "workspace": str(root)}
    began = datetime.now(UTC)
    try:
        _begin(state, server, environment | ({} if outgoing else CLOSED), folder / "server.log")
        _wait("the Prefect server", lambda: answers(api), state)
        _begin(state, serve, environment, folder / "serve.log")
        _wait("what serves the deployments", lambda: _served(api, secret, began), state)
    except BaseException:
        stop()
        raise
    words = {"password": str(folder / PASSWORD)} if secret else {}
    return {"api": api, "ui": f"http://127.0.0.1:{port}", "home": str(folder), "workspace": str(root), **words}


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
    for name in ("up.json", PASSWORD):
        (home() / name).unlink(missing_ok=True)
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


def _begin(state: dict[str, Any], command: list[str], environment: dict[str, str], log: Path) -> None:
    """Start a process and note it at once: whatever ends this one, `stop` finds the other."""
    state["processes"].append(_spawn(command, environment, log).__dict__)
    draft = home() / f".up.json.{os.getpid()}"
    draft.write_text(json.dumps(state))
    draft.rename(home() / "up.json")


def _wait(what: str, ready: Callable[[], bool], state: dict[str, Any]) -> None:
    """Until it is ready; raises TransientError NOT_STARTED where what was started last ends before, or never is."""
    started = Started(**state["processes"][-1])
    log = f"see {'serve' if len(state['processes']) > 1 else 'server'}.log in {home()}"
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        process = started.process()
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            raise TransientError("NOT_STARTED", f"{what} ended while starting", hint=log)
        if ready():
            return
        time.sleep(0.3)
    raise TransientError("NOT_STARTED", f"{what} was not ready within {READY_SECONDS} s", hint=log)


def _served(api: str, secret: str | None, began: datetime) -> bool:
    """Whether the deployments are there and were entered since then: a server remembers those of an earlier time."""
    asked = json.dumps({"sort": "UPDATED_DESC", "limit": 1}).encode()
    headers = {"Content-Type": "application/json", **authorization(secret)}
    request = urllib.request.Request(f"{api}/deployments/filter", asked, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
            found = json.load(response)
    except (OSError, ValueError):
        return False
    return bool(found) and datetime.fromisoformat(found[0]["updated"]) >= began


def _password(folder: Path, wanted: bool) -> str | None:
    """`user:password` of the server to be started, kept for its owner alone; None where it asks for none."""
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if secret is None and wanted:
        secret = f"voxbook:{secrets.token_urlsafe(24)}"
    path = folder / PASSWORD
    path.unlink(missing_ok=True)
    if secret:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    return secret


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

"""`voxbook up` and `down`: what is started is there or gone, and a password keeps other people of the machine out."""

from __future__ import annotations

import json
import socket
import stat
import sys
import urllib.request
from urllib.error import HTTPError

import pytest
from ports import free_pair

from archive.errors import ConfigError, TransientError
from flows import server
from flows.recording import run_stage
from flows.verify import verify

# A stand-in for Prefect's server: healthy, and with deployments that were entered long ago.
OLD = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'[{"updated": "2001-01-01T00:00:00Z"}]')

HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where `up` keeps its data; whatever a test starts is ended."""
    monkeypatch.setenv("VOXBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    yield tmp_path / "home"
    server.stop()


def stand_in(monkeypatch, serve: str) -> list:
    """Start these programs in place of the server and what serves; the processes that were started."""
    spawned, spawn = [], server._spawn

    def started(command, environment, log):
        port = next((command[at + 1] for at, word in enumerate(command) if word == "--port"), None)
        program = [sys.executable, "-c", OLD, port] if port else [sys.executable, "-c", serve]
        spawned.append(spawn(program, environment, log))
        return spawned[-1]

    monkeypatch.setattr(server, "_spawn", started)
    return spawned


def test_what_ends_while_it_starts_is_said_and_nothing_of_it_runs_on(home, workspace, monkeypatch):
    spawned = stand_in(monkeypatch, serve="raise SystemExit(3)")
    with pytest.raises(TransientError, match="what serves the deployments ended while starting") as caught:
        server.start(workspace, free_pair())
    assert "serve.log" in caught.value.hint
    assert len(spawned) == 2 and not any(one.process() for one in spawned)
    assert not (home / "up.json").exists()


def test_deployments_of_an_earlier_time_are_not_taken_for_served(home, workspace, monkeypatch):
    monkeypatch.setattr(server, "READY_SECONDS", 2)
    spawned = stand_in(monkeypatch, serve="import time; time.sleep(60)")
    with pytest.raises(TransientError, match="not ready within 2 s"):
        server.start(workspace, free_pair())
    assert not any(one.process() for one in spawned)


def test_what_is_started_is_noted_before_anything_else_can_go_wrong(home, workspace, monkeypatch):
    def killed(*_: object) -> None:
        raise SystemExit  # as if this process ended here; `start` has no time to clean up

    spawned = stand_in(monkeypatch, serve="import time; time.sleep(60)")
    monkeypatch.setattr(server, "_wait", killed)
    monkeypatch.setattr(server, "stop", lambda: 0)
    with pytest.raises(SystemExit):
        server.start(workspace, free_pair())
    monkeypatch.undo()
    monkeypatch.setenv("VOXBOOK_HOME", str(home))
    assert spawned[0].process() is not None
    assert server.stop() == 1 and spawned[0].process() is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_taken_port_is_named(home, workspace, which):
    port = free_pair()
    with socket.create_server(("127.0.0.1", port + which)):
        with pytest.raises(ConfigError) as caught:
            server.start(workspace, port)
        assert caught.value.code == "OCCUPIED" and str(port + which) in caught.value.message
    assert not (home / "up.json").exists()


def test_with_a_password_nobody_else_gets_in_and_our_own_verbs_do(home, workspace, monkeypatch):
    started = server.start(workspace, free_pair(), password=True)
    kept = home / "password"
    assert started["password"] == str(kept) and stat.S_IMODE(kept.stat().st_mode) == 0o600
    secret = kept.read_text().strip()
    asked = urllib.request.Request(f"{started['api']}/deployments/filter", b"{}", {"Content-Type": "application/json"})
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(asked)
    assert caught.value.code == 401
    asked.add_header(*server.authorization(secret).popitem())
    with urllib.request.urlopen(asked) as answer:
        assert "nightly" in {one["name"] for one in json.load(answer)}
    assert secret not in (home / "up.json").read_text() and secret not in " ".join(sys.argv)
    for process in json.loads((home / "up.json").read_text())["processes"]:
        assert secret not in " ".join(server.Started(**process).process().cmdline())
    monkeypatch.setattr("flows.recording.configured_api", server.running_api)
    told: list[str] = []
    outcome = run_stage(verify, told.append, workspace=str(workspace), settings=["cluster=inline"])
    assert outcome.counts["checked"] > 0 and told == []  # recorded there, not run beside it
    server.stop()
    assert not kept.exists() and not (home / "up.json").exists()

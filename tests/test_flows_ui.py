"""Prefect's pages in a real browser: a deployment run through its form, watched until it ends, its artifacts opened.

The server is one that `voxbook up` starts; a proxy of the test's own hears whatever it would send out of the machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from browsers import watched
from conftest import QUICK
from ports import free_pair

from archive.leases import holders
from archive.workspace import Workspace
from flows import server
from flows.train import train

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]  # setting up is counted, and slow on a busy machine
PATIENCE_S = 120
AUTOMATIONS = Path(__file__).resolve().parent.parent / "deployments" / "automations"


@dataclass
class Up:
    """A server that is up: where, on which workspace, and what it asked of other machines."""

    ui: str
    root: Path
    home: Path
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def up(browser, finished, tmp_path_factory) -> Iterator[Up]:
    base = tmp_path_factory.mktemp("up")
    root = Path(shutil.copytree(finished, base / "archive"))
    lines = [line.replace("cluster=inline", 'cluster="inline"') for line in QUICK if "preset" not in line]
    (root / "voxbook.toml").write_text("\n".join([*lines, 'train.preset="tiny"', "gate.min_psnr=99"]))
    with pytest.MonkeyPatch.context() as patch, listener() as (address, asked):
        patch.setenv("VOXBOOK_HOME", str(base / "home"))
        patch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
        patch.setattr(
            server, "CLOSED", {name: address if "no" not in name.lower() else to for name, to in server.CLOSED.items()}
        )
        started = server.start(root, free_pair())
        try:
            yield Up(started["ui"], root, base / "home", asked)
        finally:
            server.stop()


@contextlib.contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a proxy that forwards nothing, and the first line of each request that it got."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = door.accept()
                    with caller:
                        asked.append(caller.recv(1000).split(b"\r\n")[0].decode(errors="replace"))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", asked


def test_a_run_through_the_form_is_watched_to_its_end_and_its_artifacts_open(up, page):
    foreign, errors = watched(page)
    deployed = _deployment(up, "encode")
    page.goto(f"{up.ui}/deployments/deployment/{deployed}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("One group (ct, mr, pt, ...); empty: every group.").wait_for()
    form = page.inner_text("form")
    assert "exact: fp32, repeatable to the bit" in form and 'Property is type "None"' not in form
    question = page.locator(".p-label.schema-form-property").filter(has_text="One group (ct")
    question.locator("textarea").fill("ct")
    _submit(page)
    (run,) = _ask(up, "/flow_runs/filter", {"deployments": {"id": {"any_": [deployed]}}})
    run = run["id"]
    page.goto(f"{up.ui}/runs/flow-run/{run}")
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=PATIENCE_S * 1000)
    assert page.get_by_role("heading", name="encode archive, ct").or_(page.get_by_text("encode archive, ct")).count()
    page.get_by_text("2 below the gate: BELOW_MIN_PSNR 2").first.wait_for()  # in the log
    page.get_by_text("Artifacts", exact=True).first.click()
    for name in ("voxbook-archive-encode", "voxbook-archive-worst", "voxbook-archive-encode-reasons"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.goto(f"{up.ui}/artifacts/artifact/{_artifacts(up, run, 'voxbook-archive-worst')[0]}")
    page.get_by_text("BELOW_MIN_PSNR").first.wait_for()
    series = Workspace.open(up.root).catalog.series(group="ct")
    shown = page.inner_text("body")
    assert all(row.series[:12] in shown for row in series)
    assert foreign == []
    assert [error for error in errors if "404" not in error] == []


def test_the_second_ui_which_asks_outside_is_not_there(up, page):
    foreign, _ = watched(page)
    page.goto(f"{up.ui}/v2/dashboard")
    page.get_by_text("Deployments").first.wait_for()
    assert "/v2" not in page.url and foreign == []


def test_a_cancelled_run_leaves_the_catalog_as_if_it_had_ended_there(up, page):
    home = Workspace.open(up.root)
    models = {row.model for row in home.catalog.models()}
    endless = ["train.seed=7", "train.steps=1000000"]
    asked = {"workspace": str(up.root), "group": "ct", "max_seconds": 300, "settings": endless}
    run = _start(up, "train", asked)
    _wait(lambda: _artifacts(up, run, "voxbook-archive-train-ct-progress"), "the training shows no progress")
    page.goto(f"{up.ui}/runs/flow-run/{run}")
    page.get_by_role("button", name="Cancel", exact=True).first.click()
    page.get_by_role("button", name="Confirm", exact=True).click()
    page.get_by_text("Cancelled", exact=True).first.wait_for(timeout=PATIENCE_S * 1000)
    _wait(lambda: home.catalog.runs()[-1].state != "running", "the catalog takes the run for a running one")
    last = home.catalog.runs()[-1]
    assert (last.verb, last.state) == ("train", "cancelled")
    assert {row.model for row in home.catalog.models()} == models
    assert holders(home.catalog) == []


def test_an_example_automation_encodes_again_after_a_promotion(up):
    data = yaml.safe_load((AUTOMATIONS / "promoted.yaml").read_text())
    encode = _deployment(up, "encode")
    data["actions"][0]["deployment_id"] = encode
    automation = _ask(up, "/automations/", data)["id"]
    made = train.fn(workspace=str(up.root), group="ct", settings=[*QUICK, "train.steps=2", "train.seed=5"])
    _start(up, "promote", {"workspace": str(up.root), "model": made.counts["model"], "force": True})
    of_encode = {"deployments": {"id": {"any_": [encode]}}, "sort": "START_TIME_DESC"}

    def caused() -> list[dict]:
        runs = _ask(up, "/flow_runs/filter", of_encode)
        ours = [run for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]
        return [run for run in ours if run["state_type"] == "COMPLETED"]

    (run,) = _wait(caused, "no automation has run anything")
    assert run["created_by"]["id"] == automation
    rows = Workspace.open(up.root).catalog.encodings(current_only=True)
    series = {row.series for row in Workspace.open(up.root).catalog.series(group="ct")}
    assert {row.model for row in rows if row.series in series} == {made.counts["model"]}


def test_nothing_was_asked_of_another_machine(up):
    """Beside the browser's requests, each looked at above: the server's own."""
    assert up.asked == []
    kept = json.loads((up.home / "up.json").read_text())["processes"]
    processes = [server.Started(**one).process() for one in kept]
    assert None not in processes
    for process in processes:
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                remote = {end.raddr.ip for end in member.net_connections("inet") if end.raddr}
                assert remote <= {"127.0.0.1", "::1"}


# -- asking the API


def _ask(up: Up, path: str, data: dict) -> Any:
    request = Request(f"{up.ui}/api{path}", json.dumps(data).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def _deployment(up: Up, name: str) -> str:
    """The id of a deployment, as soon as it is served."""

    def served() -> list[str]:
        return [item["id"] for item in _ask(up, "/deployments/filter", {}) if item["name"] == name]

    return _wait(served, "the deployments are not served")[0]


def _submit(page: Any) -> None:
    """Press Submit until the page says what it did: a press while the form still lays itself out goes nowhere."""
    said = page.get_by_text("scheduled to start now").first
    for quarter in range(160):
        if quarter % 40 == 0:
            page.get_by_role("button", name="Submit").click()
        page.wait_for_timeout(250)  # the page's requests go on only while it is asked
        if said.count():
            return
    said.wait_for()


def _start(up: Up, name: str, parameters: dict) -> str:
    asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return _ask(up, f"/deployments/{_deployment(up, name)}/create_flow_run", asked)["id"]


def _artifacts(up: Up, run: str, key: str) -> list[str]:
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}}
    return [item["id"] for item in _ask(up, "/artifacts/filter", asked)]


def _wait(found: Callable[[], Any], otherwise: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := found()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.3)
    return answer

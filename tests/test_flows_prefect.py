"""The flows on a real Prefect server: what people see there, deployments, and the same code with and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import QUICK

from archive.errors import StoreError
from archive.workspace import Workspace
from flows.deployments import DEPLOYMENTS
from flows.recording import run_stage

pytestmark = pytest.mark.server
HOME = Path(__file__).resolve().parent.parent


@pytest.fixture
def client(prefect_api):
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_a_stage_leaves_a_sentence_tags_progress_and_tables(client, tmp_path, archive_folder):
    from flows.ingest import ingest

    root = tmp_path / "Archive 7"
    alias = Workspace.open(root, create=True).register_source(archive_folder)
    said = []
    outcome = run_stage(ingest, said.append, workspace=str(root), sources=[alias], settings=QUICK)
    assert (outcome.counts["ingested"], outcome.counts["quarantined"], said) == (4, 1, [])
    run = _run_of(client, root)
    assert run.state.is_completed()
    assert run.name == "ingest Archive 7"
    assert set(run.tags) == {"voxbook", "ingest", "workspace:Archive 7"}
    assert (
        run.state.message
        == outcome.sentence
        == "ingest: 4 series ingested, 1 quarantined, 1 files skipped: NOT_DICOM 1"
    )
    assert str(archive_folder) not in run.model_dump_json()
    artifacts = _artifacts(client, run)
    assert "NOT_DICOM" in artifacts["voxbook-archive-7-ingest-reasons"]["data"]
    assert "| series" not in artifacts["voxbook-archive-7-ingest"]["data"]
    progress = artifacts["voxbook-archive-7-ingest-progress"]
    assert (progress["type"], progress["data"]) == ("progress", 100.0)
    assert progress["description"].startswith("ingest: 4 of 4 series")


def test_damage_fails_the_run_and_still_gives_its_counts(client, workspace):
    from flows.verify import verify

    home = Workspace.open(workspace)
    row = home.catalog.series(group="ct")[0]
    victim = next((home.codes / row.series / row.codes_version).glob("c.*"))
    victim.unlink()
    outcome = run_stage(verify, lambda text: None, workspace=str(workspace), settings=QUICK)
    assert outcome.damaged == 1
    run = _run_of(client, workspace)
    assert run.state.is_failed()
    assert row.series in run.state.message


def test_what_stops_a_run_is_a_sentence_there_and_the_error_here(client, workspace):
    from flows.encode import encode

    with pytest.raises(StoreError) as caught:
        run_stage(encode, lambda text: None, workspace=str(workspace), series=["feed"], group="ct", settings=QUICK)
    assert caught.value.code == "NOT_FOUND"
    run = _run_of(client, workspace)
    assert run.name == "encode ws, ct, 1 series"
    assert run.state.message.startswith("encode stopped: ") and "NOT_FOUND" in run.state.message
    assert caught.value.hint in run.state.message


def test_the_night_runs_as_one_flow_with_its_stages_inside(client, workspace):
    from flows.nightly import nightly

    settings = [*QUICK, "gate.min_psnr=99"]
    outcome = run_stage(nightly, lambda text: None, workspace=str(workspace), settings=settings, verify_sample=0.5)
    assert set(outcome.counts) == {"ingest", "encode", "verify", "report"}
    # Half of four volumes, and of eight versions of codes: another gate made new ones beside the old.
    assert outcome.counts["verify"]["checked"] == 6
    parent = _run_of(client, workspace, "nightly ws")
    assert parent.state.message == outcome.sentence
    assert "4 below the gate: BELOW_MIN_PSNR 4" in outcome.sentence
    shown = _artifacts(client, parent)
    assert shown["voxbook-ws-worst"]["data"].count("BELOW_MIN_PSNR") == 4
    assert "report.html" in shown["voxbook-ws-report"]["data"]
    progress = _artifacts(client, _run_of(client, workspace, "encode ws"))
    assert progress["voxbook-ws-encode-ct-progress"]["data"] == 100.0
    from prefect.client.schemas.objects import FlowRun

    inside = [
        FlowRun.model_validate(item)
        for item in client.request(
            "POST", "/flow_runs/filter", json={"flow_runs": {"parent_flow_run_id": {"any_": [str(parent.id)]}}}
        ).json()
    ]
    assert {run.name for run in inside} == {"ingest ws", "encode ws", "verify ws", "report ws"}


def test_a_training_shows_its_pictures(client, workspace):
    from flows.train import train

    run_stage(train, lambda text: None, workspace=str(workspace), group="ct", settings=QUICK)
    shown = _artifacts(client, _run_of(client, workspace))["voxbook-ws-train-ct"]["data"]
    assert "](data:image/jpeg;base64," in shown and len(shown) < 250_000
    run_stage(train, lambda text: None, workspace=str(workspace), settings=[*QUICK, "prefect.pictures=false"])
    shown = _artifacts(client, _run_of(client, workspace))["voxbook-ws-train-ct"]["data"]
    assert "![loss](data:" in shown and "patient data" not in shown


def test_every_deployment_deploys_from_the_file(prefect_api):
    environment = {**os.environ, "PREFECT_API_URL": prefect_api, "PYTHONSAFEPATH": "1"}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run(
        [*prefect, "work-pool", "create", "voxbook", "--type", "process"], env=environment, check=True, cwd=HOME
    )
    command = [*prefect, "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HOME, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployed = {deployment.name: deployment for deployment in client.read_deployments()}
    assert set(deployed) == {item.name for item in DEPLOYMENTS}
    assert deployed["nightly"].schedules[0].schedule.cron == "30 1 * * *"
    properties = deployed["encode"].parameter_openapi_schema["properties"]
    assert properties["where"]["description"].startswith("Condition on the catalog")
    assert deployed["decode"].parameter_openapi_schema["properties"]["format"]["enum"][0] == "nifti"


def test_the_file_and_the_code_name_the_same_deployments():
    listed = yaml.safe_load((HOME / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert len(listed) == len(DEPLOYMENTS)
    for entry, deployed in zip(listed, DEPLOYMENTS, strict=True):
        cron = entry["schedules"][0]["cron"] if "schedules" in entry else None
        found = (entry["name"], entry["description"], entry["entrypoint"], cron, entry["tags"])
        assert found == (deployed.name, deployed.description, deployed.entrypoint, deployed.cron, deployed.tags)
        flow = deployed.flow()
        assert set(entry["parameters"]) <= set(flow.parameters.properties)
        undescribed = [name for name, schema in flow.parameters.properties.items() if not schema.get("description")]
        assert undescribed == [], "the run form shows these descriptions"


def _run_of(client, root, name=None):
    """The newest run on a workspace, or the one of that name."""
    runs = [run for run in client.read_flow_runs() if run.parameters.get("workspace") == str(root)]
    runs = [run for run in runs if name in (None, run.name)]
    return max(runs, key=lambda run: run.created)


def _artifacts(client, run):
    """What a run left, by key."""
    query = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
    return {item["key"]: item for item in client.request("POST", "/artifacts/filter", json=query).json()}


@pytest.mark.parametrize("name", ["gate", "promoted", "zombies"])
def test_every_automation_is_one_that_prefect_takes(name):
    from prefect.events.schemas.automations import AutomationCore

    from flows import events

    data = yaml.safe_load((HOME / "deployments" / "automations" / f"{name}.yaml").read_text())
    made = AutomationCore.model_validate(data)
    assert made.enabled and made.actions
    ours = {event for event in made.trigger.expect if event.startswith("voxbook.")}
    assert ours <= {value for key, value in vars(events).items() if key.isupper()}, "nobody sends such an event"
    if made.trigger.posture.value == "Proactive":
        assert made.trigger.within.total_seconds() >= 3 * 180, "a run is heard of every 180 s"


def test_what_stops_a_task_leaves_no_path_in_prefect(client):
    from prefect import flow
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName

    from tasks.stage import call, recorded

    @recorded("opens what is not there")
    def opens() -> None:
        Path("/data/MUELLER^HANS/IM1").read_bytes()

    @flow(name="a night", persist_result=False)
    def night() -> None:
        call(opens)

    with pytest.raises(FileNotFoundError):
        night()
    name = TaskRunFilter(name=TaskRunFilterName(any_=["opens what is not there"]))
    for _ in range(100):  # Prefect writes task runs a little later
        runs = client._client.post("/task_runs/filter", json={"task_runs": name.model_dump(mode="json")}).json()
        if runs and runs[0]["state"]["type"] == "FAILED":
            break
        time.sleep(0.1)
    assert runs[0]["state"]["message"].startswith("FileNotFoundError at ")
    assert "MUELLER" not in json.dumps(runs)

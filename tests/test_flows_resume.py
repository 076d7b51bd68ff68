"""Killed runs: the next one goes on, nothing acknowledged is lost, what is left over is garbage that gc removes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK

from archive.errors import StoreError
from archive.workspace import Workspace
from flows.encode import encode
from flows.ingest import ingest
from flows.train import train
from flows.verify import verify

HOME = Path(__file__).resolve().parent.parent
SET = [word for override in QUICK for word in ("--set", override)]


def killed(*words, fault: str) -> None:
    """Run a verb that dies by kill -9 at a named point."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, words), *SET]
    environment = {**os.environ, "VOXBOOK_FAULT": fault}
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def whole(root: Path) -> bool:
    """Whether every stored version is as its manifest says, and gc leaves nothing behind that no row names."""
    from archive.collect import collect

    collect(Workspace.open(root))
    assert collect(Workspace.open(root), dry_run=True).folders == 0
    return verify.fn(workspace=str(root), settings=[*QUICK, "verify.read_data=true"]).damaged == 0


LINKAGE = ["linkage.entries", "linkage.series", "linkage.outcomes"]


@pytest.mark.parametrize(
    "fault", ["commit.written", "commit.renamed", "catalog.volumes.inside", "catalog.volumes.after", *LINKAGE]
)
def test_a_killed_ingest_goes_on(tmp_path, archive_folder, fault):
    root = tmp_path / "ws"
    killed("ingest", archive_folder, "-w", root, fault=f"{fault}:kill")
    outcome = ingest.fn(workspace=str(root), settings=QUICK)
    assert outcome.counts["found"] == 5
    assert outcome.counts["ingested"] + outcome.counts["unchanged"] == 4
    assert len(Workspace.open(root).catalog.series()) == 4
    assert whole(root)


@pytest.mark.parametrize(
    "fault", ["commit.written", "commit.renamed", "catalog.encodings.inside", "catalog.encodings.after"]
)
def test_a_killed_encode_goes_on(workspace, fault):
    again = [*QUICK, "gate.min_psnr=0.1"]
    killed("encode", "-w", workspace, "--set", "gate.min_psnr=0.1", fault=f"{fault}:kill")
    outcome = encode.fn(workspace=str(workspace), settings=again)
    assert outcome.counts["encoded"] + outcome.counts["failed"] + outcome.counts["unchanged"] == 4
    assert encode.fn(workspace=str(workspace), settings=again).counts["unchanged"] == 4
    assert len(Workspace.open(workspace).catalog.encodings(current_only=True)) == 4
    assert whole(workspace)


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path, archive_folder):
    root = tmp_path / "ws"
    alias = Workspace.open(root, create=True).register_source(archive_folder)
    ingest.fn(workspace=str(root), sources=[alias], settings=QUICK)
    slow = ["cluster=inline", "train.preset=tiny", "train.steps=4000", "train.max_seconds=30", "train.floor_seconds=1"]
    slow += ["train.checkpoint_seconds=0.5"]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "train", "-w", root, "--group", "pt"]
    process = subprocess.Popen(
        [*command, *[word for item in slow for word in ("--set", item)]], cwd=HOME, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 80
    while not list((root / "training").glob("*/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    outcome = train.fn(workspace=str(root), group="pt", settings=slow)
    assert outcome.counts["steps"] > 0
    metrics = Workspace.open(root).models / outcome.counts["model"] / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)), "a resumed training neither repeats nor loses steps"
    assert not list((root / "training").glob("*/*.safetensors"))


def test_two_ingests_at_once_do_everything_once(tmp_path, archive_folder):
    root = tmp_path / "ws"
    Workspace.open(root, create=True).register_source(archive_folder)
    command = [sys.executable, "-c", "from flows.cli import main; main()", "ingest", "-w", str(root), "--json", *SET]
    both = [subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert sum(counts["ingested"] for counts in found) == 4
    assert len(Workspace.open(root).catalog.series()) == 4
    assert whole(root)


def test_a_lost_linkage_is_made_anew_by_naming_the_sources_again(workspace, archive_folder):
    home = Workspace.open(workspace)
    names = [row.series for row in home.catalog.series()]
    before = {name: home.linkage.reveal(name) for name in names}
    home.close()
    for path in workspace.glob("linkage.sqlite*"):
        path.unlink()
    with pytest.raises(StoreError, match="does not know where this source lies") as caught:
        ingest.fn(workspace=str(workspace), settings=QUICK)
    assert "ingest FOLDER" in caught.value.hint
    alias = home.register_source(archive_folder)
    outcome = ingest.fn(workspace=str(workspace), sources=[alias], settings=QUICK)
    assert (outcome.counts["ingested"], outcome.counts["unchanged"]) == (0, 4)
    assert {name: home.linkage.reveal(name) for name in names} == before
    assert home.linkage.refused("NOT_DICOM")


def test_a_damaged_linkage_says_which_file_it_is_and_the_way_back(workspace):
    (workspace / "linkage.sqlite").write_bytes(b"x" * 8192)
    with pytest.raises(StoreError, match=r"linkage\.sqlite is damaged") as caught:
        ingest.fn(workspace=str(workspace), settings=QUICK)
    assert "move it away and ingest the sources again" in caught.value.hint

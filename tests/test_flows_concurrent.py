"""Two ingests at once on one workspace: every series once, whole and current; also when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from phantoms import ct_volume, write_ct_series

from archive.collect import collect
from archive.workspace import Workspace, open_volumes
from flows.verify import verify

HOME = Path(__file__).resolve().parent.parent
INLINE = ["--set", "cluster=inline"]
COUNT = 6


def started(source: Path, root: Path, fault: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "ingest", source, "-w", root, "--json"]
    environment = {**os.environ, "VOXBOOK_FAULT": fault}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command), *INLINE], cwd=HOME, env=environment, **pipes)


def test_two_ingests_at_once_and_one_that_is_killed(tmp_path):
    source, root = tmp_path / "in", tmp_path / "ws"
    for number in range(COUNT):
        volume = ct_volume((4, 12, 10), seed=number)
        write_ct_series(source / str(number), volume, patient=number + 1, name=f"ct{number}")
    (source / "broken.dcm").write_text("not an image")
    doomed = started(source, root, "commit.renamed:kill")
    other = started(source, root)
    assert doomed.wait(60) == -signal.SIGKILL or b'"ingested": 0' in doomed.stdout.read()
    out, err = other.communicate(timeout=60)
    assert other.returncode == 4, err.decode()
    assert json.loads(out)["found"] == COUNT + 1
    pair = [started(source, root), started(source, root)]
    answers = []
    for process in pair:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, err.decode()
        answers.append(json.loads(out))
    assert {answer["found"] for answer in answers} == {COUNT + 1}
    assert {answer["quarantined"] for answer in answers} == {1}
    home = Workspace.open(root)
    rows = home.catalog.series()
    assert len(rows) == COUNT
    assert {row.reason for row in rows} == {""}
    assert [row.code for row in home.catalog.quarantine()] == ["NOT_DICOM"]
    volumes = open_volumes(home)
    assert all(volumes[row.series].read().voxels.any() for row in rows)
    assert len(home.catalog.referenced("volume")) == COUNT  # no series has a second version
    assert all(home.linkage.reveal(row.series)["files"] for row in rows)
    collect(home)
    stored = [path for path in home.volumes.glob("*/*") if path.parent.name != ".stage"]
    assert len(stored) == COUNT
    assert not list((home.volumes / ".stage").iterdir())
    settings = ["cluster=inline", "verify.read_data=true"]
    assert verify.fn(workspace=str(root), settings=settings).damaged == 0

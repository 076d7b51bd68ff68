"""What benchmarks/crash.py kills: processes that ingest, encode, train, check and collect one small archive.

Each is a fork of the benchmark, which has imported everything and started no thread, so a kill costs a fraction of a
second and not the imports. What a driver was told is committed goes into a ledger outside the workspace: the store
cannot vouch for itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (4, 32, 32)
GROUP = "nifti"
TRAIN = ["train.preset=tiny", "train.steps=3", "train.max_seconds=60", "train.threads=1", "train.holdout=0"]


@dataclass(frozen=True)
class Place:
    """Where one benchmark run lies."""

    base: Path

    @property
    def root(self) -> Path:
        """The workspace."""
        return self.base / "ws"

    @property
    def sources(self) -> Path:
        """NIfTI files, one a series."""
        return self.base / "in"

    @property
    def ledger(self) -> Path:
        """A JSON line for every commit that was acknowledged."""
        return self.base / "ledger.jsonl"

    @property
    def stop(self) -> Path:
        """While this file is there, drivers end after what they are doing."""
        return self.base / "stop"

    @property
    def round(self) -> int:
        """Counts up; decides the settings that the archive is encoded with, so that there is always work."""
        return int((self.base / "round").read_text())

    def settings(self, cluster: str) -> list[str]:
        """Of this round: another gate is another settings digest, and so another version of every series' codes."""
        gate = [f"gate.min_psnr={-100 - self.round}"] + (["gate.max_error=3"] if self.round % 3 == 0 else [])
        return [f"cluster={cluster}", *gate, f"train.seed={self.round}", *TRAIN]

    def next_round(self, rng: np.random.Generator, changed: int = 2) -> None:
        """Other settings, and other contents in some of the files.

        Only while nobody works: two runs with two settings would rightly encode a series anew in turn.
        """
        _replace(self.base / "round", str(self.round + 1).encode())
        self.change(rng, changed)

    def change(self, rng: np.random.Generator, files: int) -> None:
        """Other contents in some of the files, at any time."""
        for number in rng.permutation(len(list(self.sources.iterdir())))[:files]:
            self.write_source(int(number), rng)

    def write_source(self, number: int, rng: np.random.Generator) -> None:
        """One series; replaced at once, as a careful sender does."""
        import nibabel

        image = nibabel.Nifti1Image(rng.integers(-500, 500, SHAPE[::-1]).astype(np.int16), np.eye(4))
        _replace(self.sources / f"{number:03d}.nii", image.to_bytes())


def _replace(path: Path, data: bytes) -> None:
    aside = path.parent.parent / f".{path.name}.{os.getpid()}"
    aside.write_bytes(data)
    aside.replace(path)


def lay_out(place: Place, series: int, rng: np.random.Generator) -> None:
    """The archive, ingested, with two models that were started on latents and never trained."""
    import torch

    from archive.catalog import ModelRow
    from archive.workspace import Workspace
    from flows.ingest import ingest
    from model.bundle import save
    from model.config import resolve
    from model.vqvae import VQVAE

    place.sources.mkdir(parents=True)
    (place.base / "round").write_text("0")
    for number in range(series):
        place.write_source(number, rng)
    workspace = Workspace.open(place.root, create=True)
    alias = workspace.register_source(place.sources)
    for seed in range(2):
        torch.manual_seed(seed)
        model = VQVAE(resolve("tiny", channels=1, intensity="robust"))
        model.quantizer.start(torch.randn(200, model.config.code_dim))
        name = save(model.eval(), model.config, workspace.models, {})
        workspace.catalog.add_model(ModelRow(name, GROUP, "tiny"))
    workspace.close()
    ingest.fn(workspace=str(place.root), sources=[alias], settings=place.settings("inline"))


def acknowledge(place: Place) -> None:
    """From here on every commit that this process is told of stands in the ledger; for a forked driver."""
    from archive.catalog import Catalog
    from archive.catalog_schema import now

    descriptor = os.open(place.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def kept(real: Callable[..., Any], tier: str) -> Callable[..., Any]:
        def commit(self: Any, commits: Any, **options: Any) -> Any:
            began = now()
            outcomes = real(self, commits, **options)
            for item, outcome in zip(commits, outcomes, strict=True):
                line: dict[str, Any] = {"tier": tier, "began": began, **outcome.__dict__, "pid": os.getpid()}
                if tier == "codes":
                    line["key"] = [item.series, item.source_version, item.model, item.settings_digest]
                os.write(descriptor, (json.dumps(line) + "\n").encode())
            os.fsync(descriptor)
            return outcomes

        return commit

    Catalog.commit_volumes = kept(Catalog.commit_volumes, "volume")  # type: ignore[method-assign]
    Catalog.commit_encodings = kept(Catalog.commit_encodings, "codes")  # type: ignore[method-assign]


def nightly(place: Place, cluster: str) -> None:
    """Everything that a night does, once."""
    from archive.collect import collect
    from archive.workspace import Workspace
    from flows.encode import encode
    from flows.ingest import ingest
    from flows.verify import verify

    settings = place.settings(cluster)
    ingest.fn(workspace=str(place.root), settings=[*settings, "cluster=inline"])
    encode.fn(workspace=str(place.root), settings=settings)
    verify.fn(workspace=str(place.root), settings=["cluster=inline", "verify.read_data=true", "verify.sample=0.2"])
    workspace = Workspace.open(place.root)
    collect(workspace, grace_seconds=0)
    workspace.close()


def night_after_night(place: Place, cluster: str = "inline") -> None:
    """Until told to stop; a driver that has nothing to do waits a little."""
    while not place.stop.exists():
        nightly(place, cluster)
        time.sleep(0.02)


def train_once(place: Place) -> None:
    """One training of a few steps, which publishes a model."""
    from flows.train import train

    train.fn(workspace=str(place.root), group=GROUP, settings=place.settings("inline"))


def train_over_broken(place: Place) -> None:
    """A training whose bundle of before has lost a byte: the new one takes its place."""
    from archive.workspace import Workspace

    train_once(place)
    workspace = Workspace.open(place.root)
    newest = max(workspace.catalog.models(GROUP), key=lambda row: row.created_at)
    weights = workspace.models / newest.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    workspace.close()
    train_once(place)


def promote_other(place: Place) -> None:
    """Make the model current that was the longest not so."""
    from archive.workspace import Workspace

    workspace = Workspace.open(place.root)
    workspace.catalog.promote(next(row.model for row in workspace.catalog.models(GROUP) if not row.current))
    workspace.close()


def forget_one(place: Place) -> None:
    """Erase the first series; its file is still there, so the next night brings it back."""
    from archive.erase import erase
    from archive.workspace import Workspace

    workspace = Workspace.open(place.root)
    erase(workspace, series=workspace.catalog.series()[0].series)


def recorded_encode(place: Place, api: str) -> None:
    """One encode as a flow run on a Prefect server, by what the command itself does."""
    os.environ["PREFECT_API_URL"] = api
    from flows.encode import encode
    from flows.recording import run_stage

    run_stage(encode, lambda text: None, workspace=str(place.root), settings=place.settings("inline"))


def fork(work: Callable[..., None], place: Place, *rest: Any, fault: str = "") -> int:
    """Run `work` in a child whose words go to log.txt; returns its process id. Exit codes: 0, 1 after an exception."""
    assert threading.active_count() == 1, "a fork of a process with threads may hang"
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log = os.open(place.base / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if fault:
            os.environ["VOXBOOK_FAULT"] = f"{fault}:kill"
        acknowledge(place)
        work(place, *rest)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """How a child ended (negative: the signal), or None where it still runs after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def kill(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

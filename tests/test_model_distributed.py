"""Two processes that train one model: equal state, their own batches, one writer; and nothing at all when alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from archive.errors import ConfigError
from model import distributed

DRIVER = Path(__file__).parent / "rank_driver.py"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_ranks_end_with_the_same_weights_codebooks_and_moments(tmp_path: Path) -> None:
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    here = str(DRIVER.parent)  # PYTHONSAFEPATH may be set
    ranks = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(tmp_path)],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": here},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert (first["rank"], second["rank"], first["world"]) == (0, 1, 2)
    assert first["state"] == second["state"] and first["codes_started"]
    assert first["batch"] != second["batch"], "each rank draws its own"
    assert first["skipped"] == second["skipped"] == 1, "one rank's poisoned batch is skipped by both"
    assert first["model"] == second["model"] and first["steps"] == 14
    assert [path.name for path in (tmp_path / "models").glob("[!.]*")] == [first["model"]]
    steps = [json.loads(line)["step"] for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "one writer"


def test_alone_nothing_is_changed_and_rank_is_nought() -> None:
    tensor = torch.arange(3.0)
    assert distributed.reduced(tensor) is tensor and distributed.shared(tensor) is tensor
    assert tensor.tolist() == [0.0, 1.0, 2.0]
    assert (distributed.rank(), distributed.world(), distributed.active()) == (0, 1, False)
    assert distributed.agreed(False, torch.device("cpu")) is False
    assert distributed.decided(0.25, torch.device("cpu")) == 0.25
    parameter = torch.nn.Parameter(torch.ones(2))
    distributed.average_gradients([parameter])
    assert parameter.grad is None


def test_what_torchrun_sets_is_read_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.launched() == (0, 0, 1)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert distributed.launched() == (5, 1, 8)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="BAD_VALUE"):
        distributed.launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE")  # every rank would take itself for the one that writes
    with pytest.raises(ConfigError, match="WORLD_SIZE is not"):
        distributed.launched()


def test_averaged_gradients_lie_as_their_weights_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "active", lambda: True)
    monkeypatch.setattr(distributed, "world", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    weight.grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    before = weight.grad.clone()
    distributed.average_gradients([weight])
    assert weight.grad.stride() == weight.stride() and torch.equal(weight.grad, before)

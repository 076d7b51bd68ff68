"""How trainings of a selection share a machine, and the ledger that a killed one goes on from."""

from __future__ import annotations

import json
import math
import os

import pytest

from archive.settings import ClusterSettings, TrainSettings
from model.select import Candidate, Result
from tasks.select import Ledger, placed, share_machine, shortened, training_cluster

POINT = Candidate(16, 64, 2, (1, 8, 8))
TRAIN = TrainSettings(cache_bytes=1024)


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


@pytest.mark.parametrize(
    ("given", "device", "trainings", "gpus", "workers", "threads"),
    [
        ({}, "auto", 100, 0, 16, 1),
        ({}, "auto", 6, 0, 6, 2),  # the last rung leaves no core idle
        ({"workers": 4}, "auto", 6, 0, 4, 4),
        ({}, "auto", 6, 2, 2, 8),  # as many trainings side by side as there are GPUs
        ({}, "cpu", 6, 2, 6, 2),
        ({}, "cuda:1", 6, 2, 1, 16),
        ({}, "auto", 0, 0, 1, 16),
    ],
)
def test_trainings_share_the_cores_of_this_machine(sixteen, given, device, trainings, gpus, workers, threads):
    machine = training_cluster(ClusterSettings(**given), device, trainings, gpus)
    assert machine.workers == workers
    shared = share_machine(TRAIN, machine)
    assert (shared.threads, shared.cache_bytes) == (threads, 1024 // workers)
    assert share_machine(TrainSettings(threads=3), machine).threads == 3, "what is set goes before"


@pytest.mark.parametrize("address", ["inline", "tcp://127.0.0.1:9"])
def test_elsewhere_the_machine_is_not_ours_to_share(sixteen, address):
    cluster = ClusterSettings(address=address)
    assert training_cluster(cluster, "auto", 6, 2) == cluster and share_machine(TRAIN, cluster) == TRAIN


def test_a_worker_gives_its_threads_and_one_of_several_gpus():
    assert placed(TRAIN, None, None, 0) == TRAIN
    assert placed(TRAIN, 4, "tcp://far:1", 2) == TRAIN.model_copy(update={"threads": 4})
    assert placed(TrainSettings(threads=2), 4, 3, 0).threads == 2
    assert [placed(TRAIN, 1, name, 2).device for name in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert placed(TRAIN, 1, 3, 1).device == "auto"
    assert placed(TrainSettings(device="cpu"), 1, 3, 2).device == "cpu"


def test_a_short_rung_takes_its_share_of_steps_and_epochs():
    given = TrainSettings(steps=400, epochs=10)
    short = shortened(given, 0.25, seed=3)
    assert (short.steps, short.epochs, short.seed) == (100, 2, 3)
    assert (shortened(given, 0.01, 0).steps, shortened(given, 0.01, 0).epochs) == (20, 1)
    assert shortened(given, 1.0, 0) == given
    assert shortened(TrainSettings(steps=5), 0.5, 0).steps == 5
    assert shortened(TRAIN, 0.25, 0) == TRAIN, "seconds are the job's"


def test_the_ledger_gives_back_what_it_was_given(tmp_path):
    ledger = Ledger(tmp_path / "selections" / "trainings.jsonl")
    assert ledger.read() == {}
    results = {
        "a": Result(POINT, 0, 0, 15.0, 31.5, None, 0.1, 0.9, 100),
        "b": Result(POINT, 1, 2, 60.0, 33.5, 0.9, 0.2, 1.0, 400),
    }
    for key, result in results.items():
        ledger.add(key, result)
    assert Ledger(ledger.path).read() == results
    ledger.add("a", results["b"])
    assert ledger.read()["a"] == results["b"], "the last one counts"


@pytest.mark.parametrize(
    "torn", [b'{"key": "b", "candi', b"[3]", b'{"key": "b"}', b"\xff\xfe", b'{"key": "b", "candidate": {"width": 1}}']
)
def test_a_line_that_does_not_read_takes_no_other_along(tmp_path, torn, caplog):
    ledger = Ledger(tmp_path / "trainings.jsonl")
    result = Result(POINT, 0, 0, 15.0, 31.5, 0.9, 0.1, 0.9, 100)
    ledger.add("a", result)
    ledger.path.write_bytes(ledger.path.read_bytes() + torn)
    assert ledger.read() == {"a": result} and "1 stored results do not read" in caplog.text
    ledger.add("c", result)
    assert ledger.read() == {"a": result, "c": result}


def test_lines_are_plain_json(tmp_path):
    ledger = Ledger(tmp_path / "trainings.jsonl")
    ledger.add("a", Result(POINT, 0, 0, 15.0, 31.5, 0.9, 0.1, 0.9, 100))
    (line,) = ledger.path.read_text().splitlines()
    found = json.loads(line)
    assert found["key"] == "a" and found["candidate"]["downsample"] == [1, 8, 8] and math.isfinite(found["psnr"])

"""A smoke of benchmarks/hostile.py: damaged files all end in a known outcome, and workers that die are found."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from archive.decoder import PixelDecoder
from archive.errors import REASONS

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "hostile.py"


@pytest.fixture(scope="module")
def hostile():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("hostile", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["hostile"]


def test_two_hundred_mutants_end_in_a_known_outcome(hostile, tmp_path):
    with PixelDecoder(hostile.SETTINGS) as decoder:
        judged = [hostile.judge(number, 7, tmp_path, decoder) for number in range(200)]
        unharmed = [hostile.judge(-number, 7, tmp_path, decoder) for number in range(1, 20)]
    assert [one for one in judged if one.outcome not in (*REASONS, "read", "skipped")] == []
    assert len({one.outcome for one in judged}) > 5, "a reader that gives one answer to everything has judged nothing"
    assert {one.kind for one in judged} == set(hostile.MUTATIONS)
    assert sum(one.outcome == "read" for one in unharmed) > 3
    assert max(one.seconds for one in judged) < 60


def test_a_mutant_follows_from_its_number_alone(hostile):
    assert hostile.mutant(5, 1) == hostile.mutant(5, 1)
    assert hostile.mutant(5, 1) != hostile.mutant(6, 1)


def test_an_unforeseen_error_and_a_hang_are_not_taken_for_outcomes(hostile, tmp_path, monkeypatch):
    def panic(*_args, **_kwargs):
        raise RuntimeError("name of somebody")

    monkeypatch.setattr(hostile, "scan", panic)
    one = hostile.judge(0, 1, tmp_path, None)
    assert one.outcome.startswith("unclassified: RuntimeError at ") and "somebody" not in one.outcome


def test_the_mutant_that_kills_its_worker_is_named(hostile, monkeypatch):
    real = hostile.judge

    def deadly(number, *rest):
        return os._exit(9) if number == 3 else real(number, *rest)

    monkeypatch.setattr(hostile, "judge", deadly)
    few = hostile.seeds()[:3]
    monkeypatch.setattr(hostile, "seeds", lambda: few)
    result = hostile.run(range(6), 1, workers=1)
    assert (result["files"], result["unclassified"]) == (6, 1)
    assert result["dead_workers"] == 1
    assert result["examples"] == [[3, "?", "unclassified: the worker died"]]

"""The crash and damage benchmarks at their smallest: they kill, look and judge; the real sizes are run by hand."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
BENCHMARKS = HOME / "benchmarks"


def open_path() -> dict[str, str]:
    """This environment without what keeps a script from its own folder: flows set it where they ran before."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark as running it does: its own folder comes first."""
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_few_kills_lose_nothing():
    """A process of its own: it forks, and pytest's has threads."""
    pytest.importorskip("skimage")
    command = [sys.executable, str(BENCHMARKS / "crash.py"), "--kills", "3", "--each", "1", "--series", "2"]
    done = subprocess.run(
        [*command, "--no-server", "--no-workers", "--points", "commit.renamed", "train.published", "bundle.moved"],
        capture_output=True, text=True, timeout=600, check=False, cwd=HOME, env=open_path(),
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    wrong = {name: found[name] for name in ("lost", "unreadable", "absent", "encoded_twice", "orphan_bytes", "stuck")}
    assert not any(wrong.values()), found["words"]
    assert found["random_kills"]["flow"] == 3
    assert found["kills_at_points"] == {"commit.renamed": 1, "train.published": 1, "bundle.moved": 1}
    assert found["acknowledged"] >= 6 and found["checks"] == 4


def test_the_checks_see_what_must_not_be(script, tmp_path):
    """A lost version, an orphan and a series encoded twice: the benchmark would say so."""
    import numpy as np

    drivers, checks = script("crash_drivers"), script("crash_checks")
    place = drivers.Place(tmp_path)
    drivers.lay_out(place, 2, np.random.default_rng(0))
    drivers.nightly(place, "inline")
    assert checks.examine(place).bad == 0
    gone = {"tier": "volume", "series": "0" * 32, "version": "1", "status": "ingested", "began": "2026"}
    twice = [
        {"tier": "codes", "series": "s", "version": name, "status": "encoded", "began": "", "key": ["s", "v", "m", "d"]}
        for name in "ab"
    ]
    place.ledger.write_text("".join(json.dumps(line) + "\n" for line in (gone, *twice)))
    (tmp_path / "ws" / "codes.zarr" / "x").mkdir()
    (tmp_path / "ws" / "codes.zarr" / "x" / "orphan").write_bytes(b"123")
    shard = next(path for path in (tmp_path / "ws" / "volumes.zarr").rglob("c/*/*/*") if path.is_file())
    shard.unlink()
    place.write_source(2, np.random.default_rng(1))
    found = checks.examine(place)
    assert (found.lost, found.twice, found.orphan_bytes, found.unreadable, found.absent) == (3, 1, 3, 1, 1)


def test_points_are_those_of_the_code(script):
    points = script("crash_checks").points(HOME)
    assert {"commit.renamed", "collect.removed", "bundle.renamed", "train.published", "catalog.promote.inside"} <= set(
        points
    )


def test_damages_are_found_named_and_repaired(script):
    damage = script("damage")
    found = damage.run(3, 40, seed=1)
    assert found["holds"], found
    assert found["found"] == found["damages"] == 40
    assert sum(row["damages"] for row in found["by_kind"].values()) == 40

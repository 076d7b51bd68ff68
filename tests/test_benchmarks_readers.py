"""The benchmark of readers beside a re-encode runs, and tells a mixture when there is one."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest

from archive import open_codes

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def readers(monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("readers")


def test_readers_read_while_everything_is_encoded_again(readers, tmp_path):
    arguments = argparse.Namespace(
        series=2, shape=[4, 32, 32], rounds=1, readers=1, kinds=["codes"], cluster="inline", grace=5.0, seed=0
    )
    found = readers.measure(arguments, tmp_path)
    assert (found["errors"], found["mixed"]) == (0, 0)
    assert found["written"] == {"encoded": 2, "removed_with_default_grace": 0, "not_encoded_at_the_end": 0}
    assert [one["kind"] for one in found["readers"]] == ["codes"]
    assert all(one["reads"] for one in found["readers"])


def test_a_mixture_is_told(readers, tmp_path):
    expected = readers.lay_out(tmp_path / "ws", 1, (4, 32, 32))
    from flows.encode import encode

    encode.fn(workspace=str(tmp_path / "ws"), settings=["cluster=inline"])
    ((series, by_model),) = expected.items()
    stored = open_codes(tmp_path / "ws")[series]
    assert readers._model_of(stored, "codes", by_model) == stored.attributes["model"]

    class Mixed:
        """Its last slice is another version's."""

        shape, attributes = stored.shape, stored.attributes

        def slab(self, start: int, stop: int) -> np.ndarray:
            found = stored.slab(start, stop)
            return found if stop < self.shape[-3] else (found + 1) % 64

    assert readers._model_of(Mixed(), "codes", by_model) is None

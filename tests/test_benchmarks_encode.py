"""The benchmarks of encoding run at a small size; what they state follows from what they measured."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")  # of MONAI's own imports


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_encoding_is_measured_whole(script, tmp_path: Path) -> None:
    pytest.importorskip("monai")
    threads = torch.get_num_threads()
    arguments = argparse.Namespace(
        workers=1, series=2, slices=2, side=64, repeats=1, preset="tiny", certify="auto", workspace=None,
        rss_slices=20, rss_certify="full", small=True,
    )  # fmt: skip
    try:
        found = script("encode").measure(arguments, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found["goals"]["flow over memory"]["found"] == found["memory_s"][1] / found["flow_s"][1] > 0
    assert found["flow_voxels_per_s"][1] == pytest.approx(2 * 2 * 64 * 64 / found["flow_s"][1])
    assert found["long"]["checked_slices"] == 20 and 0.05 < found["long"]["peak_rss_gib"] < 2
    assert len(list((tmp_path / "ws" / "codes.zarr").glob("[0-9a-f]*/*"))) == 2


def test_profiles_compare_codes_with_the_whole(script) -> None:
    arguments = argparse.Namespace(workspace=None, model=None, preset="tiny", side=96, slices=2, device="cpu")
    found = script("profiles").measure(arguments)
    (row,) = found["series"]
    assert row["codes"] == found["codes"] > 0
    assert found["tiled_ppm"] <= 1e6 / row["codes"] + 10 and found["largest_gap"] < 1e-4
    assert 0 <= found["fast_share"] < 0.2 and abs(found["fast_psnr_change"]) < 1

"""The store benchmark runs on phantoms, and its figures are those of the bytes that lie there."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import ct_volume

from model import bundle
from model.config import resolve
from model.decode import decode_codes
from model.encode import encode_volume
from model.vqvae import VQVAE

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark as running it does: its own folder comes first."""
    pytest.importorskip("skimage")
    pytest.importorskip("imagecodecs")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_bytes_are_counted_whole_and_tables_are_fitted_to_what_is_not_left_out(script, tmp_path):
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", intensity="hu"))
    model.quantizer.start(torch.randn(200, model.config.code_dim))
    name = bundle.save(model.eval(), model.config, tmp_path, {})
    volumes = {f"s{seed}": ct_volume((4, 96, 128), seed) for seed in (1, 2)}
    split = script("held_out").Split(
        group="ct",
        modality="CT",
        learn={"s1": volumes["s1"]},
        unseen={"s2": volumes["s2"]},
        patients={name: name for name in volumes},
        names={"s1": "known", "s2": "other"},
    )
    store = script("store")
    loaded = bundle.load(tmp_path / name)
    data = store.known(split, loaded, tmp_path / name, refit=2.0)
    assert store.known(split, loaded, tmp_path / name, refit=0) is None  # the bundle has none of its own
    found = store.measure(split, loaded, tmp_path / name, data, slices=2)
    (row,) = found["unseen"]
    voxels = 4 * 96 * 128
    assert row["series"] == "other" and row["codes"] == 4 * 12 * 16
    assert row["fixed"] == round(6 / 64, 4)
    assert 0 < row["zero_order"] < row["fixed"]
    assert row["beside"] < row["bytes"] < row["beside"] + voxels * row["fixed"] / 8 + 64
    assert row["stored"] == round(8 * row["bytes"] / voxels, 4)
    assert found["tables_bytes"] > 1000 and found["summary"]["largest_beside"] <= 1500
    assert "other" in store.report(found)
    # The codecs were given no more bytes than lie on disk, and the pictures are those that were decoded.
    assert row["JPEG 2000: bits"] <= 8 * row["bytes"] / voxels
    decoded = decode_codes(loaded, encode_volume(loaded, volumes["s2"]))
    off = np.clip(decoded.values(), -1024, 3071)[[1, 3]] - np.clip(volumes["s2"].values(), -1024, 3071)[[1, 3]]
    assert row["psnr"] == pytest.approx(10 * np.log10(4095**2 / np.square(off, dtype=np.float64).mean()), abs=1e-3)
    assert store.ahead(row, "JPEG 2000", "psnr") == row["psnr"] - row["JPEG 2000: psnr"]

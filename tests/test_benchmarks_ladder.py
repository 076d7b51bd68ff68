"""The benchmarks of the ladder and of training on codes run, and hold what they promise, on a small workspace."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_model_encode import network, volume

from archive import codes as code_store
from archive import volumes as volume_store
from archive.codes import StoredCodes
from archive.settings import GateSettings
from archive.volumes import StoredVolume
from model import bundle
from model.encode import encode_volume
from model.jobs import EncodeJob, encode_batch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("ladder")
    model = network()
    name = bundle.save(model, model.config, root / "models", {})
    committed = volume_store.write(volume("zyx", (4, 48, 40), "int16"), root / "volumes.zarr", "s")
    return root / "volumes.zarr" / "s" / committed.version, root / "models" / name


def test_ladder(places) -> None:
    pytest.importorskip("imagecodecs")
    folder, model = places
    command = [
        sys.executable,
        str(BENCHMARKS / "ladder.py"),
        "--case",
        "mr",
        str(folder),
        str(model),
        "--errors",
        "0",
        "4",
    ]
    here = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # flows set it
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=here)
    found = json.loads(done.stdout)
    rows, rungs = found["rows"], found["rungs"]
    assert [row["error"] for row in rows] == [0, 4] and rows[0]["largest"] == 0 < rows[1]["largest"] <= 4
    assert rows[1]["layer"] < rows[0]["layer"] and "| mr |" in done.stderr
    assert [row["rung"] for row in rungs] == ["1 levels", "2 levels", "within 4"]
    bounded = rungs[-1]
    assert bounded["bits"] == pytest.approx(rows[1]["codes"] + rows[1]["layer"])
    assert bounded["largest"] <= 4 and bounded["psnr"] > rungs[0]["psnr"]
    # JPEG 2000 has as many bytes, spends them, and promises no bound.
    assert bounded["JPEG 2000: psnr"] > rungs[0]["psnr"] and bounded["JPEG-LS: largest"] is not None


def test_training_on_codes_is_measured_on_the_same_voxels(places, tmp_path, monkeypatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    folder, model = places
    stored = StoredVolume(folder)
    version = code_store.write(encode_volume(bundle.load(model), stored), tmp_path, "s").version
    dataset = importlib.import_module("dataset")
    found = dataset.measure({"s": stored}, {"s": StoredCodes(tmp_path / "s" / version)}, epochs=2, rows=1)
    assert found["voxels"] == 4 * 48 * 40 and found["series"] == 1
    whats = ["volumes", "codes, first epoch", "codes, epoch 2"]
    assert [row["what"] for row in found["rows"]] == whats
    rows = StoredCodes(tmp_path / "s" / version).shape[-3]
    assert [row.get("items") for row in found["rows"]] == [None, rows, rows]  # each row of the code grid once an epoch
    assert all(row["voxels_s"] == found["voxels"] / row["seconds"] for row in found["rows"])


@pytest.mark.parametrize(("max_error", "rung"), [(None, "codes"), (0, "bounded")])
def test_a_worker_climbs(places, tmp_path: Path, max_error: float | None, rung: str) -> None:
    folder, model = places
    job = EncodeJob(
        series="s", voxels=4 * 48 * 40, volume=folder, source_version=folder.name, source_digest="d", codes=tmp_path,
        models=model.parent, model=model.name, profile="exact", levels=None, gate=GateSettings(max_error=max_error),
        settings_digest="x", device="cpu",
    )  # fmt: skip
    (record,) = encode_batch([job])
    assert record.certificate is not None and record.committed is not None and not record.code
    assert record.certificate["rung"] == rung and record.certificate["passed"]
    assert json.loads(json.dumps(record.certificate)) == record.certificate
    assert [path.name for path in (tmp_path / "s").iterdir()] == [record.committed.version]
    if max_error == 0:
        from model.decoded import DecodedVolume

        stored = StoredCodes(tmp_path / "s" / record.committed.version)
        decoded = DecodedVolume(bundle.load(model), stored)[...]
        assert np.array_equal(decoded, StoredVolume(folder).read().voxels)

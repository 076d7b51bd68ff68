"""Training: it learns, keeps to its time, resumes exactly, and its bundle names itself."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import model
from archive.errors import InputError, MismatchError, StoreError
from archive.geometry import Geometry
from archive.settings import TrainSettings
from archive.volume import Volume
from model import bundle, checkpoint
from model.config import resolve
from model.decode import decode_codes
from model.device import fast_bfloat16
from model.encode import encode_volume
from model.fidelity import sample_fidelity
from model.learner import Learner
from model.metrics import psnr
from model.train import _Training, train

CPU = torch.device("cpu")

SETTINGS = TrainSettings(device="cpu", threads=1, cache_bytes=2**24)


def phantom(seed: int, shape: tuple[int, int, int] = (4, 64, 56)) -> Volume:
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    hu = np.full(shape, -1000.0)
    for _ in range(4):
        cy, cx, r = rng.uniform((15, 15, 6), (45, 45, 16))
        hu[((y - cy) ** 2 + (x - cx - z) ** 2) < r * r] = rng.uniform(-100, 300)
    return Volume((hu + rng.normal(0, 8, shape)).astype(np.int16), "zyx", Geometry.pixels(shape), "CT", units="HU")


def phantoms(count: int = 3) -> dict[str, Volume]:
    return {f"{seed:032x}": phantom(seed) for seed in range(count)}


def tiny(**changes):
    return resolve("tiny", intensity="hu").model_copy(update={"batch_size": 4, **changes})


def test_it_learns_saves_and_says_what_it_reached(tmp_path: Path) -> None:
    volumes = phantoms()
    seen = []
    result = train(
        volumes,
        {name: name for name in volumes},
        tiny(steps=150),
        SETTINGS,
        tmp_path / "work",
        60.0,
        progress=lambda *told: seen.append(told),
        models=tmp_path / "models",
    )
    assert (result.steps, result.resumed_from, result.held_out_patients) == (150, 0, 0)
    assert seen[-1][0] == 150 and "tables" in seen[-1][3]["then"]
    assert result.psnr > 18 and 0 < result.codebook_use <= 1 and 0 < result.bits_per_voxel <= 6 / 64
    assert {path.name for path in result.folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md", "metrics.jsonl", "progress.png",
        "events.out.tfevents.0",
        "tables.safetensors",
    }  # fmt: skip
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 150 and lines[-1]["loss"] < lines[0]["loss"] / 3
    assert set(lines[-1]) == {
        *("step", "seconds", "loss", "l_rec", "l_quant", "psnr", "rate", "skipped", "rollbacks", "perplexity", "use")
    }
    assert seen[-1][0] == 150 and seen[-1][1] == 150
    assert "not for diagnosis" in (result.folder / "README.md").read_text()
    assert not (tmp_path / "work" / checkpoint.FILE).exists()
    loaded = bundle.load(result.folder, result.model)
    unseen = phantom(99)
    decoded = decode_codes(loaded, encode_volume(loaded, unseen))
    mse = float(np.square(decoded.values() - unseen.values()).mean())
    assert psnr(mse, 4095.0) > 18
    assert encode_volume(loaded, unseen).model == result.model


class Killed(Exception):
    """The process is gone."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, *arguments) -> None:
    """A training that saves before the step and ends there."""

    def advance(self, batches, share):
        if self.step == step:
            self._save()
            raise Killed
        return original(self, batches, share)

    original = _Training._advance
    with monkeypatch.context() as patched:
        patched.setattr(_Training, "_advance", advance)
        with pytest.raises(Killed):
            train(*arguments)


# quantize_after is 5 for tiny: before the codebooks start, at their start, and after.
@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (3, {}),
        (5, {}),
        (13, {"optimizer": "adamw", "accumulate": 2, "levels": 2}),
        (13, {"optimizer": "adam", "quantizer": "vq", "adversarial": 0.5, "adversarial_after": 8}),
        (23, {"optimizer": "sgd", "epochs": 7, "steps": None, "schedule": "constant", "batch_size": 2}),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    step: int, changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = phantoms(2)
    patients = dict.fromkeys(volumes, "p")
    config = tiny(**{"steps": 16, **changes})
    straight = train(volumes, patients, config, SETTINGS, tmp_path / "a", 600.0)
    killed_at(step, monkeypatch, volumes, patients, config, SETTINGS, tmp_path / "b", 600.0)
    resumed = train(volumes, patients, config, SETTINGS, tmp_path / "b", 600.0)
    assert resumed.resumed_from == step
    assert resumed.model == straight.model, "the same weights, bit for bit: the id is their hash"
    assert straight.steps == resumed.steps == (config.steps or 28)  # 4 steps make an epoch of 2 x 4 slices
    assert straight.ended_by == "steps"


def state_of(training: _Training) -> dict[str, torch.Tensor]:
    """A copy of everything that learning goes on from."""
    return training.learner.snapshot()


@pytest.mark.parametrize("factor", [float("inf"), 1e4], ids=["not finite", "far above the usual loss"])
@pytest.mark.parametrize("quantizer", ["ema", "vq"])
def test_a_poisoned_batch_changes_nothing(
    quantizer: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.guard.FEWEST", 3)
    original = _Training._advance
    seen: dict[str, dict] = {}

    def advance(self, batches, share):
        if self.step != 9:
            return original(self, batches, share)
        seen["before"] = state_of(self)
        output = original(self, [batch * factor for batch in batches], share)
        seen["after"] = state_of(self)
        return output

    monkeypatch.setattr(_Training, "_advance", advance)
    result = train(phantoms(1), {}, tiny(steps=12, quantizer=quantizer), SETTINGS, tmp_path, 60.0)
    assert (result.skipped, result.rollbacks, result.steps) == (1, 0, 12)
    assert any("codebooks" in name for name in seen["before"]) and any("optimiser" in name for name in seen["before"])
    for name, tensor in seen["before"].items():
        assert torch.equal(tensor, seen["after"][name]), name
    assert "| steps skipped | 1 |" in (result.folder / "README.md").read_text()


def test_a_training_that_skipped_most_of_its_steps_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _Training._advance

    def advance(self, batches, share):
        return original(self, batches if self.step < 5 else [batch * float("nan") for batch in batches], share)

    monkeypatch.setattr(_Training, "_advance", advance)
    with pytest.raises(InputError, match="7 of 12 steps were skipped"):
        train(phantoms(1), {}, tiny(steps=12), SETTINGS, tmp_path, 60.0)
    assert not [path for path in tmp_path.iterdir() if (path / "config.json").exists()]


def test_two_slices_are_learned_in_float32_on_a_cpu() -> None:
    """oneDNN's bfloat16 gradient of a convolution over exactly two slices is taken from memory nobody wrote."""
    halves = {preset: Learner(resolve(preset), CPU).half for preset in ("tiny-3d", "ct-3d", "tiny")}
    assert halves == {"tiny-3d": False, "ct-3d": fast_bfloat16(CPU), "tiny": fast_bfloat16(CPU)}


def test_weights_that_went_wrong_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.guard.KEEP_STEPS", 10)
    monkeypatch.setattr("model.guard.SPIKE_STEPS", 3)
    original = _Training._advance
    rates = []

    def advance(self, batches, share):
        if self.step == 33:
            with torch.no_grad():
                for parameter in self.learner.model.decoder.parameters():
                    parameter.mul_(5)
        output = original(self, batches, share)
        rates.append(self.guard.rate)
        return output

    monkeypatch.setattr(_Training, "_advance", advance)
    result = train(phantoms(1), {}, tiny(steps=44, learning_rate=1e-4), SETTINGS, tmp_path, 60.0)
    assert result.rollbacks == 1 and rates[32] == 1.0 and rates[-1] == 0.5
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rollbacks"] == 0
    assert "| rollbacks | 1 |" in (result.folder / "README.md").read_text()


def test_training_ends_when_held_out_patients_gain_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([20.0, 25.0, 24.0, 24.5, 23.0, 22.0])
    monkeypatch.setattr("model.validation.psnr", lambda *_: next(looks))
    volumes = phantoms(10)
    config = tiny(steps=300, patience=2, validate_every=8)
    kept: dict[str, dict] = {}
    original = _Training.finish

    def finish(self, ended_by):
        kept["best"] = dict(self.early.best)
        return original(self, ended_by)

    monkeypatch.setattr(_Training, "finish", finish)
    result = train(volumes, {name: name for name in volumes}, config, SETTINGS, tmp_path, 60.0)
    # Looks at steps 8, 16 (the best), 24 and 32; then enough, and a last look at what training ended with.
    assert (result.ended_by, result.steps, result.held_out_patients) == ("patience", 32, 1)
    weights = bundle.load(result.folder).state_dict()
    assert kept["best"], "the weights of the best look are the ones that are published"
    for name, tensor in kept["best"].items():
        if name not in bundle._LEARNING_ONLY:
            assert torch.equal(weights[name], tensor), name


def test_an_epoch_is_as_many_patches_as_slices_and_is_told(tmp_path: Path) -> None:
    told = []
    config = tiny(epochs=3, batch_size=4)  # 2 volumes of 4 slices: 2 steps an epoch
    result = train(
        phantoms(2), {}, config, SETTINGS, tmp_path, 60.0, progress=lambda step, _, __, metrics: told.append(metrics)
    )
    epochs = [metrics for metrics in told if "epoch" in metrics]
    assert result.steps == 6 and [metrics["epoch"] for metrics in epochs] == [1, 2, 3]
    assert all(metrics["epochs"] == 3 and metrics["loss"] > 0 for metrics in epochs)
    assert result.input_shape == result.output_shape == (4, 1, 32, 32)


def test_the_losses_of_an_epoch_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, config = phantoms(2), tiny(epochs=2, batch_size=1)  # 8 steps an epoch

    def told(folder: str, stop_at: int | None = None) -> list[float]:
        found: list[float] = []

        def progress(step: int, _: object, __: float, metrics: dict) -> None:
            if "epoch" in metrics:
                found.append(metrics["loss"])

        tell = _Training._tell

        def killed(self: _Training, output: object) -> None:
            tell(self, output)
            if self.step == stop_at:
                self._save()
                raise KeyboardInterrupt

        monkeypatch.setattr(_Training, "_tell", killed)
        try:
            train(volumes, {}, config, SETTINGS, tmp_path / folder, 60.0, progress=progress)
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.setattr(_Training, "_tell", tell)
        return found

    whole = told("whole")
    assert len(whole) == 2 and whole[0] != whole[1]
    assert told("killed", stop_at=5) == []
    assert told("killed") == whole


def test_a_series_that_is_not_finite_does_not_stop_training(tmp_path: Path) -> None:
    volumes = phantoms(3)
    name = min(volumes)
    bad = volumes[name].voxels.astype(np.float32)
    bad[1:3, 10] = np.nan
    volumes[name] = replace(volumes[name], voxels=bad)
    result = train(volumes, {}, tiny(steps=25), SETTINGS, tmp_path, 60.0)
    assert result.steps == 25 and np.isfinite(result.psnr)
    alone = replace(volumes[name], voxels=np.full_like(bad, np.nan))
    with pytest.raises(InputError, match="NOTHING_FOUND"):
        sample_fidelity(bundle.load(result.folder), {name: alone}, math.inf)


def test_event_files_hold_what_metrics_say_and_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "planted-host")
    result = train(phantoms(1), {}, tiny(steps=25), SETTINGS, tmp_path, 60.0)
    data = (result.folder / "events.out.tfevents.0").read_bytes()
    assert all(word in data for word in (b"psnr", b"perplexity/level_1", b"codes/level_1", b"use/level_1"))
    assert b"image" not in data
    assert any("planted-host" in path.name for path in tmp_path.rglob("*tfevents*")), "TensorBoard names its files so"
    assert b"planted-host" not in data
    assert [path.name for path in result.folder.glob("*tfevents*")] == ["events.out.tfevents.0"]


def test_it_keeps_to_its_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    result = train(phantoms(), {}, tiny(), SETTINGS, tmp_path, 8.0)
    assert time.monotonic() - began < 8.0
    assert result.steps > 5


def test_tables_keep_to_the_seconds_where_steps_are_given_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = sys.modules["model.train"]
    real = module.fit_tables

    def fitted(*arguments, deadline, **named):
        asked.append(deadline)
        return real(*arguments, deadline=deadline, **named)

    monkeypatch.setattr(module, "fit_tables", fitted)
    before = time.monotonic()
    train(phantoms(), {}, tiny(steps=5), SETTINGS, tmp_path, 40.0)
    assert before < asked[0] < before + 40


def test_a_checkpoint_of_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "one", checkpoint.Checkpoint({"x": torch.ones(2)}, 5, 1.5))
    found = checkpoint.read(tmp_path, "one")
    assert found is not None and (found.step, found.seconds) == (5, 1.5)
    assert checkpoint.read(tmp_path, "two") is None
    (tmp_path / checkpoint.FILE).write_bytes(b"torn")
    assert checkpoint.read(tmp_path, "one") is None


def test_a_bundle_whose_bytes_changed_is_refused(tmp_path: Path) -> None:
    result = train(phantoms(1), {}, tiny(steps=6), SETTINGS, tmp_path, 60.0)
    for name, change in (("config.json", b" "), ("model.safetensors", b"\0")):
        copy = tmp_path / f"copy-{name}" / result.model
        shutil.copytree(result.folder, copy)
        data = bytearray((copy / name).read_bytes())
        if name == "config.json":
            data = bytearray(data.replace(b'"seed": 0', b'"seed": 1'))
        else:
            data[-1] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(MismatchError, match="WRONG_MODEL"):
            bundle.load(copy)
        assert change
    with pytest.raises(MismatchError):
        bundle.load(result.folder, "0" * 64)
    with pytest.raises(StoreError, match="MISSING"):
        bundle.load(tmp_path / "nowhere")
    assert bundle.load(result.folder) is bundle.load(result.folder)


def test_nothing_to_train_on_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NOTHING_FOUND"):
        train({}, {}, tiny(), SETTINGS, tmp_path, 5.0)
    colour = Volume(np.zeros((3, 1, 9, 9), np.uint8), "czyx", Geometry.pixels((1, 9, 9)), "PICTURE", units="rgb")
    with pytest.raises(InputError, match="UNSUPPORTED_PIXELS"):
        train({"a": colour}, {}, tiny(), SETTINGS, tmp_path, 5.0)


def test_the_package_gives_functions_whatever_was_imported_first() -> None:
    assert model.train is train and model.encode_volume is encode_volume and model.decode_codes is decode_codes
    assert callable(model.load) and callable(model.open_decoded)
    with pytest.raises(AttributeError):
        _ = model.nothing_of_that_name

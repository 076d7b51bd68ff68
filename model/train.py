"""Training, from top to bottom: patches in, a bundle out, within the seconds or steps that were given."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archive.errors import InputError, StoreError
from archive.settings import TrainSettings
from model import bundle, checkpoint, distributed, progress
from model.budget import Budget, learning_rate
from model.card import data_summary
from model.checkpoint import Checkpoint, under
from model.config import ModelConfig
from model.device import pick
from model.feed import on_device
from model.fidelity import Fidelity, sample_fidelity
from model.guard import Guard
from model.learner import Learner
from model.metrics import perplexity, psnr, use
from model.outcome import TrainResult
from model.patches import PatchSampler
from model.source import as_source
from model.table_samples import table_samples
from model.tables import fit as fit_tables
from model.validation import EarlyStop, held_out
from model.vqvae import VQVAE, Output

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None, float, dict[str, Any]], None]
RESERVOIR_BATCHES = 8  # batches whose latents the codebooks start from
HELD_OUT = ("patients held out", "patients held out, who also chose the weights")
LOG_STEPS = 25


def train(
    volumes: Mapping[str, Any],
    patients: Mapping[str, str],
    config: ModelConfig,
    settings: TrainSettings,
    folder: Path,
    seconds: float,
    progress: Progress | None = None,
    models: Path | None = None,
) -> TrainResult:
    """Train one model and write its bundle.

    volumes: series = StoredVolume (or Volume). patients: series = patient, to hold some out whole. folder: this
    training's own: checkpoint, metrics.jsonl, events and progress.png; a checkpoint of the same config and series there
    is gone on with. models: where the bundle goes (`models/<model id>`); None: the folder. seconds: for all of it,
    starting, measuring and saving included, and what earlier runs of the same training spent. progress: called with
    step, steps (None where time decides), seconds, metrics; at the end of an epoch these have `epoch` and `epochs`, and
    after the last step `then`, what comes now.
    Under torchrun every rank calls this with the same arguments; rank 0 alone writes, and all get the same result.
    Raises InputError NOTHING_FOUND, NON_FINITE; StoreError MISSING where ranks do not see the same checkpoint.
    """
    began = time.monotonic()
    device = pick(settings.device)
    distributed.join(device)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // distributed.local_world()))
    try:
        training = _Training(volumes, patients, config, settings, folder, seconds, progress, models, began, device)
        ended_by = training.learn_until_done()
        result = training.finish(ended_by) if training.writes else None
        return distributed.told(result)
    finally:
        torch.set_num_threads(before)


class _Training:
    """The state of one run: `learn_until_done`, then `finish`."""

    def __init__(
        self,
        volumes: Mapping[str, Any],
        patients: Mapping[str, str],
        config: ModelConfig,
        settings: TrainSettings,
        folder: Path,
        seconds: float,
        report: Progress | None,
        models: Path | None,
        began: float,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.folder, self.report = config, settings, folder, report
        self.models, self.device = models or folder, device
        self.writes = distributed.rank() == 0
        folder.mkdir(parents=True, exist_ok=True)
        self.out = held_out({name: patients.get(name, name) for name in volumes}, settings.holdout, config.seed)
        self.learn = {name: volume for name, volume in volumes.items() if patients.get(name, name) not in self.out}
        self.judge = {name: volume for name, volume in volumes.items() if name not in self.learn} or self.learn
        self.drawing = progress.warm() if self.writes else None
        # Each rank draws patches of its own.
        self.sampler = PatchSampler(self.learn, config, config.seed + distributed.rank(), settings.cache_bytes)
        self.learner = Learner(config, device, settings.compile)
        self.guard = Guard()
        self.early = (
            EarlyStop({name: volumes[name] for name in self.judge}, config, settings.cache_bytes)
            if config.patience and self.out
            else None
        )
        if config.patience and not self.out:
            log.warning("train.patience is ignored: too few patients to hold any out; steps or time end the training")
        samples = config.batch_size * config.accumulate * distributed.world()
        self.budget = Budget(config, seconds, max(1, round(self.sampler.pieces / samples)), began)
        self.key = _key(config, self.learn)
        self.epoch_losses: list[float] = []
        self.step = self.resumed_from = self._resume()
        self.record = progress.Record(folder, self.step) if self.writes else None
        self.looked: float | None = None  # PSNR of the last look, until it is recorded

    def learn_until_done(self) -> str:
        """Steps until steps, time or patience end, and a last look; says which of them ended it."""
        ended_by = self._take_steps()
        if self.step and 2 * self.guard.skipped > self.step:
            raise InputError(
                "NON_FINITE",
                f"{self.guard.skipped} of {self.step} steps were skipped; nothing was learned that is worth keeping",
                hint="look at the log for why; a lower train.learning_rate, or other data",
            )
        if not self.learner.ready:  # ended before the codebooks were due
            self._start_codebooks()
        if self.early is not None:
            self.early.look(self.learner, self.step)
        return ended_by

    def _take_steps(self) -> str:
        stop = threading.Event()
        saved = time.monotonic()
        try:
            for batches in self._batches(stop):
                share = distributed.decided(self.budget.share(self.step), self.device)
                if share >= 1:
                    return "time" if self.budget.by_clock and self.step < self.budget.steps else "steps"
                if self._look_ahead():
                    return "patience"
                output = self._advance(batches, share)
                self.step += 1
                self._tell(output)
                if self.writes and time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        finally:
            stop.set()
        raise AssertionError("batches do not end by themselves")

    def finish(self, ended_by: str) -> TrainResult:
        """The weights to publish in place, the sample measured, the bundle written."""
        assert self.record is not None and self.drawing is not None
        if self.report is not None:
            self.report(
                self.step, self.step, self.budget.elapsed(), {"then": "measured, then its coder's tables fitted"}
            )
        best = self.early.best if self.early else {}
        model = self.learner.finished(best or self.learner.published())
        ahead = (torch.from_numpy(self.sampler.batch(self.step + number)) for number in range(RESERVOIR_BATCHES))
        model.price_corrections(ahead)
        found = sample_fidelity(model, self.judge, time.monotonic() + 0.4 * self.budget.left())
        shapes = self._test_pass(model)
        tables = self._tables(model)
        self.drawing.join(max(0.0, self.budget.left() - 4.0))
        if not self.drawing.is_alive() and self.budget.left() > 3.5:  # the promise goes before the picture
            progress.draw(self.folder / progress.PICTURE, self.record.lines, found)
        self.record.close()
        name = bundle.save(model, self.config, self.models, self._summary(found, ended_by), self.record.files(), tables)
        return TrainResult(
            name,
            self.config.preset,
            self.step,
            round(self.budget.elapsed(), 2),
            found.psnr,
            found.worst_decile,
            found.ssim,
            found.bits_per_voxel,
            found.codebook_use,
            len(self.out),
            self.resumed_from,
            ended_by,
            self.guard.skipped,
            self.guard.rollbacks,
            *shapes,
            self.models / name,
        )

    def _tables(self, model: VQVAE) -> bytes:
        """Of the entropy coder, from the series learned from; repeatable where there is time for all of its steps."""
        now, left = time.monotonic(), max(1.0, 0.6 * self.budget.left())
        found = table_samples(model, self.sampler.sources, self.sampler.mappings, self.config.seed, now + 0.4 * left)
        return fit_tables(model, found.codes, self.config.seed, deadline=now + left, distances=found.distances)

    def _batches(self, stop: threading.Event) -> Iterator[list[Tensor]]:
        """The batches of one step after the other, on the device."""
        each = self.config.accumulate
        coming = on_device(self.sampler.batches(self.step * each, stop), self.device, self.config.dims == 2)
        while True:
            yield [next(coming) for _ in range(each)]

    def _look_ahead(self) -> bool:
        """What is due before a step: keep a good state, start the codebooks, look at held-out patients."""
        if self.guard.keeps(self.step):
            self.guard.good = self.learner.snapshot()
        if self.early is None or not self.early.due(self.step):
            return False
        self.looked = self.early.look(self.learner, self.step)
        return self.early.enough

    def _advance(self, batches: list[Tensor], share: float) -> Output | None:
        """One step, or none where it was not finite; back to a good state where the loss went up and stayed."""
        learner, guard, config = self.learner, self.guard, self.config
        quantize = learner.ready or self.step >= config.quantize_after or (share > 0.3 and self.step >= 10)
        if quantize and not learner.ready:
            self._start_codebooks()
        rate = guard.rate * learning_rate(config, self.step, share)
        output = learner.advance(batches, self.step, rate, quantize, guard.most)
        if guard.spiked(None if output is None else float(output.loss), far=learner.spiked):
            learner.restore(guard.good)
            guard.rolled_back(self.step)
        return output

    def _start_codebooks(self) -> None:
        first = self.step * self.config.accumulate
        batches = (torch.from_numpy(self.sampler.batch(first + ahead)) for ahead in range(RESERVOIR_BATCHES))
        self.learner.start_codebooks([batch.to(self.device) for batch in batches], self.step)
        self.guard.forget()

    def _tell(self, output: Output | None) -> None:
        """The line of this step in the record, where one is due, and the end of an epoch."""
        budget, steps = self.budget, None if self.budget.by_clock else self.budget.steps
        if output is None or not self.writes:
            return
        if budget.epochs:
            self.epoch_losses.append(float(output.loss))
            if self.step % budget.epoch_steps == 0:
                mean = sum(self.epoch_losses) / len(self.epoch_losses)
                self.epoch_losses = []
                if self.report is not None:
                    about = {"epoch": self.step // budget.epoch_steps, "epochs": budget.epochs, "loss": mean}
                    self.report(self.step, steps, budget.elapsed(), about)
        if self.step % LOG_STEPS and self.step > 3:
            return
        counts = self.learner.counts.cpu().numpy()
        ready = counts.any()
        metrics: dict[str, Any] = {
            "loss": float(output.loss),
            "l_rec": float(output.l_rec.detach()),
            "l_quant": float(output.l_quant.detach()),
            "psnr": psnr(float(output.mse.detach()), 2.0),
            "rate": self.learner.optimiser.param_groups[0]["lr"],
            "skipped": self.guard.skipped,
            "rollbacks": self.guard.rollbacks,
            "perplexity": [round(perplexity(level), 1) for level in counts] if ready else [],
            "use": [round(use(level), 4) for level in counts] if ready else [],
            **self.learner.judged,
        }
        if self.looked is not None:
            metrics["held_out_psnr"], self.looked = round(self.looked, 3), None
        assert self.record is not None
        self.record.add(counts, step=self.step, seconds=round(budget.elapsed(), 2), **metrics)
        self.learner.counts.zero_()
        if self.report is not None:
            self.report(self.step, steps, budget.elapsed(), metrics)

    def _save(self) -> None:
        tensors = self.learner.snapshot()
        tensors |= {f"good.{name}": tensor for name, tensor in self.guard.good.items()}
        state: dict[str, Any] = {"guard": self.guard.state(), "epoch_losses": self.epoch_losses}
        if self.early is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.early.best.items()}
            state["early"] = self.early.state()
        checkpoint.write(self.folder, self.key, Checkpoint(tensors, self.step, self.budget.elapsed(), state))

    def _resume(self) -> int:
        """Everything as the checkpoint of this training has it, and its step; 0 where there is none."""
        found = checkpoint.read(self.folder, self.key)
        step = 0 if found is None else found.step
        if not distributed.agreed(step == distributed.decided(step, self.device), self.device):
            raise StoreError("MISSING", "not every rank sees the checkpoint", hint="put the workspace on a shared disk")
        if found is None:
            return 0
        self.learner.restore(found.tensors)
        self.guard.load(found.state["guard"], under("good.", found.tensors))
        if self.early is not None and "early" in found.state:
            self.early.load(found.state["early"], under("best.", found.tensors))
        self.budget.spent = found.seconds
        self.epoch_losses = found.state["epoch_losses"]
        return step

    @torch.inference_mode()
    def _test_pass(self, model: VQVAE) -> tuple[tuple[int, ...], tuple[int, ...]]:
        batch = torch.from_numpy(self.sampler.batch(0)).to(self.device)
        return tuple(batch.shape), tuple(model.decode(model.encode(batch)).shape)

    def _summary(self, found: Fidelity, ended_by: str) -> dict[str, Any]:
        config, learner = self.config, self.learner
        return {
            **data_summary([as_source(volume) for volume in self.learn.values()]),
            "drawn_evenly_over": ", ".join(config.balance) or "series, by voxels",
            "patients_held_out": len(self.out),
            "measured_on": HELD_OUT[self.early is not None]
            if self.out
            else "training patients (too few to hold any out)",
            "measured_series": found.series,
            "measured_slices": found.slices,
            "psnr_db": found.psnr,
            "psnr_db_worst_tenth_of_series": found.worst_decile,
            "ssim": found.ssim,
            "entropy_bits_per_voxel": found.bits_per_voxel,
            "codebook_use": found.codebook_use,
            "steps": self.step,
            "ended_by": ended_by,
            "steps_skipped": self.guard.skipped,
            "rollbacks": self.guard.rollbacks,
            "seconds": round(self.budget.elapsed(), 1),
            "seed": config.seed,
            "torch": torch.__version__,
            "arithmetic": f"{self.device.type} x {distributed.world()}, {'bfloat16' if learner.half else 'float32'}",
        }


def _key(config: ModelConfig, names: Iterable[str]) -> str:
    """What a checkpoint must agree in to be gone on with: the config, the series and the number of ranks."""
    text = json.dumps([config.model_dump(mode="json"), sorted(names), distributed.world()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

"""Training, from top to bottom: patches in, a bundle out, within the seconds that were given."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archive.errors import InputError
from archive.settings import TrainSettings
from model import bundle, checkpoint, progress
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.device import fast_bfloat16, pick
from model.fidelity import Fidelity, sample_fidelity
from model.metrics import perplexity, psnr, use
from model.optimise import optimiser
from model.patches import PatchSampler
from model.source import as_source
from model.vqvae import VQVAE, Output

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None, float, dict[str, Any]], None]
LEAST_PATIENTS = 10  # fewer patients: all of them train, and the figures say so
RESERVOIR_BATCHES = 8  # batches whose latents the codebooks start from
LOG_STEPS = 25
LEAST_STEPS = 20  # taken whatever the clock says
BAD_STEPS = 50  # steps in a row without a finite loss: give up


@dataclass(frozen=True)
class TrainResult:
    """model: id of the bundle written. psnr, ssim, bits_per_voxel (zero-order entropy) and codebook_use are measured
    on patients held out, or on training patients where `held_out_patients` is 0. steps, seconds: over all runs of a
    resumed training. resumed_from: the step this run began at."""

    model: str
    preset: str
    steps: int
    seconds: float
    psnr: float
    ssim: float | None
    bits_per_voxel: float
    codebook_use: float
    held_out_patients: int
    resumed_from: int
    folder: Path = field(repr=False)


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
    training's own: checkpoint, metrics.jsonl and progress.png; a checkpoint of the same config and series there is
    gone on with. models: where the bundle goes (`models/<model id>`); None: the folder. seconds: for all of it,
    starting, measuring and saving included, and what earlier runs of the same training spent. progress: called with
    step, steps (None where time decides), seconds, metrics. Raises InputError NOTHING_FOUND, NON_FINITE.
    """
    began = time.monotonic()
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    try:
        return _Training(volumes, patients, config, settings, folder, seconds, progress, models, began).run()
    finally:
        torch.set_num_threads(before)


def held_out(patients: Mapping[str, str], share: float, seed: int) -> set[str]:
    """The patients kept out of training: by hash, so that a new patient moves no other; none of fewer than ten."""
    everyone = sorted(set(patients.values()))
    if len(everyone) < LEAST_PATIENTS or share <= 0:
        return set()
    ranked = sorted(everyone, key=lambda patient: hashlib.sha256(f"{seed}\0{patient}".encode()).digest())
    return set(ranked[: max(1, round(share * len(everyone)))])


class _Training:
    """The state of one run; `run` tells the story."""

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
    ) -> None:
        self.config, self.settings, self.folder, self.report = config, settings, folder, report
        self.models, self.began, self.seconds = models or folder, began, seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.out = held_out({name: patients.get(name, name) for name in volumes}, settings.holdout, config.seed)
        self.learn = {name: volume for name, volume in volumes.items() if patients.get(name, name) not in self.out}
        self.judge = {name: volume for name, volume in volumes.items() if name not in self.learn} or self.learn
        self.drawing = progress.warm()
        self.device = pick(settings.device)
        self.half = fast_bfloat16(self.device)
        self.sampler = PatchSampler(self.learn, config, config.seed, settings.cache_bytes)
        torch.manual_seed(config.seed)
        self.model = VQVAE(config).to(self.device)
        if config.dims == 2:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimiser = optimiser(self.model, config, self.half)
        self.key = _key(config, self.learn)
        self.step, self.spent = 0, 0.0  # spent: by earlier runs
        self.resumed_from = 0
        found = checkpoint.read(folder, self.key)
        if found is not None:
            checkpoint.restore(found, self.model, self.average, self.optimiser)
            self.step = self.resumed_from = found.step
            self.spent = found.seconds
        self.record = progress.Record(folder, self.step)
        self.counts = np.zeros((config.levels, config.codebook_size), np.int64)
        # Kept back for the last measuring, drawing and saving, which is measured against the clock itself.
        self.reserve = min(0.35 * seconds, 8.0 + 0.02 * seconds)

    def run(self) -> TrainResult:
        """Steps until time or steps end, then measure and save."""
        stop = threading.Event()
        saved = time.monotonic()
        try:
            bad = 0
            for batch in self.sampler.batches(self.step, stop):
                share = self._share()
                if share >= 1:
                    break
                output = self._advance(torch.from_numpy(batch), share)
                bad = bad + 1 if output is None else 0
                if bad > BAD_STEPS:
                    raise InputError("NON_FINITE", "the loss stays not finite; the model cannot learn from this")
                self.step += 1
                if output is not None and (self.step % LOG_STEPS == 0 or self.step <= 3):
                    self._tell(output)
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        finally:
            stop.set()
        return self._finish()

    def elapsed(self) -> float:
        """Seconds spent on this training, earlier runs included."""
        return self.spent + time.monotonic() - self.began

    def _share(self) -> float:
        """How much of the training is done, by steps or by time, whichever is further."""
        by_time = self.elapsed() / max(1e-9, self.seconds - self.reserve)
        if self.step < min(
            LEAST_STEPS, self.config.steps
        ):  # a model without any would be published as if it had learned
            by_time = min(by_time, 0.99)
        return max(self.step / self.config.steps, by_time)

    def _advance(self, batch: Tensor, share: float) -> Output | None:
        """One step of the optimiser; None where the loss was not finite and nothing was learned."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) % 2**63)  # dropout, revived codes: by the step
        quantizer = self.model.quantizer
        quantize = quantizer.ready or self.step >= self.config.quantize_after or (share > 0.3 and self.step >= 10)
        if quantize and not quantizer.ready:
            self._start_codebooks()
        rate = learning_rate(self.config, self.step, share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        batch = batch.to(self.device)
        if self.config.dims == 2:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output: Output = self.model(batch, quantize)
        if not output.finite or not bool(torch.isfinite(output.loss)):
            log.warning("step %d skipped: its loss is not finite", self.step)
            return None
        self.optimiser.zero_grad(set_to_none=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        if quantize:
            for level in range(self.config.levels):
                found = torch.bincount(output.codes[:, level].flatten(), minlength=self.config.codebook_size)
                self.counts[level] += found.cpu().numpy()
        return output

    @torch.no_grad()
    def _start_codebooks(self) -> None:
        """k-means on the latents of several batches."""
        self.model.eval()
        rows = []
        for ahead in range(RESERVOIR_BATCHES):
            batch = torch.from_numpy(self.sampler.batch(self.step + ahead)).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                latents = self.model.encoder(batch)
            rows.append(latents.float().movedim(1, -1).reshape(-1, self.config.code_dim))
        self.model.quantizer.start(torch.cat(rows))

    def _tell(self, output: Output) -> None:
        ready = self.counts.any()
        metrics: dict[str, Any] = {
            "loss": float(output.loss.detach()),
            "l_rec": float(output.l_rec.detach()),
            "l_quant": float(output.l_quant.detach()),
            "psnr": psnr(float(output.mse.detach()), 2.0),
            "perplexity": [round(perplexity(level), 1) for level in self.counts] if ready else [],
            "use": [round(use(level), 4) for level in self.counts] if ready else [],
        }
        self.record.add(step=self.step, seconds=round(self.elapsed(), 2), **metrics)
        self.counts[:] = 0
        if self.report is not None:
            by_steps = self.step / self.config.steps >= self.elapsed() / self.seconds
            self.report(self.step, self.config.steps if by_steps else None, self.elapsed(), metrics)

    def _save(self) -> None:
        tensors = checkpoint.collect(self.model, self.average, self.optimiser)
        checkpoint.write(self.folder, self.key, Checkpoint(tensors, self.step, self.elapsed()))

    def _finish(self) -> TrainResult:
        """Averaged weights in place, the sample measured, the bundle written, the checkpoint gone."""
        if not self.model.quantizer.ready:
            self._start_codebooks()
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)
        self.model = self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        left = self.seconds - self.elapsed()
        found = sample_fidelity(self.model, self.judge, time.monotonic() + 0.4 * left)
        self.drawing.join(max(0.0, self.seconds - self.elapsed() - 4.0))
        if not self.drawing.is_alive() and self.seconds - self.elapsed() > 3.5:  # the promise goes before the picture
            progress.draw(self.folder / progress.PICTURE, self.record.lines, found.sample)
        files = {name: self.folder / name for name in (progress.METRICS, progress.PICTURE)}
        name = bundle.save(self.model, self.config, self.models, self._summary(found), files)
        return TrainResult(
            name,
            self.config.preset,
            self.step,
            round(self.elapsed(), 2),
            found.psnr,
            found.ssim,
            found.bits_per_voxel,
            found.codebook_use,
            len(self.out),
            self.resumed_from,
            self.models / name,
        )

    def _summary(self, found: Fidelity) -> dict[str, Any]:
        sources = [as_source(volume) for volume in self.learn.values()]
        return {
            "training_series": len(sources),
            "training_voxels": int(sum(math.prod(source.shape) for source in sources)),
            "modalities": ", ".join(sorted({str(source.attributes["modality"]) for source in sources})),
            "patients_held_out": len(self.out),
            "measured_on": "patients held out" if self.out else "training patients (too few to hold any out)",
            "measured_series": found.series,
            "measured_slices": found.slices,
            "psnr_db": found.psnr,
            "ssim": found.ssim,
            "entropy_bits_per_voxel": found.bits_per_voxel,
            "codebook_use": found.codebook_use,
            "steps": self.step,
            "seconds": round(self.elapsed(), 1),
            "seed": self.config.seed,
            "torch": torch.__version__,
            "arithmetic": f"{self.device.type}, {'bfloat16' if self.half else 'float32'}",
        }


def learning_rate(config: ModelConfig, step: int, share: float) -> float:
    """Linear warm-up by steps, then a cosine to nothing over the share of the training that is done."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.peak_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _key(config: ModelConfig, names: Iterable[str]) -> str:
    """What a checkpoint must agree in to be gone on with: the config and the series."""
    text = json.dumps([config.model_dump(mode="json"), sorted(names)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

"""Patients held out of training: who they are, and early stopping by a fixed small sample of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.distributed import decided
from model.learner import Learner
from model.metrics import psnr
from model.patches import PatchSampler

log = logging.getLogger(__name__)

SAMPLE_BATCHES = 4
LEAST_PATIENTS = 10  # fewer patients: all of them train, and the figures say so


def held_out(patients: Mapping[str, str], share: float, seed: int) -> set[str]:
    """The patients kept out of training: by hash, so that a new patient moves no other; none of fewer than ten."""
    everyone = sorted(set(patients.values()))
    if len(everyone) < LEAST_PATIENTS or share <= 0:
        return set()
    ranked = sorted(everyone, key=lambda patient: hashlib.sha256(f"{seed}\0{patient}".encode()).digest())
    return set(ranked[: max(1, round(share * len(everyone)))])


class EarlyStop:
    """Looks every `validate_every` steps; after `patience` looks without a better one it is enough.

    volumes: those of patients held out. best: published state of the best look, empty before the first. All ranks look
    at the same patches and rank 0's figure counts.
    """

    def __init__(self, volumes: Mapping[str, Any], config: ModelConfig, cache_bytes: int) -> None:
        self.config = config
        sampler = PatchSampler(volumes, config.model_copy(update={"jitter": 0.0, "balance": ()}), 0, cache_bytes)
        self.batches = [torch.from_numpy(sampler.batch(number)) for number in range(SAMPLE_BATCHES)]
        self.best: dict[str, Tensor] = {}
        self.best_psnr, self.best_step, self.waited = float("-inf"), 0, 0

    @property
    def enough(self) -> bool:
        """Whether patience is at its end."""
        return self.config.patience is not None and self.waited >= self.config.patience

    def due(self, step: int) -> bool:
        """Whether to look before this step."""
        return step > 0 and step % self.config.validate_every == 0

    @torch.no_grad()
    def look(self, learner: Learner, step: int) -> float | None:
        """PSNR of the sample (dB, range 2) through codes and averaged weights; None while there are no codebooks."""
        if not learner.ready:
            return None
        errors = []
        with learner.averaged() as model:
            model.eval()
            for batch in self.batches:
                placed = batch.to(learner.device)
                codes = model.encode(placed, self.config.levels)  # corrections hide what the network does not do
                errors.append(float((model.decode(codes).float() - placed).square().mean()))
        found = decided(psnr(sum(errors) / len(errors), 2.0), learner.device)
        if found > self.best_psnr:
            self.best_psnr, self.best_step, self.waited = found, step, 0
            self.best = learner.published()
        else:
            self.waited += 1
        if self.enough:
            log.info("held-out patients were reconstructed best at step %d: enough", self.best_step)
        return found

    def state(self) -> dict[str, Any]:
        """Numbers for a checkpoint; `best` goes with its tensors."""
        return {"psnr": self.best_psnr if self.best else None, "step": self.best_step, "waited": self.waited}

    def load(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """What `state` gave."""
        self.best, self.best_step, self.waited = best, state["step"], state["waited"]
        self.best_psnr = state["psnr"] if state["psnr"] is not None else float("-inf")

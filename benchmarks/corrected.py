"""Models that were trained, with corrections of a finer or coarser step: a curve of rates for one training."""

from __future__ import annotations

import torch
from held_out import Split

from model.patches import PatchSampler
from model.vqvae import VQVAE

BATCHES = 8  # of patches that prices are learned from, as after a training
SCALES = 3


def corrected(model: VQVAE, step: float, split: Split, scales: int = SCALES) -> VQVAE:
    """The model with corrections of a step (in its range of 2), priced on what it was trained on."""
    config = model.config.model_copy(update={"corrections": scales, "correction_step": step})
    found = VQVAE(config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("corrections.")}
    found.load_state_dict(weights, strict=False)
    sampler = PatchSampler(split.learn, config, config.seed, 2**31)
    found.eval().price_corrections(torch.from_numpy(sampler.batch(number)) for number in range(BATCHES))
    return found

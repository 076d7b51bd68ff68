"""The model card: what a model is, what it learned from, what it reaches, and what it must not be used for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.source import Source
from model.vqvae import VQVAE

WORDS = {  # of the summary, where the key alone would not say what was counted
    "codebook_use": "codebook use: share of codes that occur in the slices measured",
    "entropy_bits_per_voxel": "bits per voxel: zero-order entropy of the codes",
}
INVENTS = {
    "adversarial": "an adversarial loss",
    "attention": "attention in the decoder",
}


def card(name: str, model: VQVAE, config: ModelConfig, summary: Mapping[str, Any]) -> str:
    """The card of a model as Markdown; summary: what to tabulate, in order."""
    z, y, x = config.downsample
    fixed = config.code_levels * (config.codebook_size - 1).bit_length() / (z * y * x)
    facts = "\n".join(f"| {WORDS.get(key, key.replace('_', ' '))} | {_said(value)} |" for key, value in summary.items())
    return f"""# voxbook model {name[:12]}

A VQ-VAE (preset `{config.preset}`, {config.dims}D) that turns medical images into codebook indices and back:
{config.code_levels} level(s) of {config.codebook_size} codes for every cell of {z} x {y} x {x} voxels, {fixed:.3f} bits
per voxel at fixed length.{_corrections(config)}
{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights; {model.encoder_kflop:.1f} thousand operations per voxel
to encode, {model.decoder_kflop:.1f} to decode.

**Intended use**: research: machine learning on the codes, search, preview, cheap second copies.
**Not a medical device, and not for diagnosis**: at these rates (50:1 and more) a decoded image may lack or alter
what a reader would need. The lossless volume tier is what counts.
{_warning(config)}
## Training data and fidelity

| | |
|---|---|
{facts}

Measured as PSNR (peak 4,095 HU for CT after clipping to [-1024, 3071], 255 for 8 bits, else the 0.1 to 99.9 percentile
range) and SSIM (window 7). Use of the codebook grows with what is looked at: `metrics.jsonl` counts the training patches
since its last line, this table the slices measured after training, a certificate one whole series. Every encoded series
carries a certificate of its own; this table only says what to expect.
Images unlike those of the training come out worse. The certificate says so: by its figures, and by `unlike` and
`unlike_distances` (0: as in training, 1: nothing in common), for models that have tables of the entropy coder.

Model id (sha256 of weights and config): `{name}`
"""


def data_summary(sources: Sequence[Source]) -> dict[str, Any]:
    """What a model learned from, as counts and ranges: nothing that points to a patient."""
    modalities = Counter(str(source.attributes["modality"]) for source in sources)
    spacings = np.array([source.geometry.spacing_mm for source in sources])
    low, high = spacings.min(0), spacings.max(0)
    return {
        "training_series": len(sources),
        "training_voxels": int(sum(math.prod(source.shape) for source in sources)),
        "modalities": ", ".join(f"{name} ({count})" for name, count in sorted(modalities.items())),
        "spacing_zyx_mm": " x ".join(_span(a, b) for a, b in zip(low, high, strict=True)),
    }


def _corrections(config: ModelConfig) -> str:
    more = config.code_levels - config.levels
    return (
        f" {more} of the levels are corrections of step {config.correction_step:g}, mostly of nothing." if more else ""
    )


def _warning(config: ModelConfig) -> str:
    on = [words for field, words in INVENTS.items() if getattr(config, field, False)]
    if not on:
        return ""
    return (
        f"\n**This model was trained with {' and '.join(on)}: it can invent structure that was never in the image.** "
        "Such detail looks real and is not.\n"
    )


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if math.isclose(low, high, rel_tol=1e-3) else f"{low:.3g} to {high:.3g}"


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Codes to fit the entropy coder's tables to: the training series, moved, turned and resized.

A few series give few codes, always cut at the same places; the same series a few voxels aside give others. What an
unseen scanner will send is another voxel size and another range, so both are varied as in training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from model.intensity import Mapping
from model.source import Source, channel_slab
from model.unlike import BINS, binned, counted
from model.vqvae import VQVAE

DEPTH = 12  # rows of the code grid in a sample
SIDE = 224  # voxels of a sample's side, before it is resized: many places rather than whole slices
ZOOMS = (1.0, 1.0, 0.5, 0.6, 0.75, 1.3)
STRIDES = (1, 1, 1, 2, 3)  # every so many slices: thicker ones
JITTER = 0.2
MOST, TIMES = 2**20, 10  # codes, and codes for each code that the series themselves have
LEAST = 4096


@dataclass(frozen=True)
class Samples:
    """codes: uint16 [L, z, y, x] each. distances: int64 [L, bins], how far their latents lie from them (model.unlike)."""

    codes: list[np.ndarray]
    distances: np.ndarray


def table_samples(
    model: VQVAE, sources: Sequence[Source], mappings: Sequence[Mapping], seed: int, deadline: float
) -> Samples:
    """Samples of the sources, as many codes as TIMES and MOST allow; at least one.

    deadline: time.monotonic() when to stop. Which samples come depends on the seed alone, how many on the deadline too.
    """
    cell = math.prod(model.config.downsample)
    voxels = np.array([float(source.slices * math.prod(source.shape[-2:])) for source in sources])
    wanted = min(MOST, max(LEAST, TIMES * voxels.sum() / cell))
    found: list[np.ndarray] = []
    distances = np.zeros((model.config.code_levels, BINS), np.int64)
    total = 0
    while not found or (total < wanted and time.monotonic() < deadline):
        rng = np.random.default_rng([seed, 11, len(found)])
        index = int(rng.choice(len(sources), p=voxels**0.3 / (voxels**0.3).sum()))
        codes, bins = _encoded(model, _sample(sources[index], mappings[index], model, rng))
        distances += counted(bins)
        found.append(codes)
        total += codes[0].size
    return Samples(found, distances)


def _sample(source: Source, mapping: Mapping, model: VQVAE, rng: np.random.Generator) -> np.ndarray:
    """float32 [c, z, y, x] in the model's range."""
    depth, rows, columns = source.shape[-3:]
    cell = model.config.downsample
    stride = int(rng.choice(STRIDES))
    length = min(depth, DEPTH * cell[0] * stride)
    first = int(rng.integers(0, depth - length + 1)) + int(rng.integers(0, source.slices // depth)) * depth
    top = int(rng.integers(0, max(0, rows - SIDE) + 1)) + int(rng.integers(0, min(rows, 2 * cell[1]) // 2 + 1))
    left = int(rng.integers(0, max(0, columns - SIDE) + 1)) + int(rng.integers(0, min(columns, 2 * cell[2]) // 2 + 1))
    values = channel_slab(source, first, first + length)[::stride, :, top : top + SIDE, left : left + SIDE]
    if not np.isfinite(values).all():  # as in model/patches.py: encoding refuses such a series, training goes on
        values = np.nan_to_num(values, nan=mapping.low, posinf=mapping.high, neginf=mapping.low)
    sample = np.moveaxis(mapping.to_model(values), 1, 0)
    zoom = float(rng.choice(ZOOMS))
    if zoom != 1 and min(sample.shape[-2:]) * zoom >= 4 * max(cell[1:]):
        resized = F.interpolate(
            torch.from_numpy(np.ascontiguousarray(np.moveaxis(sample, 0, 1))),
            scale_factor=zoom,
            mode="bilinear",
            antialias=zoom < 1,
        )
        sample = np.moveaxis(resized.numpy(), 1, 0)
    for axis in (1, 2, 3):
        if rng.random() < 0.5:
            sample = np.flip(sample, axis)
    if rng.random() < 0.5:
        sample = np.swapaxes(sample, 2, 3)
    if rng.random() < 0.5:
        sample = np.clip(sample * (1 + rng.uniform(-JITTER, JITTER)), -1, None)
    ends = [(0, 0)] + [(0, -size % d) for size, d in zip(sample.shape[1:], cell, strict=True)]
    return np.pad(sample, ends, mode="edge").astype(np.float32)


@torch.inference_mode()
def _encoded(model: VQVAE, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint16 [L, z, y, x] and the bins of their distances."""
    two = model.config.dims == 2
    batch = torch.from_numpy(np.ascontiguousarray(np.moveaxis(sample, 0, 1) if two else sample[None]))
    found = model.find(batch.to(model.device))
    codes, bins = found.codes.cpu().numpy(), binned(found.squares).cpu().numpy()  # [B, L, (z), y, x]
    if two:
        return np.moveaxis(codes, 0, 1).astype(np.uint16), np.moveaxis(bins, 0, 1)
    return codes[0].astype(np.uint16), bins[0]

"""How unlike its training a series is: how often its codes occur, and how far its latents lie from their codes.

A scanner that the model never saw uses other codes, and its latents lie between the codes rather than at them. Both are
histograms here and in training (kept with the model's tables), compared by the Jensen-Shannon divergence in bits (Lin
1991): 0 for equal shares, 1 for nothing in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archive.integers import STEPS
from archive.tables import Tables
from model.metrics import divergence

BINS = 64  # of a squared distance, by half octaves around 1
_MIDDLE = BINS // 2


@dataclass(frozen=True)
class Unlike:
    """codes, distances: divergence from training, 0 to 1, mean over levels; None where the model does not know."""

    codes: float | None = None
    distances: float | None = None


def binned(squares: Tensor) -> Tensor:
    """Bins uint8 of squared distances, any shape; what is beyond the ends is in the last bin there."""
    logarithms = torch.log2(squares.clamp_min(torch.finfo(torch.float32).tiny))
    return torch.floor(2 * logarithms + _MIDDLE).clamp(0, BINS - 1).to(torch.uint8)


def counted(bins: np.ndarray) -> np.ndarray:
    """Counts int64 [L, BINS] of bins [L, ...]."""
    return np.stack([np.bincount(level.ravel(), minlength=BINS) for level in bins]).astype(np.int64)


def unlike(counts: np.ndarray, distances: np.ndarray | None, known: Tables | None) -> Unlike:
    """Of a series: counts [L, K] of its codes, distances [L, BINS] as counted; known: the tables of its model.

    L may be a prefix of the model's levels.
    """
    if known is None:
        return Unlike()
    codes = _mean(
        [divergence(level, 2.0 ** (prior / STEPS)) for level, prior in zip(counts, known.priors, strict=False)]
    )
    expected = known.distances
    if distances is None or expected is None or expected.shape[1] != distances.shape[1]:
        return Unlike(codes)
    return Unlike(codes, _mean([divergence(*pair) for pair in zip(distances, expected, strict=False)]))


def _mean(parts: list[float]) -> float:
    return sum(parts) / len(parts)

"""The loss: L = alpha * L_rec + (1 - alpha) * L_quant, with L_rec a mix of squared, absolute and structural error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True)
class Loss:
    """total = alpha * l_rec + (1 - alpha) * l_quant; mse is the plain mean squared error. All scalars."""

    total: Tensor
    l_rec: Tensor
    mse: Tensor


def measure(reconstruction: Tensor, x: Tensor, l_quant: Tensor, config: ModelConfig) -> Loss:
    """The article's loss of a batch [B, C, *size], in float32."""
    with torch.autocast(x.device.type, enabled=False):
        difference = reconstruction.float() - x.float()
        mse = difference.square().mean()
        l_rec = config.mse * mse
        if config.l1:
            l_rec = l_rec + config.l1 * difference.abs().mean()
        if config.ssim:
            l_rec = l_rec + config.ssim * (1 - similarity(reconstruction.float(), x.float()))
        return Loss(config.alpha * l_rec + (1 - config.alpha) * l_quant, l_rec, mse)


def similarity(a: Tensor, b: Tensor, data_range: float = 2.0, window: int = 7) -> Tensor:
    """Mean SSIM (Wang 2004) of two batches with a flat window; differentiable, for the loss only."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = _window_mean(a, window), _window_mean(b, window)
    var_a = (_window_mean(a * a, window) - mean_a.square()).clamp_min(0)
    var_b = (_window_mean(b * b, window) - mean_b.square()).clamp_min(0)
    both = _window_mean(a * b, window) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean()


def _window_mean(x: Tensor, window: int) -> Tensor:
    """Mean over all windows of [B, C, *size], by running sums along one axis after the other (pooling is 5x slower)."""
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        wide = min(window, size)
        sums = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.cumsum(axis)], axis)
        x = (sums.narrow(axis, wide, size - wide + 1) - sums.narrow(axis, 0, size - wide + 1)) / wide
    return x

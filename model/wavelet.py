"""The wavelet of JPEG 2000's lossy path (Cohen, Daubechies and Feauveau 1992, 9/7 taps), by lifting, in two dimensions.

Daubechies and Sweldens 1998. Borders are mirrored, so nothing is invented beyond them. Scaled so that it is nearly
orthonormal: a squared error in the coefficients is about as large in the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LIFTS = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_SCALE = 2**0.5 / 1.230174104914001


def analyse(x: Tensor, scales: int) -> Tensor:
    """[B, 4 ** scales, h, w] of pictures [B, 1, h * 2 ** scales, w * 2 ** scales].

    Channel 0 is the coarse picture. Then, coarse scale first, three channels for each place of the cell (rows first):
    what changes along y, along x, along both.
    """
    found: list[Tensor] = []
    for scale in range(1, scales + 1):
        low, high = _split(x)
        coarse, along_y = (_turned(part) for part in _split(_turned(low)))
        along_x, both = (_turned(part) for part in _split(_turned(high)))
        details = torch.cat([along_y, along_x, both], 1)
        folded = F.pixel_unshuffle(details, 2 ** (scales - scale))  # [B, 3 * places, h, w]
        found.insert(0, folded.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2))
        x = coarse
    return torch.cat([x, *found], 1)


def synthesise(coefficients: Tensor, scales: int) -> Tensor:
    """The inverse of `analyse`; fine scales may be left out: [B, 4 ** n, h, w] with n <= scales counts them as zero."""
    x, at = coefficients[:, :1], 1
    for scale in range(scales, 0, -1):
        places = 4 ** (scales - scale)
        folded = coefficients[:, at : at + 3 * places]
        at += 3 * places
        if folded.shape[1]:
            grouped = folded.unflatten(1, (places, 3)).transpose(1, 2).flatten(1, 2)
            along_y, along_x, both = F.pixel_shuffle(grouped, 2 ** (scales - scale)).split(1, 1)
        else:
            along_y = along_x = both = torch.zeros_like(x)
        low = _turned(_merged(_turned(x), _turned(along_y)))
        high = _turned(_merged(_turned(along_x), _turned(both)))
        x = _merged(low, high)
    return x


def reach(scales: int) -> int:
    """Voxels beyond its own cell that a coefficient looks: four taps at every scale."""
    return 4 * (2**scales - 1)


def reach_back(scales: int) -> int:
    """Cells beyond its own whose coefficients a voxel is made of."""
    return -(-reach(scales) // 2**scales)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high halves along the last axis, whose length is even."""
    low, high = x[..., 0::2], x[..., 1::2]
    first, second, third, fourth = _LIFTS
    high = high + first * (low + _after(low))
    low = low + second * (high + _before(high))
    high = high + third * (low + _after(low))
    low = low + fourth * (high + _before(high))
    return low * _SCALE, high / _SCALE


def _merged(low: Tensor, high: Tensor) -> Tensor:
    """The inverse of `_split`."""
    first, second, third, fourth = _LIFTS
    low, high = low / _SCALE, high * _SCALE
    low = low - fourth * (high + _before(high))
    high = high - third * (low + _after(low))
    low = low - second * (high + _before(high))
    high = high - first * (low + _after(low))
    return torch.stack([low, high], -1).flatten(-2)


def _after(x: Tensor) -> Tensor:
    return torch.cat([x[..., 1:], x[..., -1:]], -1)


def _before(x: Tensor) -> Tensor:
    return torch.cat([x[..., :1], x[..., :-1]], -1)


def _turned(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)

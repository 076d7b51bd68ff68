"""Finite scalar quantization: every dimension is rounded to a few steps, so no codebook is learned or can collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.quantize import Quantizer

_EDGE = 1e-3  # how far from its ends tanh keeps the latents


class ScalarQuantizer(Quantizer):
    """Mentzer 2023 (2309.15505): latents are bounded by tanh and rounded to `steps[j]` values in dimension j.

    The code is the number whose digits are the steps, the first dimension changing fastest. Residual levels: each
    splits the cell of the level before evenly into as many steps, so its scale is 1 / steps of the one before.
    """

    def __init__(self, levels: int, steps: tuple[int, ...], level_dropout: float = 0.3) -> None:
        super().__init__(levels, math.prod(steps), len(steps), level_dropout=level_dropout)
        count = torch.tensor(steps, dtype=torch.float32)
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        reach = (count - 1) * (1 - _EDGE) / 2
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / reach), persistent=False)
        # Integers to latents of about -1 to 1.
        self.register_buffer("units", torch.div(count, 2, rounding_mode="floor"), persistent=False)
        digit = torch.tensor([math.prod(steps[:j]) for j in range(len(steps))])
        self.register_buffer("digit", digit, persistent=False)
        digits = torch.arange(self.size)[:, None] // digit % count.long()
        finer = (((digits + 0.5) / count - 0.5) / count ** (level - 1) for level in range(1, levels))
        tables = [table / self.units for table in (digits - self.units, *finer)]
        self.register_buffer("codebooks", torch.stack(tables), persistent=False)
        self.count: Tensor
        self.offset: Tensor
        self.reach: Tensor
        self.shift: Tensor
        self.units: Tensor
        self.digit: Tensor

    @property
    def operations(self) -> int:
        """Floating point operations to find one code: a few per dimension."""
        return 8 * self.dim

    def continuous(self, latents: Tensor) -> Tensor:
        """Latents [B, d, *grid] within the bounds of the steps."""
        moved = latents.movedim(1, -1)
        return ((torch.tanh(moved + self.shift) * self.reach - self.offset) / self.units).movedim(-1, 1)

    @torch.no_grad()
    def search(self, rows: Tensor, level: int) -> Tensor:
        """The code of float32 [N, d] bounded rows or what is left of them, int64 [N]; ties go to the lower step."""
        integers = rows * self.units
        if level == 0:
            steps = torch.ceil(integers - 0.5) + self.units
        else:
            steps = torch.ceil((integers * self.count ** (level - 1) + 0.5) * self.count) - 1
        steps = torch.minimum(steps.clamp_min(0), self.count - 1)
        return (steps.long() * self.digit).sum(1)

    def distance(self, left: Tensor, chosen: Tensor) -> Tensor:
        """Zeros: nothing draws latents to codes, rounding is all there is."""
        return torch.zeros_like(left)

    def _start(self, rows: Tensor, generator: torch.Generator | None, rounds: int) -> None:
        self.counts.fill_(1.0)  # there is nothing to start

"""Codebooks that learn: by moving averages, with a conscience and revived codes, or by gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.distributed import reduced
from model.kmeans import nearest
from model.quantize import RARE, Quantizer, on_sphere

# Shares of the mean use: a code below the first is dead, and gets the second when it is revived. More, or it is dead again
# before it has learned anything. Codes that have a price should differ in use, and those that learn by gradient take longer
# than that: of these only what is hardly used is revived.
EVEN, SPARING = (0.25, 1.0), (0.03, 0.5)
CONSCIENCE = 0.05  # of the mean distance, for each bit that a code is more common than the mean: while it learns


class ResidualQuantizer(Quantizer):
    """Codebooks that are moving averages of the latents that chose them (van den Oord 2017, 1711.00937, A.1)."""

    sums: Tensor

    def __init__(
        self, levels: int, size: int, dim: int, decay: float = 0.98, epsilon: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(levels, size, dim, **options)
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("codebooks", torch.zeros(levels, size, dim))
        self.register_buffer("sums", torch.zeros(levels, size, dim))

    @torch.no_grad()
    def _start(self, rows: Tensor, generator: torch.Generator | None, rounds: int) -> None:
        super()._start(rows, generator, rounds)
        self.sums.copy_(self.codebooks * self.counts[..., None])

    @torch.no_grad()
    def _choose(self, rows: Tensor, level: int) -> Tensor:
        """The nearest code, common ones a little farther away than they are: rare codes get something to learn from.

        A conscience (DeSieno 1988, IEEE ICNN), in training alone and where codes have no price: a code's price falls with
        its use, this one rises.
        """
        if self.rate_penalty or not self.revive:
            return self.search(rows, level)
        often = self.counts[level] + RARE * self.counts[level].mean()
        farther = CONSCIENCE * self.spread[level] * torch.log2(often / often.mean())
        index = nearest(rows, self.table(level), farther)[0]
        self._measure(level, rows - self.table(level)[index])
        return index

    @torch.no_grad()
    def _learn(self, level: int, rows: Tensor, index: Tensor) -> None:
        sums = reduced(torch.zeros_like(self.sums[level]).index_add_(0, index, rows))
        used = self._used(index, rows.dtype)
        self.counts[level].lerp_(used, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        # The mean of what is really used: that of the counts rises with every code that is revived, without end.
        mean = used.mean()
        least, given = SPARING if self.rate_penalty else EVEN
        dead = self.counts[level] < least * mean
        if self.revive and dead.any():  # the sums too, else the old average overwrites the code at once (espnet #6284)
            chosen = self._candidates(rows, int(dead.sum()))
            self.counts[level][dead] = given * mean
            self.sums[level][dead] = chosen * given * mean
        n = self.counts[level].sum()
        smooth = (self.counts[level] + self.epsilon) / (n + self.size * self.epsilon) * n  # Laplace
        means = self.sums[level] / smooth[:, None]
        self.codebooks[level].copy_(on_sphere(means) if self.normalize and level == 0 else means)


class LearnedQuantizer(Quantizer):
    """Codebooks learned by gradient: L_quant draws latents to codes and codes to latents, as the article writes it.

    Plain VQ-VAE (van den Oord 2017, 1711.00937, equation 3, with beta = 1: the article's one distance).
    """

    def __init__(self, levels: int, size: int, dim: int, decay: float = 0.98, **options: Any) -> None:
        super().__init__(levels, size, dim, **options)
        self.decay = decay
        self.codebooks = nn.Parameter(torch.zeros(levels, size, dim))

    def table(self, level: int) -> Tensor:
        """The codes of a level, float32 [K, d], with a gradient to them."""
        # A copy where autograd keeps it: reviving a code of another level changes the parameter in place.
        codes = self.codebooks[level].clone() if self.normalize and level == 0 else self.codebooks[level]
        return on_sphere(codes) if self.normalize and level == 0 else codes

    def distance(self, left: Tensor, chosen: Tensor) -> Tensor:
        """Squared distance [N, d] with a gradient to latents and codes alike."""
        return (left - chosen).square()

    @torch.no_grad()
    def _prepare(self, level: int, rows: Tensor) -> None:
        # Before the codes are looked up: autograd does not allow them to change afterwards.
        mean = reduced(rows.new_tensor(float(len(rows)))) / self.size
        least, given = SPARING
        dead = self.counts[level] < least * mean
        if self.revive and dead.any():
            self.codebooks[level][dead] = self._candidates(rows, int(dead.sum()))
            self.counts[level][dead] = given * mean

    @torch.no_grad()
    def _learn(self, level: int, rows: Tensor, index: Tensor) -> None:
        self.counts[level].lerp_(self._used(index, rows.dtype), 1 - self.decay)

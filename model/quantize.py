"""Residual quantization: what all quantizers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archive.errors import InputError
from model.distributed import agreed, rank, reduced, shared
from model.gradient import rotated, straight_through
from model.kmeans import kmeans, nearest

RARE = 0.01  # of the mean use: what a code that never occurs is priced by


@dataclass(frozen=True)
class Quantized:
    """What the quantizer gives.

    latents: float32 [B, d, *grid], sum of the chosen codes, with a gradient to the encoder.
    codes: int64 [B, L, *grid], coarse level first.
    loss: scalar, mean squared distance of the latents to their codes over the levels.
    finite: whether all latents were (on every rank); where not, codes are 0 and nothing was learned.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    finite: bool


@dataclass(frozen=True)
class Found:
    """What a search gives. codes: int64 [B, L, *grid], coarse level first; squares: float32 of that shape, squared
    distance of what the levels before left over to its code."""

    codes: Tensor
    squares: Tensor


class Quantizer(nn.Module):
    """`levels` codebooks of `size` codes in `dim` dimensions; each codes what the ones before left over.

    Lee 2022 (2203.01941). Buffers or parameters: centre [d], codebooks [L, K, d], counts [L, K] (how often each code
    is used; all zero until started), spread [L] (mean squared distance of latents to their codes while they learn). What a
    kind of quantizer adds is in `table`, `search`, `distance`, `_choose`, `_learn`.
    level_dropout: share of the samples that lose some of their last levels in training, so that every prefix of
    levels decodes. rotation: the gradient of 2410.06424 instead of straight through. normalize: latents and the first
    level's codes lie on a sphere (one unit per dimension in the mean), so that nearest means most alike in direction
    (Yu 2021, 2110.04627). revive: codes that hardly occur go to where latents are (Lancucki 2020, 2005.08520).
    from_data: start by k-means on latents; else by random numbers, as the article does, which collapses.
    rate_penalty: codes are chosen by distance + rate_penalty * (mean distance) * (bits of the code), so that common
    codes, which cost an entropy coder little, are preferred where they do (entropy-constrained vector quantization:
    Chou, Lookabaugh and Gray 1989, IEEE Trans. ASSP 37(1)); 0 chooses by distance alone.
    """

    centre: Tensor
    codebooks: Tensor
    counts: Tensor
    spread: Tensor
    prices: Tensor

    def __init__(
        self,
        levels: int,
        size: int,
        dim: int,
        *,
        rate_penalty: float = 0.0,
        level_dropout: float = 0.3,
        rotation: bool = False,
        normalize: bool = False,
        revive: bool = True,
        from_data: bool = True,
    ) -> None:
        super().__init__()
        self.levels, self.size, self.dim = levels, size, dim
        self.level_dropout, self.normalize, self.revive, self.from_data = level_dropout, normalize, revive, from_data
        self.through: Callable[[Tensor, Tensor], Tensor] = rotated if rotation else straight_through
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("counts", torch.zeros(levels, size))
        self.register_buffer("spread", torch.zeros(levels))
        self.rate_penalty = rate_penalty
        if rate_penalty:
            self.register_buffer("prices", torch.zeros(levels, size))

    @property
    def ready(self) -> bool:
        """Whether the codebooks have been started."""
        return bool(self.counts.any())

    @property
    def operations(self) -> int:
        """Floating point operations to find one code."""
        return 2 * self.size * self.dim

    def start(self, latents: Tensor, generator: torch.Generator | None = None, rounds: int = 8) -> None:
        """Start every codebook from float [N, d] latents: rank 0's, on every rank. Raises InputError NON_FINITE."""
        if rank() == 0:
            self._start(latents.detach().float(), generator, rounds)
        for tensor in self.state_dict().values():
            shared(tensor)

    def table(self, level: int) -> Tensor:
        """The codes of a level, float32 [K, d]."""
        return self.codebooks[level]

    @torch.no_grad()
    def search(self, rows: Tensor, level: int) -> Tensor:
        """Nearest code of float32 [N, d] centred rows, its price included, int64 [N]; ties go to the lowest index."""
        return nearest(rows, self.table(level), self.prices[level] if self.rate_penalty else None)[0]

    def continuous(self, latents: Tensor) -> Tensor:
        """Latents [B, d, *grid] as the decoder would see them if codes were infinitely fine."""
        return on_sphere(latents) if self.normalize else latents

    def distance(self, left: Tensor, chosen: Tensor) -> Tensor:
        """What L_quant is the mean of, [N, d]: here with a gradient to the latents alone (commitment)."""
        return (left - chosen.detach()).square()

    def encode(self, latents: Tensor, levels: int | None = None) -> Tensor:
        """Codes int64 [B, L, *grid] of latents [B, d, *grid]; as `find`."""
        return self.find(latents, levels).codes

    def find(self, latents: Tensor, levels: int | None = None) -> Found:
        """Codes of latents [B, d, *grid] and how far those lie from them, searched in float32 whatever autocast says.

        Raises InputError NON_FINITE.
        """
        with torch.autocast(latents.device.type, enabled=False):
            grid, rows = self._rows(latents)
            if not torch.isfinite(rows).all():
                raise InputError("NON_FINITE", "the encoder gave values that are not finite")
            rows = rows - self.centre
            codes, squares = [], []
            for level in range(levels or self.levels):
                index = self.search(rows, level)
                rows = rows - self.table(level)[index]
                codes.append(index)
                squares.append(rows.square().sum(1))
            parts = (torch.stack(part, 1).unflatten(0, grid).movedim(-1, 1) for part in (codes, squares))
            return Found(*parts)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents float32 [B, d, *grid] of codes [B, L, *grid]; L may be a prefix of the levels."""
        total = self.centre.expand(*codes.shape[:1], *codes.shape[2:], self.dim).clone()
        for level in range(codes.shape[1]):
            total += self.table(level)[codes[:, level]]
        return total.movedim(-1, 1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize, and in training mode learn the codebooks from the batch.

        latents: [B, d, *grid] of any float type; all of it happens in float32, autocast or not.
        """
        with torch.autocast(latents.device.type, enabled=False):
            grid, rows = self._rows(latents)
            finite = bool(torch.isfinite(rows).all())
            if self.training:  # all ranks learn, or none: what they sum must fit together
                finite = agreed(finite, rows.device)
            learning = self.training and finite
            if not finite:  # one such batch would spoil every codebook for good
                rows = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
            centred = rows - self.centre
            keep = self._keep(grid, centred)
            left, total, loss, found = centred, torch.zeros_like(centred), centred.new_zeros(()), []
            for level in range(self.levels):
                if learning:
                    self._prepare(level, left.detach())
                index = self._choose(left.detach(), level) if learning else self.search(left.detach(), level)
                chosen = self.table(level)[index]
                if learning:
                    if self.rate_penalty:
                        self._price(level, left.detach() - chosen.detach())
                    self._learn(level, left.detach(), index)
                mask = 1.0 if keep is None else (keep > level).float()[:, None]
                loss = loss + (self.distance(left, chosen) * mask).mean() / self.levels
                chosen = chosen.detach()
                total = total + chosen * mask
                left = left - chosen
                found.append(index)
            through = self.through(centred, total) + self.centre
            codes = torch.stack(found, 1).unflatten(0, grid).movedim(-1, 1)
            return Quantized(through.unflatten(0, grid).movedim(-1, 1), codes, loss, finite)

    def _rows(self, latents: Tensor) -> tuple[tuple[int, ...], Tensor]:
        moved = self.continuous(latents.float()).movedim(1, -1)
        return tuple(moved.shape[:-1]), moved.reshape(-1, self.dim)

    def _keep(self, grid: tuple[int, ...], rows: Tensor) -> Tensor | None:
        """Quantizer dropout (Zeghidour 2021, 2107.03312): how many levels each sample keeps; None: all."""
        if not self.training or self.levels == 1 or self.level_dropout == 0:
            return None
        batch = grid[0]
        full = torch.rand(batch, device=rows.device) < 1 - self.level_dropout
        some = torch.randint(1, self.levels + 1, (batch,), device=rows.device)
        keep = torch.where(full, self.levels, some)
        return keep.repeat_interleave(len(rows) // batch)

    @torch.no_grad()
    def _start(self, rows: Tensor, generator: torch.Generator | None, rounds: int) -> None:
        rows = rows[torch.isfinite(rows).all(1)]
        if len(rows) == 0:
            raise InputError("NON_FINITE", "no finite latents to start the codebooks from")
        if self.normalize:
            rows = on_sphere(rows)
        elif self.from_data:
            self.centre.copy_(rows.mean(0))
        rows = rows - self.centre
        for level in range(self.levels):
            if self.from_data:
                centres, index = kmeans(rows, self.size, rounds, generator)
            else:
                centres = torch.randn(self.size, self.dim, generator=generator).to(rows)
                index = nearest(rows, centres)[0]
            if self.normalize and level == 0:
                centres = on_sphere(centres)
                index = nearest(rows, centres)[0]
            counts = torch.bincount(index, minlength=self.size).float()
            # Scaled to what one batch would give, so that the first batches can move them.
            scale = 4.0 * self.size / max(1.0, float(counts.sum()))
            self.codebooks[level].copy_(centres)
            self.counts[level].copy_((counts * scale).clamp_min(0.1))
            rows = rows - centres[index]

    def _prepare(self, level: int, rows: Tensor) -> None:
        """What is due before the search of a level in training."""

    def _choose(self, rows: Tensor, level: int) -> Tensor:
        """The codes int64 [N] that centred rows [N, d] learn from in training."""
        return self.search(rows, level)

    def _learn(self, level: int, rows: Tensor, index: Tensor) -> None:
        """Take in which codes the centred rows [N, d] of a level chose."""

    @torch.no_grad()
    def _price(self, level: int, rest: Tensor) -> None:
        """What each code of a level costs, in squared distance; rest: what the codes leave over, [N, d]."""
        self._measure(level, rest)
        often = self.counts[level] + RARE * self.counts[level].mean()
        self.prices[level] = -self.rate_penalty * self.spread[level] * torch.log2(often / often.sum())

    def _measure(self, level: int, rest: Tensor) -> None:
        """Take in how far the codes of a level lie from what chose them; rest: what they leave over, [N, d]."""
        total = reduced(torch.stack([rest.square().sum(), rest.new_tensor(float(len(rest)))]))
        mean = total[0] / total[1]
        self.spread[level] = torch.where(self.spread[level] > 0, torch.lerp(self.spread[level], mean, 0.02), mean)

    def _used(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """How often each code was chosen, on all ranks together."""
        return reduced(torch.bincount(index, minlength=self.size).to(dtype))

    def _candidates(self, rows: Tensor, count: int) -> Tensor:
        """Rows for dead codes to start again from: rank 0's, on every rank."""
        return shared(rows[torch.randint(len(rows), (count,), device=rows.device)])


def on_sphere(rows: Tensor) -> Tensor:
    """Vectors along axis 1 scaled to the length sqrt(d): one unit per dimension in the mean."""
    return F.normalize(rows, dim=1) * rows.shape[1] ** 0.5

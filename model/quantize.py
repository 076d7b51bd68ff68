"""Residual vector quantization with moving-average codebooks that start by k-means and revive dead codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archive.errors import InputError

SEARCH_ROWS = 65_536  # rows per distance matrix, so that its memory is bounded


@dataclass(frozen=True)
class Quantized:
    """What the quantizer gives.

    latents: float32 [B, d, *grid], straight-through sum of the chosen codes.
    codes: int64 [B, L, *grid], coarse level first.
    loss: scalar, mean squared distance of the latents to their codes over the levels (commitment).
    finite: whether all latents were; where not, codes are 0 and nothing was learned.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    finite: bool


class ResidualQuantizer(nn.Module):
    """`levels` codebooks of `size` codes in `dim` dimensions; each codes what the ones before left over.

    van den Oord 2017 (1711.00937, appendix A.1: moving averages), Lee 2022 (2203.01941: residual levels),
    Lancucki 2020 (2005.08520: data-dependent start and restart).
    """

    def __init__(self, levels: int, size: int, dim: int, decay: float = 0.98, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.levels, self.size, self.dim, self.decay, self.epsilon = levels, size, dim, decay, epsilon
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("codebooks", torch.zeros(levels, size, dim))
        self.register_buffer("counts", torch.zeros(levels, size))
        self.register_buffer("sums", torch.zeros(levels, size, dim))
        self.centre: Tensor
        self.codebooks: Tensor
        self.counts: Tensor
        self.sums: Tensor

    @property
    def ready(self) -> bool:
        """Whether the codebooks have been started."""
        return bool(self.counts.any())

    def start(self, latents: Tensor, generator: torch.Generator | None = None, rounds: int = 8) -> None:
        """Start every codebook by k-means on float [N, d] latents; moving averages start from the clusters' sums."""
        rows = latents.detach().float()
        rows = rows[torch.isfinite(rows).all(1)]
        if len(rows) == 0:
            raise InputError("NON_FINITE", "no finite latents to start the codebooks from")
        self.centre.copy_(rows.mean(0))
        rows = rows - self.centre
        for level in range(self.levels):
            centres, index = kmeans(rows, self.size, rounds, generator)
            counts = torch.bincount(index, minlength=self.size).float()
            # Scaled to what one batch would give, so that the first batches can move them.
            scale = 4.0 * self.size / max(1.0, float(counts.sum()))
            self.codebooks[level].copy_(centres)
            self.counts[level].copy_((counts * scale).clamp_min(0.1))
            self.sums[level].copy_(centres * self.counts[level, :, None])
            rows = rows - centres[index]

    def search(self, rows: Tensor, level: int) -> Tensor:
        """Nearest code of float32 [N, d] centred rows, int64 [N]; ties go to the lowest index."""
        return nearest(rows, self.codebooks[level])[0]

    def encode(self, latents: Tensor, levels: int | None = None) -> Tensor:
        """Codes int64 [B, L, *grid] of latents [B, d, *grid]; raises InputError NON_FINITE."""
        grid, rows = self._rows(latents)
        if not torch.isfinite(rows).all():
            raise InputError("NON_FINITE", "the encoder gave values that are not finite")
        rows = rows - self.centre
        found = []
        for level in range(levels or self.levels):
            index = self.search(rows, level)
            found.append(index)
            rows = rows - self.codebooks[level][index]
        return torch.stack(found, 1).unflatten(0, grid).movedim(-1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents float32 [B, d, *grid] of codes [B, L, *grid]; L may be a prefix of the levels."""
        total = self.centre.expand(*codes.shape[:1], *codes.shape[2:], self.dim).clone()
        for level in range(codes.shape[1]):
            total += self.codebooks[level][codes[:, level]]
        return total.movedim(-1, 1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize, and in training mode learn the codebooks from the batch.

        latents: [B, d, *grid] of any float type; all of it happens in float32, autocast or not.
        """
        with torch.autocast(latents.device.type, enabled=False):
            grid, rows = self._rows(latents)
            finite = bool(torch.isfinite(rows).all())
            if not finite:  # one such batch would spoil every codebook for good
                rows = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
            centred = rows - self.centre
            keep = self._keep(grid, centred)
            left, total, loss, found = centred, torch.zeros_like(centred), centred.new_zeros(()), []
            for level in range(self.levels):
                index = self.search(left.detach(), level)
                chosen = self.codebooks[level][index]
                if self.training and finite:
                    self._learn(level, left.detach(), index)
                mask = 1.0 if keep is None else (keep > level).float()[:, None]
                loss = loss + ((left - chosen.detach()).square() * mask).mean() / self.levels
                total = total + chosen * mask
                left = left - chosen.detach()
                found.append(index)
            through = centred + (total - centred).detach() + self.centre
            codes = torch.stack(found, 1).unflatten(0, grid).movedim(-1, 1)
            return Quantized(through.unflatten(0, grid).movedim(-1, 1), codes, loss, finite)

    def _rows(self, latents: Tensor) -> tuple[tuple[int, ...], Tensor]:
        moved = latents.float().movedim(1, -1)
        return tuple(moved.shape[:-1]), moved.reshape(-1, self.dim)

    def _keep(self, grid: tuple[int, ...], rows: Tensor) -> Tensor | None:
        """Quantizer dropout: how many levels each sample keeps, so that every prefix of levels decodes."""
        if not self.training or self.levels == 1:
            return None
        batch = grid[0]
        full = torch.rand(batch, device=rows.device) < 0.7
        some = torch.randint(1, self.levels + 1, (batch,), device=rows.device)
        keep = torch.where(full, self.levels, some)
        return keep.repeat_interleave(len(rows) // batch)

    @torch.no_grad()
    def _learn(self, level: int, rows: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=self.size).to(rows.dtype)
        sums = torch.zeros_like(self.sums[level]).index_add_(0, index, rows)
        self.counts[level].lerp_(counts, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        dead = self.counts[level] < 0.03 * self.counts[level].mean()
        if dead.any():  # the sums too, else the old average overwrites the revived code at once (espnet #6284)
            chosen = rows[torch.randint(len(rows), (int(dead.sum()),), device=rows.device)]
            revived = 0.5 * self.counts[level].mean()
            self.counts[level][dead] = revived
            self.sums[level][dead] = chosen * revived
        n = self.counts[level].sum()
        smooth = (self.counts[level] + self.epsilon) / (n + self.size * self.epsilon) * n  # Laplace
        self.codebooks[level].copy_(self.sums[level] / smooth[:, None])


def kmeans(rows: Tensor, size: int, rounds: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a k-means++ like start; float32 [size, d] centres and int64 [N] assignments.

    The start draws rows in chunks with probability by squared distance to the centres so far (k-means|| of Bahmani
    2012, 1203.6402), which is fast and close to k-means++. Fewer rows than `size`: rows repeat with a little noise.
    """
    n = len(rows)
    if n < size:
        pick = torch.randint(n, (size,), generator=generator, device="cpu").to(rows.device)
        noise = torch.randn(size, rows.shape[1], generator=generator).to(rows) * (1e-3 * rows.std() + 1e-6)
        centres = rows[pick] + noise
    else:
        first = torch.randint(n, (1,), generator=generator, device="cpu").to(rows.device)
        centres = rows[first]
        chunk = max(1, size // 16)
        while len(centres) < size:
            distance = nearest(rows, centres)[1].clamp_min(1e-9)
            take = min(chunk, size - len(centres))
            picked = torch.multinomial(distance.cpu(), take, replacement=False, generator=generator).to(rows.device)
            centres = torch.cat([centres, rows[picked]])
    index = nearest(rows, centres)[0]
    for _ in range(rounds):
        counts = torch.bincount(index, minlength=size).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, index, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1.0), centres)
        index = nearest(rows, centres)[0]
    return centres, index


def nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index (the lowest among equals) and squared distance of the nearest centre of each row of float32 [N, d].

    The half squared norms ride along as one more dimension: one matrix product and no pass over the distances.
    """
    wide = torch.cat([centres, -0.5 * centres.square().sum(1, keepdim=True)], 1).T.contiguous()
    indices, values = [], []
    for part in rows.split(SEARCH_ROWS):
        value, index = torch.mm(torch.cat([part, part.new_ones(len(part), 1)], 1), wide).max(1)
        indices.append(index)
        values.append(part.square().sum(1) - 2 * value)
    return torch.cat(indices), torch.cat(values)

"""Nearest centres, and k-means from a spread-out start: how a codebook is searched and started."""

from __future__ import annotations

import torch
from torch import Tensor

SEARCH_ROWS = 65_536  # rows per distance matrix, so that its memory is bounded


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


def nearest(rows: Tensor, centres: Tensor, price: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Index (the lowest among equals) and squared distance of the nearest centre of each row of float32 [N, d].

    The half squared norms ride along as one more dimension: one matrix product and no pass over the distances.
    price: float32 [K], added to the squared distances, for free in the same way.
    """
    offset = centres.square().sum(1) if price is None else centres.square().sum(1) + price
    wide = torch.cat([centres, -0.5 * offset[:, None]], 1).T.contiguous()
    indices, values = [], []
    for part in rows.split(SEARCH_ROWS):
        value, index = torch.mm(torch.cat([part, part.new_ones(len(part), 1)], 1), wide).max(1)
        indices.append(index)
        values.append(part.square().sum(1) - 2 * value)
    return torch.cat(indices), torch.cat(values)

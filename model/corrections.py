"""Corrections: levels after the codebooks that code what the decoder leaves over, sparsely, in wavelets.

A codebook has one code for a cell whether it is air or an edge of bone, so levels that code the whole cell again buy
little (docs/log.md). What the decoder leaves over lies at edges; in wavelets it is a few large coefficients among
zeros, and a zero costs an entropy coder next to nothing. So bits go where the error is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from model import wavelet
from model.config import correction_stops
from model.kmeans import nearest
from model.quantize import Found

EVEN_STEPS = 3  # magnitudes that are a whole number of steps; beyond them each is GROWTH times the one before
GROWTH = 1.5
DEAREST = 9.0  # bits: what no code costs more than, however rare in training; an unseen scanner has other rare ones
UNSEEN = 0.3  # occurrences that a code is counted with before any
LATTICE = 10.0  # rows that a code's place in the lattice counts as, beside those that chose it
ROUNDS = 4  # of choosing codes by prices and pricing them by the choice
NO_CODE = 1e9  # price of a place in the codebook that stands for nothing
ROWS = 2**18  # of each scale that prices are learned from


class Corrections(nn.Module):
    """Codes of a picture's coefficients, a level per place of the cell: scalars for the coarse picture, triples (what
    changes along y, along x, along both) for the rest.

    Codes are chosen as in `Quantizer`: by squared distance + penalty * step ** 2 * (bits of the code), 0 being the code
    of nothing. Codebooks, one for each scale, start as a lattice, which knows of no patient, and move to the means of what
    chooses their codes. scales: how many of the cell's are coded, coarse first; the coarse picture is always. size: codes
    of a level at most. step: of the lattice, in the model's range, of nearly orthonormal coefficients.
    """

    prices: Tensor
    points: Tensor

    def __init__(self, cell_scales: int, scales: int, size: int, step: float, penalty: float) -> None:
        super().__init__()
        self.cell_scales, self.scales, self.size, self.step, self.penalty = cell_scales, scales, size, step, penalty
        self.register_buffer("points", torch.stack([_scalars(size), *[_triples(size)] * scales]) * step)
        bits = torch.zeros(1 + scales, size)  # of the coarse picture's codes, and of each scale's
        bits[0, 2 * ((size - 1) // 2) + 1 :] = bits[1:, _side(size) ** 3 :] = NO_CODE
        self.register_buffer("prices", bits * penalty * step**2)

    @property
    def stops(self) -> tuple[int, ...]:
        """Numbers of levels after which a scale is complete: the coarse picture, then each scale."""
        return correction_stops(self.scales)

    @property
    def levels(self) -> int:
        """Of all the scales."""
        return self.stops[-1]

    @property
    def reach(self) -> int:
        """Voxels of what is left over that a code looks at beyond its own cell."""
        return wavelet.reach(self.cell_scales)

    @property
    def reach_back(self) -> int:
        """Cells beyond its own that a corrected voxel depends on."""
        return wavelet.reach_back(self.cell_scales)

    def table(self, level: int) -> Tensor:
        """What the codes of a level stand for, float32 [K, 3], scalars in the first column."""
        return self.points[self._kind(level)]

    def find(self, rest: Tensor, levels: int | None = None) -> Found:
        """Codes int64 [B, L, h, w] of what is left over, [B, 1, *size] float32, and what they leave over of each place."""
        codes, squares = [], []
        for level, rows in enumerate(self._rows(rest, levels or self.levels)):
            index, square = self._search(rows, self._kind(level))
            codes.append(index)
            squares.append(square)
        return Found(torch.stack(codes, 1), torch.stack(squares, 1))

    def picture(self, codes: Tensor) -> Tensor:
        """float32 [B, 1, *size] to add to the decoder's, of codes [B, L, h, w]; L may be a prefix."""
        batch, count, *grid = codes.shape
        whole = next(stop for stop in self.stops if stop >= count)
        found = torch.zeros(batch, 3 * whole - 2, *grid, device=codes.device)
        for level in range(count):
            values = self.table(level)[codes[:, level]].movedim(-1, 1)
            place = slice(0, 1) if level == 0 else slice(3 * level - 2, 3 * level + 1)
            found[:, place] = values[:, : place.stop - place.start]
        return wavelet.synthesise(found, self.cell_scales)

    @torch.no_grad()
    def learn(self, rests: Iterable[Tensor]) -> None:
        """Codes and their prices from what is left over of training patches, the places of a scale together."""
        pools: list[list[Tensor]] = [[] for _ in range(1 + self.scales)]
        for rest in rests:
            for level, rows in enumerate(self._rows(rest, self.levels)):
                pools[self._kind(level)].append(rows.flatten(0, 2))
        for kind, pool in enumerate(pools):
            rows = torch.cat(pool)
            rows = rows[:: -(-len(rows) // ROWS)]
            there = self.prices[kind] < NO_CODE * self.penalty * self.step**2
            lattice = self.points[kind].clone()
            for number in range(ROUNDS):
                codes, _ = self._search(rows, kind)
                counts = torch.bincount(codes, minlength=self.size).float()
                bits = -torch.log2((counts + UNSEEN) / (counts[there] + UNSEEN).sum()).clamp_max(DEAREST)
                if number:  # the first choice is without prices
                    sums = torch.zeros_like(lattice).index_add_(0, codes, rows)
                    self.points[kind] = (sums + LATTICE * lattice) / (counts + LATTICE)[:, None]
                    self.points[kind, 0] = 0
                self.prices[kind] = torch.where(there, bits * self.penalty * self.step**2, self.prices[kind])

    def _rows(self, rest: Tensor, levels: int) -> Iterator[Tensor]:
        """Coefficients of each level, float32 [B, h, w, 3]."""
        found = wavelet.analyse(rest, self.cell_scales).movedim(1, -1)
        yield torch.cat([found[..., :1], found.new_zeros(*found.shape[:-1], 2)], -1)
        for level in range(1, levels):
            yield found[..., 3 * level - 2 : 3 * level + 1]

    def _kind(self, level: int) -> int:
        """0: the coarse picture; 1 and more: which scale."""
        return next(kind for kind, stop in enumerate(self.stops) if level < stop)

    @torch.no_grad()
    def _search(self, rows: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        """Codes int64 and squared distances float32 [...] of [..., 3]."""
        flat = rows.reshape(-1, 3)
        codes = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        squares = flat.square().sum(1)
        # Of a scale, what is nearer to nothing than to anything else gets the code of nothing, which is the cheapest: no
        # search. The coarse picture is one scalar of the cell, and often of something.
        large = ((flat.abs() > 0.5 * self.step).any(1) | (kind == 0)).nonzero()[:, 0]
        points = self.points[kind]
        codes[large] = nearest(flat[large], points, self.prices[kind])[0]
        squares[large] = (flat[large] - points[codes[large]]).square().sum(1)
        return codes.view(rows.shape[:-1]), squares.view(rows.shape[:-1])


def _side(size: int) -> int:
    """Steps per dimension of triples: the largest odd number whose cube is at most `size`."""
    side = round(size ** (1 / 3)) + 1
    while side**3 > size or side % 2 == 0:
        side -= 1
    return side


def _triples(size: int) -> Tensor:
    """[size, 3] in steps, small ones first; zeros where there are fewer."""
    half = _side(size) // 2
    magnitudes = [float(number) for number in range(1, min(half, EVEN_STEPS) + 1)]
    magnitudes += [EVEN_STEPS * GROWTH**number for number in range(1, half - EVEN_STEPS + 1)]
    values = torch.tensor([-value for value in reversed(magnitudes)] + [0.0, *magnitudes])
    points = torch.cartesian_prod(values, values, values)
    points = points[torch.argsort(points.square().sum(1), stable=True)]
    return torch.cat([points, torch.zeros(size - len(points), 3)])


def _scalars(size: int) -> Tensor:
    """[size, 3] in steps: 0, -1, 1, -2, 2 … in the first column."""
    half = (size - 1) // 2
    values = torch.arange(-half, half + 1).float()
    values = values[torch.argsort(values.abs(), stable=True)]
    found = torch.zeros(size, 3)
    found[: len(values), 0] = values
    return found

"""Corrections: levels after the codebooks that code what the decoder leaves over, sparsely, in wavelets.

A codebook has one code for a cell whether it is air or an edge of bone, so levels that code the whole cell again buy
little (docs/log.md). What the decoder leaves over lies at edges; in wavelets it is a few large coefficients among
zeros, and a zero costs an entropy coder next to nothing. So bits go where the error is.
"""

from __future__ import annotations

import itertools
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
# Of each scale that prices are learned from, at most; and of those that are more than nothing at once, which limits the
# time that a model of little training takes.
ROWS, SEARCHED = 2**18, 2**15
# Rows searched together, always as many: a matrix product of other sizes rounds otherwise, and codes would depend on
# what shares their batch.
TOGETHER = {"cpu": 1024, "cuda": 16384}


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
        with torch.autocast(rest.device.type, enabled=False):
            rows = self._rows(rest.float(), levels or self.levels)
            scales = itertools.groupby(enumerate(rows), key=lambda level: self._kind(level[0]))
            found = [self._search(torch.stack([row for _, row in same], 1), kind) for kind, same in scales]
        return Found(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))

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
            something = int((rows.abs().amax(1) > self._nothing(kind)).sum())
            rows = rows[:: max(1, -(-something // SEARCHED))]
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
        """Codes int64 and squared distances float32 [...] of [..., 3]; of each row by itself, whatever is beside it."""
        flat = rows.reshape(-1, 3)
        codes = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        squares = flat.square().sum(1)
        large = (flat.abs().amax(1) > self._nothing(kind)).nonzero()[:, 0]
        if len(large):
            size, points = TOGETHER[flat.device.type], self.points[kind]
            blocks = nn.functional.pad(flat[large], (0, 0, 0, -len(large) % size)).split(size)
            found = torch.cat([nearest(block, points, self.prices[kind])[0] for block in blocks])[: len(large)]
            codes[large] = found
            squares[large] = (flat[large] - points[found]).square().sum(1)
        return codes.view(rows.shape[:-1]), squares.view(rows.shape[:-1])

    def _nothing(self, kind: int) -> Tensor:
        """What every coefficient of a row must be within for the code of nothing to cost least, so that none is searched.

        A code p costs less than nothing where 2 x.p > |p|^2 + its price - the price of nothing, and x.p is at most
        max|x| * (|p_1| + |p_2| + |p_3|).
        """
        points, prices = self.points[kind], self.prices[kind] - self.prices[kind, 0]
        sums = points.abs().sum(1)
        return ((points.square().sum(1) + prices) / (2 * sums))[sums > 0].min()


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

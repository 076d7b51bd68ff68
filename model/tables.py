"""Tables of the entropy coder, fitted to a trained model: how likely a code is beside the codes around it.

The network of archive.predictor is trained with the rounding that it will have (Jacob 2018, 1712.05877: weights and
activations are rounded on the way forward, gradients pass straight through), so that the whole numbers that are kept
are the ones that were trained.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archive import tables
from archive.contexts import NEIGHBOURS, PASSES, Slab
from archive.folds import planes as planes_of
from archive.folds import refined, spans
from archive.integers import STEPS
from archive.predictor import HEAD_BITS, INNER_BITS, ONE, Network
from model.metrics import entropy
from model.vqvae import VQVAE

VECTOR = 8  # dimensions of a code as its neighbours see it
HIDDEN = 64
BATCH = 2048
STEPS_MOST, STEPS_LEAST, CODES_A_STEP = 2000, 40, 400
STEPS_FEWEST = 10  # whatever the clock says
PATIENCE = 2  # a scanner that is unlike the training shows at once; measured 2 to 32 on unseen CT: 41, 40, 39, 38, 36 %
RATE = 4e-3
FORGET = 0.06  # share of samples that see no slice before: the first slice of a slab
CODES_MOST = 2**21
_HEAD = 8.0  # whole weights per 1.0 of a head


@dataclass(frozen=True)
class _Samples:
    """codes int64 [n]; around: per pass int32 [n, neighbours]; coarser int64 [n] or None; all per pass."""

    codes: list[Tensor]
    around: list[Tensor]
    coarser: list[Tensor] | None


def fit(
    model: VQVAE,
    codes: list[np.ndarray],
    seed: int = 0,
    *,
    steps: int | None = None,
    deadline: float | None = None,
    distances: np.ndarray | None = None,
) -> bytes:
    """Bytes of the tables file for a model, from codes uint16 [L, z, y, x] of what it was trained on.

    steps: none: they follow from the number of codes, so equal codes give equal tables (for equal threads). deadline:
    time.monotonic() when to be done: then the clock decides. distances: of the latents of those codes (model.unlike),
    kept beside. The caller's random state is left as it was.
    """
    ends = time.monotonic() if deadline is None else deadline
    began, levels, folds = time.monotonic(), model.config.code_levels, model.config.folds
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        networks, priors = [], []
        size = model.config.codebook_size
        planes = [planes_of(part, folds) for part in codes]
        often = [np.sum([np.bincount(part[number].reshape(-1), minlength=size) for part in planes], axis=0)
                 for number in range(len(folds))]  # fmt: skip
        bits = np.array([1 + entropy(counts) * counts.sum() for counts in often])
        for number, (level, fold, _) in enumerate(spans(levels, folds)):
            counts = often[number]
            prior = np.floor(STEPS * np.log2((counts + 0.5) / (counts.sum() + 0.5 * size))).astype(np.int32)
            priors += [prior] * (fold * fold)
            vectors = model.table(level).detach().float().cpu().numpy()
            samples = _samples(planes, number, size, np.random.default_rng(seed))
            share = bits[: number + 1].sum() / bits.sum()  # of the time, as of what there is to save
            last = math.inf if deadline is None else began + (ends - began) * share
            networks.append(_fit(samples, vectors, prior, number > 0, steps, last))
    return tables.to_bytes(np.stack(priors), tuple(networks), distances, folds)


def _samples(planes: list[list[np.ndarray]], which: int, size: int, rng: np.random.Generator) -> _Samples:
    total = sum(part[which].size for part in planes)
    share = min(1.0, CODES_MOST / total)
    found: list[list[list[np.ndarray]]] = [[[], [], []] for _ in PASSES]
    for part in planes:
        depth, rows, columns = part[which].shape
        slab = Slab((depth, rows, columns), size)
        slab.inside[:] = part[which]
        below = Slab((depth, rows, columns), 0)
        if which:
            below.inside[:] = refined(part[which - 1], slab.shape)
        for z in range(depth):
            for number in range(len(PASSES)):
                places = slab.places(z, number)
                if share < 1:
                    places = places[rng.random(len(places)) < share]
                found[number][0].append(slab.get(places))
                found[number][1].append(slab.around(places, number))
                found[number][2].append(below.get(places))
    parts = [
        [torch.from_numpy(np.concatenate(kind)).to(torch.int32 if index == 1 else torch.int64)
         for index, kind in enumerate(one)] for one in found
    ]  # fmt: skip
    return _Samples([one[0] for one in parts], [one[1] for one in parts], [one[2] for one in parts] if which else None)


def _fit(
    samples: _Samples, vectors: np.ndarray, prior: np.ndarray, coarser: bool, steps: int | None, deadline: float
) -> Network:
    began = time.monotonic()
    learner = _Learner(vectors, prior, coarser)
    total = sum(map(len, samples.codes))
    steps = steps or max(STEPS_LEAST, min(STEPS_MOST, total // CODES_A_STEP))
    optimizer = torch.optim.AdamW(learner.parameters(), RATE, weight_decay=1e-3)
    passes = [number for number, part in enumerate(samples.codes) if len(part)]
    for step in range(steps):
        by_time = (time.monotonic() - began) / max(1e-9, deadline - began)
        # Steps decide alone while they fit, as in model/budget.py: a training that is repeated gives the same tables.
        share = max(step / steps, by_time) if by_time > 0.5 else step / steps
        if share >= 1 and step >= STEPS_FEWEST:
            break
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 20) * max(0.02, 1 - share)
        loss = torch.zeros(())
        for number in passes:
            pick = torch.randint(len(samples.codes[number]), (BATCH // len(passes),))
            around = samples.around[number][pick].long()
            before = torch.tensor([z < 0 for z, _, _ in NEIGHBOURS[number]])
            unknown = (torch.rand(len(pick), 1) < FORGET) & before
            around = torch.where(unknown, len(vectors), around)
            below = samples.coarser[number][pick] if samples.coarser else None
            loss = loss + learner(around, number, below, samples.codes[number][pick]) / len(passes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return learner.network()


class _Learner(nn.Module):
    """The network with real weights, rounded where they are used."""

    place: Tensor
    there: Tensor

    def __init__(self, codes: np.ndarray, prior: np.ndarray, coarser: bool) -> None:
        super().__init__()
        size = len(codes)
        groups = 2 ** math.ceil(math.log2(size) / 2)
        members = math.ceil(size / groups)
        place = _places(codes, groups, members)
        self.register_buffer("place", torch.from_numpy(place).long())
        seen = _flattened(codes)
        self.vectors = nn.Parameter(torch.cat([seen, torch.zeros(1, VECTOR)]))
        self.coarser = nn.Parameter(0.5 * torch.randn(size if coarser else 0, VECTOR))
        widths = [(len(around) + coarser) * VECTOR for around in NEIGHBOURS]
        self.inner = nn.ParameterList([nn.Parameter(torch.randn(width, HIDDEN) / width**0.5) for width in widths])
        self.inner_bias = nn.Parameter(torch.full((len(widths), HIDDEN), 0.2))
        self.second = nn.Parameter(torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5)
        self.second_bias = nn.Parameter(torch.full((HIDDEN,), 0.2))
        self.group = nn.Parameter(torch.randn(HIDDEN, groups) / HIDDEN**0.5)
        self.member = nn.Parameter(torch.randn(groups, HIDDEN, members) / HIDDEN**0.5)
        bits = np.full(groups * members, -1e3, np.float32)
        bits[place] = prior / STEPS
        table = torch.from_numpy(bits.reshape(groups, members))
        self.group_bias = nn.Parameter(torch.logsumexp(table * math.log(2), 1) / math.log(2))
        self.member_bias = nn.Parameter(table)
        self.register_buffer("there", table > -1e3)

    def forward(self, around: Tensor, number: int, below: Tensor | None, codes: Tensor) -> Tensor:
        """Mean bits of codes int64 [n] given their neighbours' int64 [n, neighbours]."""
        found = F.embedding(around, _whole(self.vectors, ONE)).flatten(1)
        if below is not None:
            found = torch.cat([found, F.embedding(below, _whole(self.coarser, ONE))], 1)
        first = _active(found @ _whole(self.inner[number], 2**INNER_BITS) + self.inner_bias[number])
        second = _active(first @ _whole(self.second, 2**INNER_BITS) + self.second_bias)
        scale = ONE * _HEAD / 2**HEAD_BITS
        group, member = self.place[codes] // self.member.shape[2], self.place[codes] % self.member.shape[2]
        groups = second @ _whole(self.group, _HEAD) * scale + self.group_bias
        heads = _whole(self.member, _HEAD)[group]
        members = torch.bmm(second[:, None], heads)[:, 0] * scale + self.member_bias[group]
        members = members.masked_fill(~self.there[group], -1e4)
        nats = F.cross_entropy(groups * math.log(2), group) + F.cross_entropy(members * math.log(2), member)
        return nats / math.log(2)

    @torch.no_grad()
    def network(self) -> Network:
        """The whole numbers."""
        inner = ONE * 2.0**INNER_BITS

        def whole(value: Tensor, unit: float) -> np.ndarray:
            return torch.round((value * unit).clamp(-ONE, ONE)).numpy()

        def bias(value: Tensor, unit: float) -> np.ndarray:
            return torch.round((value * unit).clamp(-(2**20), 2**20)).numpy()

        return Network(
            vectors=whole(self.vectors, ONE),
            coarser=whole(self.coarser, ONE),
            inner=tuple(whole(part, 2**INNER_BITS) for part in self.inner),
            inner_bias=bias(self.inner_bias, inner),
            second=whole(self.second, 2**INNER_BITS),
            second_bias=bias(self.second_bias, inner),
            group=whole(self.group, _HEAD),
            group_bias=bias(self.group_bias, 2**HEAD_BITS),
            member=whole(self.member, _HEAD),
            member_bias=bias(torch.where(self.there, self.member_bias, -1e9), 2**HEAD_BITS),
            place=self.place.numpy().astype(np.int32),
            patience=PATIENCE,
        )


def _whole(value: Tensor, unit: float) -> Tensor:
    """Rounded to whole units of at most 8 bits; gradients pass."""
    inside = value.clamp(-ONE / unit, ONE / unit)
    return inside + (torch.round(inside * unit) / unit - inside).detach()


def _active(sums: Tensor) -> Tensor:
    """0 to 1 in steps of 1 / ONE; a little gradient outside, so that no unit dies."""
    inside = sums.clamp(0, 1)
    soft = inside + 0.01 * (sums - inside)
    return soft + (torch.floor(inside * ONE) / ONE - soft).detach()


def _places(codes: np.ndarray, groups: int, members: int) -> np.ndarray:
    """group * members + place of each code, int64 [K]: like codes share a group, by halving along the widest axis."""
    parts = [np.arange(len(codes))]
    while len(parts) < groups:
        halves = []
        for part in parts:
            if len(part):
                centred = codes[part] - codes[part].mean(0)
                axis = np.linalg.svd(centred, full_matrices=False)[2][0]
                part = part[np.argsort(centred @ axis, kind="stable")]
            halves += [part[: (len(part) + 1) // 2], part[(len(part) + 1) // 2 :]]
        parts = halves
    place = np.empty(len(codes), np.int64)
    for number, part in enumerate(parts):
        place[part] = number * members + np.arange(len(part))
    return place


def _flattened(codes: np.ndarray) -> Tensor:
    """Codes in their VECTOR widest directions, scaled into -1 to 1; float32 [K, VECTOR]."""
    centred = codes - codes.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:VECTOR]
    seen = np.zeros((len(codes), VECTOR), np.float32)
    seen[:, : len(axes)] = centred @ axes.T
    return torch.from_numpy(seen / max(1e-12, 2.5 * seen.std())).clamp(-1, 1)

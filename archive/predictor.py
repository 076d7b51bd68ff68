"""A small integer network that says how likely each code is, from the codes around it.

A code is predicted in two steps, its group and its place in the group, so that no step looks at all codes. Weights
are whole numbers of at most 8 bits and every sum stays below 2 ** 24, so float32 holds each of them exactly: whatever
the order of a sum, whatever the processor, thread count or library, the result is the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archive.integers import FULL, STEPS, frequencies, logarithm

ONE = 127  # 1.0 of an activation
INNER_BITS = 6  # fraction bits of the inner layers' weights
HEAD_BITS = 10  # what is shifted off a head's sum gives log2 in bits; INNER + log2(STEPS) fewer give 1 / STEPS
_SHIFT = 2.0 ** -(HEAD_BITS - STEPS.bit_length() + 1)
_INNER = np.float32(2.0**-INNER_BITS)
NEVER = -(2**20)  # score of a place in a group that no code has
LARGEST = 2**24  # what float32 holds exactly
FEW = 512  # codes of a pass below which looking for alike ones costs more than it saves


@dataclass(frozen=True)
class Network:
    """Weights of one level; all float32 arrays of whole numbers.

    vectors: [K + 1 (+ coarser K + 1), e] -127..127, one per code and one for "not there". inner: per pass
    [neighbours * e, h]; inner_bias [passes, h]; second [h, h], second_bias [h]; group [h, G], group_bias [G];
    member [G, h, M], member_bias [G, M]. place: int32 [K], group * M + member of each code. patience: what the
    counts of a series weigh against the network: larger is slower.
    """

    vectors: np.ndarray
    coarser: np.ndarray
    inner: tuple[np.ndarray, ...]
    inner_bias: np.ndarray
    second: np.ndarray
    second_bias: np.ndarray
    group: np.ndarray
    group_bias: np.ndarray
    member: np.ndarray
    member_bias: np.ndarray
    place: np.ndarray
    patience: int

    def __post_init__(self) -> None:
        fan_in = max(len(part) for part in self.inner)
        bound = [
            ONE * max(float(np.abs(part).sum(0).max()) for part in self.inner) + float(np.abs(self.inner_bias).max()),
            ONE * float(np.abs(self.second).sum(0).max()) + float(np.abs(self.second_bias).max()),
            ONE * float(np.abs(self.group).sum(0).max()) + float(np.abs(self.group_bias).max()),
            ONE * float(np.abs(self.member).sum(1).max()) + float(np.abs(self.member_bias).max()),
        ]
        if max(bound) >= LARGEST or fan_in == 0:
            raise ValueError("a layer's sums may exceed what float32 holds exactly")

    @property
    def size(self) -> int:
        """Codes."""
        return len(self.place)


@dataclass(frozen=True)
class Contexts:
    """What is around n codes, each kind once.

    hidden: activations float32 [kinds, h] of whole numbers 0..ONE. which: int64 [n], the kind of each code.
    order: int64 [n], what sorts the codes by kind.
    """

    hidden: np.ndarray
    which: np.ndarray
    order: np.ndarray

    @property
    def alike(self) -> bool:
        """Whether any two codes are of one kind."""
        return len(self.hidden) < len(self.which)


class Predictor:
    """A network and what it has learned of the series so far: scores that follow how often codes really occur."""

    def __init__(self, network: Network) -> None:
        self.network = network
        groups, _, members = network.member.shape
        self._groups, self._members = groups, members
        self.group_score = np.zeros(groups, np.float32)
        self.member_score = np.zeros((groups, members), np.float32)
        self._seen = np.zeros((2, groups), np.int64)
        self._seen_members = np.zeros((2, groups, members), np.int64)
        codes = np.full(groups * members, -1, np.int32)
        codes[network.place] = np.arange(network.size, dtype=np.int32)
        self._codes = codes
        # A power of two more or less in the weights rounds nothing, and saves a pass over the sums.
        self._inner = [part * _INNER for part in network.inner]
        self._inner_bias, self._second = network.inner_bias * _INNER, network.second * _INNER
        self._second_bias = network.second_bias * _INNER
        self._heads = list(network.member)
        self._biases()

    def contexts(self, around: np.ndarray, number: int, coarser: np.ndarray | None) -> Contexts:
        """What the network makes of what is around codes. around: codes [n, neighbours]; coarser: codes [n]."""
        network = self.network
        rows = around if coarser is None else np.concatenate([around, coarser[:, None]], axis=1)
        first, which, order = distinct(rows)
        around = around.take(first, axis=0)
        found = network.vectors.take(around, axis=0, mode="clip").reshape(len(around), -1)
        if coarser is not None:
            found = np.concatenate([found, network.coarser[coarser.take(first)]], axis=1)
        inner = _activate(found @ self._inner[number], self._inner_bias[number])
        return Contexts(_activate(inner @ self._second, self._second_bias), which, order)

    def group(self, contexts: Contexts) -> np.ndarray:
        """Frequencies of the groups, [n, G] as `frequencies` gives them."""
        sums = contexts.hidden @ self.network.group
        sums += self._group_bias
        found = frequencies(sums, _SHIFT)
        if not contexts.alike:
            self._seen[1] += found.sum(axis=0).astype(np.int64)
            return found
        self._seen[1] += (np.bincount(contexts.which).astype(np.float64) @ found).astype(np.int64)
        return found.take(contexts.which, axis=0, mode="clip")

    def member(self, contexts: Contexts, group: np.ndarray) -> np.ndarray:
        """Frequencies of the places in each row's group, [n, M]."""
        # By group, and by context in it: what is asked twice is answered once.
        order = contexts.order.take(np.argsort(group.take(contexts.order).astype(np.uint16), kind="stable"))
        groups, rows = group.take(order), contexts.which.take(order)
        starts = _starts(groups, rows) if contexts.alike else None
        if starts is not None:
            groups, rows = groups[starts], rows[starts]
        ordered = contexts.hidden.take(rows, axis=0, mode="clip")
        ends = np.searchsorted(groups, np.arange(self._groups + 1))
        there = np.flatnonzero(np.diff(ends))
        sums = np.empty((len(groups), self._members), np.float32)
        for each, start, stop in zip(there.tolist(), ends[there].tolist(), ends[there + 1].tolist(), strict=True):
            np.dot(ordered[start:stop], self._heads[each], sums[start:stop])
        sums += self._member_bias.take(groups, axis=0, mode="clip")
        found = frequencies(sums, _SHIFT)
        counted = found if starts is None else found * np.diff(starts, append=len(order))[:, None]
        self._seen_members[1, there] += np.add.reduceat(counted, ends[there], axis=0).astype(np.int64)
        if starts is not None:
            return found.take(_spread(order, starts), axis=0, mode="clip")
        back = np.empty_like(found)
        back[order] = found
        return back

    def codes(self, group: np.ndarray, member: np.ndarray) -> np.ndarray:
        """Codes of groups and places; -1 where no code has that place."""
        return self._codes[group * self._members + member]

    def split(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups and places of codes, int32."""
        places = self.network.place[codes]
        return places // self._members, places % self._members

    def learn(self, group: np.ndarray, member: np.ndarray) -> None:
        """Count what was coded; takes effect at `turn`."""
        self._seen[0] += np.bincount(group, minlength=self._groups)
        found = np.bincount(group * self._members + member, minlength=self._groups * self._members)
        self._seen_members[0] += found.reshape(self._groups, self._members)

    def turn(self) -> None:
        """Between slices: raise the scores of what occurred more often than was predicted, lower the others."""
        for seen, score, patience in (
            (self._seen, self.group_score, 4 * self.network.patience),
            (self._seen_members, self.member_score, self.network.patience),
        ):
            counted = logarithm((seen[0] + patience) << 8)
            expected = logarithm((seen[1] >> (FULL - 8)) + (patience << 8))
            np.clip(score + (counted - expected), -64 * STEPS, 64 * STEPS, out=score)
            seen[:] = 0
        self._biases()

    def _biases(self) -> None:
        """A score, in 1/STEPS bits, counts as much as a bias once that is shifted."""
        self._group_bias = self.network.group_bias + self.group_score / np.float32(_SHIFT)
        self._member_bias = self.network.member_bias + self.member_score / np.float32(_SHIFT)


def _activate(sums: np.ndarray, bias: np.ndarray) -> np.ndarray:
    sums += bias
    np.floor(sums, out=sums)
    return np.clip(sums, 0, ONE, out=sums)  # several times faster than maximum and minimum with a number


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kinds of rows, for in air and in what is padded many are alike.

    rows: whole numbers 0..65536 [n, s]. Returns first [kinds], which [n] and order [n]: rows[first][which] == rows, and
    which[order] rises. Sorted by 16 bits of a sum, which costs a tenth of comparing; like rows between which an unlike
    one of the same 16 bits comes stay two kinds.
    """
    if len(rows) < FEW:
        each = np.arange(len(rows))
        return each, each, each
    packed = _PACKED[:, : rows.shape[1]] @ rows.T.astype(np.float64)  # exact, also the sum
    order = np.argsort((packed[-1].astype(np.int64) >> 8).astype(np.uint16), kind="stable")
    starts = _starts(*packed[:-1].take(order, axis=1))
    return order[starts], _spread(order, starts), order


def _starts(*columns: np.ndarray) -> np.ndarray:
    """Places where one of several [n] differs from the place before; the first too."""
    differs = np.zeros(len(columns[0]), bool)
    differs[0] = True
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(differs)


def _spread(order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which run of `order`, each beginning at one of starts, an element is in; int64 [n]."""
    which = np.empty_like(order)
    which[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    return which


def _packing(most: int) -> np.ndarray:
    """[rows, most]: three codes to a float64, and last a sum in which every place has another weight."""
    place = np.arange(most)
    packed = np.zeros((-(-most // 3) + 1, most))
    packed[place // 3, place] = 2.0 ** (17 * (place % 3))
    packed[-1] = np.random.default_rng(0).integers(2**31, 2**32, most)
    return packed


_PACKED = _packing(18)

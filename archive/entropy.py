"""A slab of codes as bytes: all its levels, the coarse one first, each readable without the ones behind it.

    depth u16, levels u8; per level: mode u8, bytes u32; crc32c of all that; per level: its bytes, crc32c

Levels that are places of one finer grid (archive.folds) are coded as one, in the bytes of the first of them.

The range coder is constriction's (Bamler 2022, 2201.01741). Every model that it is given consists of whole numbers
that add up to 2 ** 24, so that its own arithmetic has nothing to round.
"""

from __future__ import annotations

import itertools
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import constriction
import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from archive import folds
from archive.contexts import PASSES, Slab
from archive.errors import StoreError
from archive.integers import STEPS, frequencies, logarithm
from archive.predictor import Network, Predictor
from archive.tables import Tables

Categorical = constriction.stream.model.Categorical
RangeDecoder, RangeEncoder = constriction.stream.queue.RangeDecoder, constriction.stream.queue.RangeEncoder

# All codes alike; the slab's own histogram; the model's; by neighbours; in the bytes of a level before; by neighbours, a
# part of a pass at a time, where a pass is longer than PART: what bounds memory on planes that are many times finer.
FIXED, OWN, PRIOR, CONTEXT, WITHIN, PARTS = range(6)
PART = 2**16
SMALLEST = 64  # codes of a slice from which on contexts are worth their time
_HEAD, _LEVEL, _CRC = struct.Struct("<HB"), struct.Struct("<BL"), struct.Struct("<L")
_QUARTER = STEPS // 4  # what a histogram's logarithms are rounded to
_NEVER = -(2.0**20)
_FAMILY = Categorical(lazy=True)


@dataclass(frozen=True)
class Head:
    """depth: slices; modes, sizes: of each level; size: bytes of the head itself."""

    depth: int
    modes: tuple[int, ...]
    sizes: tuple[int, ...]
    size: int

    def end(self, levels: int) -> int:
        """Bytes to read for the first so many levels."""
        return self.size + sum(size + _CRC.size for size in self.sizes[:levels])

    def spans(self, levels: int) -> Iterator[tuple[int, int]]:
        """(first level, fold) of what is coded as one, as far as the first so many levels need it. Raises StoreError
        DAMAGED."""
        level = 0
        while level < levels:
            inside = itertools.takewhile(lambda mode: mode == WITHIN, self.modes[level + 1 :])
            count = 1 + sum(1 for _ in inside)
            fold = math.isqrt(count)
            if fold * fold != count or self.modes[level] == WITHIN:
                raise StoreError("DAMAGED", "a chunk of codes of another shape")
            yield level, fold
            level += count


def encode(codes: np.ndarray, codebook_size: int, tables: Tables | None = None) -> bytes:
    """Bytes of codes uint16 [L, z, y, x], each below codebook_size; each level by the shortest of the modes."""
    levels, depth, rows, columns = codes.shape
    found: list[tuple[int, bytes]] = []
    coarser = None
    for level, fold, number in folds.spans(levels, tables.folds if tables is not None else ()):
        network = tables.networks[number] if tables is not None and number is not None else None
        if rows * columns < SMALLEST:
            network = None
        part = codes[level : level + fold * fold]
        priors = tables.priors[level : level + fold * fold] if tables is not None else [None] * len(part)
        plane = folds.folded(part)
        together = [_shortest(plane, coarser, codebook_size, priors[0], network), *[(WITHIN, b"")] * (len(part) - 1)]
        if len(part) > 1 and sum(map(_ideal, part)) / 8 < len(together[0][1]):  # places may differ more than neighbours
            apart = [_shortest(one, None, codebook_size, prior, None) for one, prior in zip(part, priors, strict=True)]
            together = min(together, apart, key=lambda way: sum(len(data) for _, data in way))
        found += together
        coarser = plane
    head = _HEAD.pack(depth, levels) + b"".join(_LEVEL.pack(mode, len(data)) for mode, data in found)
    return head + _crc(head) + b"".join(data + _crc(data) for _, data in found)


def head_size(levels: int) -> int:
    """Bytes of a head."""
    return _HEAD.size + _LEVEL.size * levels + _CRC.size


def head(data: bytes) -> Head:
    """What the first bytes say. Raises StoreError DAMAGED."""
    try:
        depth, levels = _HEAD.unpack_from(data)
        rows = [_LEVEL.unpack_from(data, _HEAD.size + _LEVEL.size * level) for level in range(levels)]
        size = _HEAD.size + _LEVEL.size * levels + _CRC.size
        if data[size - _CRC.size : size] != _crc(data[: size - _CRC.size]):
            raise StoreError("DAMAGED", "a chunk of codes has another checksum")
    except struct.error:
        raise StoreError("DAMAGED", "a chunk of codes is cut off") from None
    return Head(depth, tuple(mode for mode, _ in rows), tuple(length for _, length in rows), size)


def decode(
    data: bytes,
    grid: tuple[int, int],
    codebook_size: int,
    tables: Tables | None = None,
    levels: int | None = None,
    stop: int | None = None,
) -> np.ndarray:
    """Codes uint16 [levels, stop, y, x] of what `encode` made of a slab with that grid (y, x).

    levels, stop: only the first levels, the first slices; data may end behind what they need (Head.end).
    Raises StoreError DAMAGED; NO_TABLES where a level needs tables and there are none.
    """
    about = head(data)
    count, depth = levels or len(about.sizes), min(stop or about.depth, about.depth)
    found = np.empty((count, depth, *grid), np.uint16)
    plan = list(folds.spans(len(about.sizes), tables.folds if tables is not None else ()))
    for level, fold in about.spans(count):
        start = about.end(level)
        part = data[start : start + about.sizes[level]]
        if len(part) != about.sizes[level] or data[start + len(part) : about.end(level + 1)] != _crc(part):
            raise StoreError("DAMAGED", "a level of a chunk has another checksum")
        mode = about.modes[level]
        if mode in (PRIOR, CONTEXT, PARTS) and tables is None:
            raise StoreError("NO_TABLES")
        rows, columns = grid[0] * fold, grid[1] * fold
        try:
            if mode in (CONTEXT, PARTS) and tables is not None:
                number = next((number for first, wide, number in plan if (first, wide) == (level, fold)), None)
                if number is None:
                    raise StoreError("DAMAGED", "a chunk of codes of another shape")
                before = plan[number - 1][0] if number else level
                coarser = folds.folded(found[before:level]) if number else None
                together = PART if mode == PARTS else sys.maxsize
                plane = _by_context(part, (depth, rows, columns), coarser, tables.networks[number], together)
            else:
                prior = tables.priors[level] if tables is not None else None
                codes = _by_table(part, mode, about.depth * rows * columns, codebook_size, prior)
                plane = codes.reshape(about.depth, rows, columns)[:depth]
        # What numpy, Zstd and constriction make of bytes that fit their checksum and are no codes all the same.
        except (ValueError, IndexError, RuntimeError, AssertionError, struct.error) as error:
            raise StoreError("DAMAGED", f"codes of a chunk do not decode ({type(error).__name__})") from None
        found[level : level + fold * fold] = folds.unfolded(plane, fold)[: count - level]
    return found


def _shortest(
    codes: np.ndarray, coarser: np.ndarray | None, size: int, prior: np.ndarray | None, network: Network | None
) -> tuple[int, bytes]:
    flat = codes.reshape(-1).astype(np.int32)
    counts = np.bincount(flat, minlength=size)
    bits = len(flat) * np.log2(size)
    made: list[tuple[int, bytes]] = []
    if network is not None:
        longest = -(-codes.shape[1] // 2) * -(-codes.shape[2] // 2)  # of the passes
        mode, together = (PARTS, PART) if longest > PART else (CONTEXT, sys.maxsize)
        made.append((mode, _context(codes, coarser, network, together)))
    if _ideal(flat) / 8 < min([len(data) for _, data in made] + [bits / 8]):
        histogram = np.where(counts, 1 + logarithm(np.maximum(counts, 1)) // _QUARTER, 0).astype(np.uint8)
        packed = Zstd(level=9).encode(histogram)
        made.append((OWN, _CRC.pack(len(packed)) + packed + _coded(flat, _of(histogram))))
    if prior is not None and network is None:
        made.append((PRIOR, _coded(flat, prior.astype(np.float64))))
    if min([len(data) for _, data in made], default=bits) > bits / 8:
        made.append((FIXED, _coded(flat, np.zeros(size))))
    return min(made, key=lambda item: len(item[1]))


def _ideal(codes: np.ndarray) -> float:
    """Bits of codes by their own histogram, without it."""
    counts = np.bincount(codes.reshape(-1))
    share = counts[counts > 0] / codes.size
    return float(-codes.size * (share * np.log2(share)).sum())


def _by_table(data: bytes, mode: int, count: int, size: int, prior: np.ndarray | None) -> np.ndarray:
    if mode == OWN:
        (length,) = _CRC.unpack_from(data)
        histogram = np.frombuffer(Zstd().decode(data[_CRC.size : _CRC.size + length]), np.uint8)
        scores, data = _of(histogram), data[_CRC.size + length :]
    elif mode == PRIOR and prior is not None:
        scores = prior.astype(np.float64)
    elif mode == FIXED:
        scores = np.zeros(size)
    else:
        raise StoreError("SCHEMA", "codes of a newer coder", hint="use the voxbook that wrote them")
    model = Categorical(frequencies(scores[None])[0], perfect=False)
    return RangeDecoder(_words(data)).decode(model, count)


def _coded(flat: np.ndarray, scores: np.ndarray) -> bytes:
    coder = RangeEncoder()
    coder.encode(flat, Categorical(frequencies(scores[None])[0], perfect=False))
    return _bytes(coder)


def _of(histogram: np.ndarray) -> np.ndarray:
    return np.where(histogram, _QUARTER * histogram.astype(np.float64), _NEVER)


def _context(codes: np.ndarray, coarser: np.ndarray | None, network: Network, together: int = sys.maxsize) -> bytes:
    slab, below = _slabs(codes.shape, coarser, network)
    slab.inside[:] = codes
    predictor, coder = Predictor(network), RangeEncoder()
    for z in range(len(codes)):
        for number, places in _parts(slab, z, together):
            around = predictor.contexts(slab.around(places, number), number, below.get(places) if below else None)
            group, member = predictor.split(slab.get(places))
            coder.encode(group, _FAMILY, predictor.group(around))
            coder.encode(member, _FAMILY, predictor.member(around, group))
            predictor.learn(group, member)
        predictor.turn()
    return _bytes(coder)


def _by_context(
    data: bytes, shape: tuple[int, int, int], coarser: np.ndarray | None, network: Network, together: int = sys.maxsize
) -> np.ndarray:
    slab, below = _slabs(shape, coarser, network)
    predictor, coder = Predictor(network), RangeDecoder(_words(data))
    for z in range(shape[0]):
        for number, places in _parts(slab, z, together):
            around = predictor.contexts(slab.around(places, number), number, below.get(places) if below else None)
            group = coder.decode(_FAMILY, predictor.group(around))
            member = coder.decode(_FAMILY, predictor.member(around, group))
            predictor.learn(group, member)
            slab.put(places, predictor.codes(group, member))
        predictor.turn()
    if slab.inside.size and int(slab.inside.min()) < 0:
        raise StoreError("DAMAGED", "stored codes hold a value outside the codebook")
    return slab.inside


def _parts(slab: Slab, z: int, together: int) -> Iterator[tuple[int, np.ndarray]]:
    """The passes of a slice, each with its places, at most so many at once."""
    for number in range(len(PASSES)):
        places = slab.places(z, number)
        for at in range(0, len(places), together):
            yield number, places[at : at + together]


def _slabs(shape: tuple[int, ...], coarser: np.ndarray | None, network: Network) -> tuple[Slab, Slab | None]:
    slab = Slab((shape[0], shape[1], shape[2]), network.size)
    if coarser is None:
        return slab, None
    below = Slab(slab.shape, 0)
    below.inside[:] = folds.refined(coarser, slab.shape)
    return slab, below


def _bytes(coder: Any) -> bytes:
    return coder.get_compressed().astype("<u4").tobytes()


def _words(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _crc(data: bytes) -> bytes:
    return _CRC.pack(google_crc32c.value(data))

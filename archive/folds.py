"""Levels that are places of one finer grid, seen as that grid while they are coded.

A level of corrections (model.corrections) has the codes of one place of each cell. The levels of all f x f places
together are a picture of codes f times as fine, in which a code has its true neighbours; so they are coded as one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np


def spans(levels: int, folds: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
    """(first level, fold, number of the fold) of what is coded as one, of so many levels.

    folds: 1 for a level by itself, f for f * f levels. Levels that do not complete a fold, or are beyond all of them, come
    one by one, with None.
    """
    first = 0
    for number, fold in enumerate(folds):
        if first + fold * fold > levels:
            break
        yield first, fold, number
        first += fold * fold
    for level in range(first, levels):
        yield level, 1, None


def folded(levels: np.ndarray) -> np.ndarray:
    """[z, y * f, x * f] of levels [f * f, z, y, x], rows of a cell first."""
    count, depth, rows, columns = levels.shape
    fold = math.isqrt(count)
    cells = levels.reshape(fold, fold, depth, rows, columns).transpose(2, 3, 0, 4, 1)
    return cells.reshape(depth, rows * fold, columns * fold)


def unfolded(plane: np.ndarray, fold: int) -> np.ndarray:
    """The inverse of `folded`."""
    depth, rows, columns = plane.shape
    cells = plane.reshape(depth, rows // fold, fold, columns // fold, fold).transpose(2, 4, 0, 1, 3)
    return cells.reshape(fold * fold, depth, rows // fold, columns // fold)


def planes(levels: np.ndarray, folds: Sequence[int]) -> list[np.ndarray]:
    """[z, y * f, x * f] of every complete fold of levels [L, z, y, x]."""
    found = ((first, fold) for first, fold, number in spans(len(levels), folds) if number is not None)
    return [folded(levels[first : first + fold * fold]) for first, fold in found]


def refined(plane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A coarser plane [z, y, x] repeated to a finer one's shape: of each code the one that it lies in."""
    by = [fine // coarse for fine, coarse in itertools.islice(zip(shape, plane.shape, strict=True), 1, 3)]
    return plane if by == [1, 1] else plane.repeat(by[0], axis=1).repeat(by[1], axis=2)

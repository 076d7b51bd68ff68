"""Powers and logarithms of two in whole numbers, the same on every machine.

No float function of a library decides a bit here: what a table holds is found by integer roots.
"""

from __future__ import annotations

import math

import numpy as np

STEPS = 32  # a logarithm is counted in 1/32 of a bit
FULL = 24  # bits of a range coder's probabilities
WEIGHT_BITS = 15
_REACH = STEPS * WEIGHT_BITS  # what is further below the largest counts as nothing
_WORK = 64  # bits behind the point while the tables are made


def _roots() -> list[int]:
    """2 ** (i / STEPS) for i in 0 to STEPS - 1, as integers with _WORK bits behind the point, rounded down."""
    step = 2 << (2 * _WORK * STEPS)  # its STEPS-th root, by square roots, is 2 ** (1 / STEPS)
    for _ in range(STEPS.bit_length() - 1):
        step = math.isqrt(step)
    # Each square root halved the exponent of the point as well: 2 * _WORK bits are left.
    values, value = [], 1 << (2 * _WORK)
    for _ in range(STEPS):
        values.append(value >> _WORK)
        value = (value * step) >> (2 * _WORK)
    return values


_ROOTS = _roots()
# 2 ** (WEIGHT_BITS - k / STEPS), rounded; the last entry is 0.
_POWERS = np.array(
    [
        ((_ROOTS[-k % STEPS] << WEIGHT_BITS >> -(-k // STEPS)) + (1 << (_WORK - 1))) >> _WORK
        for k in range(_REACH)
    ]
    + [0],
    np.float32,
)  # fmt: skip
_THRESHOLDS = np.array([root >> (_WORK - 52) for root in _ROOTS[1:]], np.int64)


def logarithm(values: np.ndarray) -> np.ndarray:
    """floor(STEPS * log2(value)) of integers from 1 to 2 ** 52, int64."""
    mantissa, exponent = np.frexp(values.astype(np.float64))  # exact: the value is mantissa * 2 ** exponent
    whole = (mantissa * 2.0**53).astype(np.int64)
    return (exponent.astype(np.int64) - 1) * STEPS + np.searchsorted(_THRESHOLDS, whole, side="right")


def frequencies(scores: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """Probabilities of rows of scores, as whole numbers.

    scores: float32 or float64 [n, s] of whole numbers, overwritten; score * shift is log2 in 1/STEPS, shift a power of
    two. Returns float64 [n, s] of whole numbers >= 0 whose sum is 2 ** FULL - s in each row; a range coder that gives
    every symbol one more gets 2 ** FULL. The floats are containers: every product and sum below is a whole number
    under 2 ** 53 over a power of two, so nothing is ever rounded but by the floors that are asked.
    """
    # argmax is three times faster than max along the last axis.
    largest = scores.reshape(-1).take(np.arange(0, scores.size, scores.shape[1]) + scores.argmax(axis=1))
    np.subtract(largest[:, None], scores, out=scores)
    scores *= shift
    np.clip(scores, 0, _REACH, out=scores)
    powers = _POWERS.take(scores.astype(np.intp), mode="clip")  # take is slower with any other integers
    total = 2**FULL - scores.shape[1]
    # Floats divide as whole numbers would: the dividend is below 2 ** 53, so that a quotient which is not whole lies
    # further below the next whole number than it is rounded.
    scale = np.floor((total << 20) / np.einsum("ns->n", powers, dtype=np.float64))
    weights = powers * (scale * 2.0**-20)[:, None]
    np.floor(weights, out=weights)
    weights[:, 0] += total - np.einsum("ns->n", weights)  # what the floors left over: less than 2 ** -16 of it
    return weights

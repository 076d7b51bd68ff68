"""Successive halving of candidates, the rule that chooses among the last, and how much the seed decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archive.errors import ConfigError
from model.select import Candidate, Result


@dataclass(frozen=True)
class Rung:
    """One round: how many candidates are trained, and the share of the full time (or steps) that each gets."""

    candidates: int
    share: float


@dataclass(frozen=True)
class Score:
    """A candidate over the folds of a rung: means, and the standard error of the mean PSNR in dB.

    failed: folds without a result. seconds: of each training. steps: of the shortest training; few of them rank how
    quickly a size starts to learn, not what it reaches.
    """

    candidate: Candidate
    folds: int
    failed: int
    psnr_mean: float
    psnr_se: float
    bits_per_voxel: float
    codebook_use: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Sensitivity:
    """How much the seed decides, the folds being the same: PSNR of each seed (mean over folds) and its spread in dB.

    psnr_sd: sample standard deviation over the seeds, NaN for fewer than two. use: least share of codes in use over
    all trainings. failed: trainings that came to nothing; a seed that has one is not in `psnr`.
    """

    seeds: int
    psnr: tuple[float, ...]
    psnr_sd: float
    use: float
    failed: int


def rungs(count: int, eta: int) -> list[Rung]:
    """The rounds of successive halving: 1/eta of the candidates go on, with eta times the share; the last has 1.

    Jamieson and Talwalkar 2016 (1502.07943), but with the last at most eta candidates compared at the full share, so
    that the rule has something to choose from. eta 1: one round of all. Raises ConfigError BAD_USAGE.
    """
    if eta < 1:
        raise ConfigError("BAD_USAGE", "--eta is at least 1", hint="2 halves, 1 trains every candidate in full")
    counts = [count]
    while eta > 1 and counts[-1] > eta:
        counts.append(math.ceil(counts[-1] / eta))
    last = len(counts) - 1
    return [Rung(number, float(eta) ** (place - last)) for place, number in enumerate(counts)]


def survivors(results: Sequence[Result], keep: int) -> list[Candidate]:
    """The candidates of a rung that go on, in the grid's order: those that few others beat in PSNR and bits at once.

    By how many others are no worse in both mean PSNR and entropy-coded bits and better in one (0: nobody has the same
    fidelity for less), then by mean PSNR, which the choice at the end starts from. One that failed in a fold does not
    go on, since it would be left out of the choice.
    """
    whole = [score for score in scores(results) if not score.failed]
    ranked = sorted(whole, key=lambda one: (_beaten(one, whole), -one.psnr_mean, one.bits_per_voxel, one.candidate))
    return sorted(score.candidate for score in ranked[:keep])


def _beaten(one: Score, others: Sequence[Score]) -> int:
    mine = (one.psnr_mean, -one.bits_per_voxel)
    theirs = [(other.psnr_mean, -other.bits_per_voxel) for other in others]
    return sum(them != mine and them[0] >= mine[0] and them[1] >= mine[1] for them in theirs)


def scores(results: Sequence[Result]) -> list[Score]:
    """Results of one rung by candidate, in the order of the grid; figures are NaN where every fold failed."""
    found = []
    for candidate in sorted({result.candidate for result in results}):
        own = [result for result in results if result.candidate == candidate]
        good = [result for result in own if not result.code]
        psnrs = [result.psnr for result in good]
        error = float(np.std(psnrs, ddof=1)) / math.sqrt(len(psnrs)) if len(psnrs) > 1 else math.nan
        found.append(
            Score(
                candidate,
                len(own),
                len(own) - len(good),
                _mean(psnrs),
                error,
                _mean([result.bits_per_voxel for result in good]),
                _mean([result.codebook_use for result in good]),
                max((result.seconds for result in own), default=0.0),
                min((result.steps for result in good), default=0),
            )
        )
    return found


def choose(results: Sequence[Result]) -> Score | None:
    """The candidate with the fewest bits per voxel whose mean PSNR is within one standard error of the best mean.

    results: of trainings with the same seconds. Bits by zero-order entropy. The one-standard-error rule of Breiman et
    al., Classification and Regression Trees (1984), 3.4.3; the error is the best candidate's. Candidates that failed
    in a fold are left out; None where all did. Of equal bits the narrower, then the smaller codebook.
    """
    whole = [score for score in scores(results) if not score.failed]
    if not whole:
        return None
    least = threshold(whole)
    near = [score for score in whole if score.psnr_mean >= least]
    return min(near, key=lambda score: (score.bits_per_voxel, score.candidate))


def threshold(found: Sequence[Score]) -> float:
    """The best mean PSNR less its standard error, in dB; nothing is taken off where one fold gives no error."""
    best = max(found, key=lambda score: score.psnr_mean)
    return best.psnr_mean - (best.psnr_se if math.isfinite(best.psnr_se) else 0.0)


def sensitivity(results: Sequence[Result]) -> Sensitivity:
    """Results of one candidate, on the same folds from several seeds, as their spread."""
    seeds = sorted({result.seed for result in results})
    means, failed = [], 0
    for seed in seeds:
        own = [result for result in results if result.seed == seed]
        bad = sum(bool(result.code) for result in own)
        failed += bad
        if not bad:
            means.append(_mean([result.psnr for result in own]))
    return Sensitivity(
        len(seeds),
        tuple(means),
        float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
        min((result.codebook_use for result in results if not result.code), default=math.nan),
        failed,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan

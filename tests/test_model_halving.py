"""Successive halving, the one-standard-error rule and the spread between seeds, on figures with known answers."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.errors import ConfigError
from model.halving import choose, rungs, scores, sensitivity, survivors, threshold
from model.select import Candidate, Result

CELL = (1, 8, 8)


def point(width: int, size: int) -> Candidate:
    return Candidate(width, size, 1, CELL)


def rows(width: int, size: int, psnrs: list[float], bits: float, code: str = "", seed: int = 0) -> list[Result]:
    return [
        Result(
            point(width, size),
            fold,
            seed,
            30.0,
            psnr,
            bits_per_voxel=bits,
            codebook_use=0.5,
            steps=7,
            code=code if not fold else "",
        )
        for fold, psnr in enumerate(psnrs)
    ]


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        # 41 +- 0.577: 40.5 is within it, 40.0 is not.
        (rows(64, 1024, [40, 41, 42], 0.12) + rows(64, 512, [39.5, 40.5, 41.5], 0.10), 512),
        (rows(64, 1024, [40, 41, 42], 0.12) + rows(64, 512, [39.0, 40.0, 41.0], 0.10), 1024),
        # Better and cheaper.
        (rows(64, 1024, [40, 40, 40], 0.12) + rows(64, 512, [41, 41, 41], 0.10), 512),
        # The best has more bits than another equally good one, and one of them failed in a fold.
        (rows(64, 512, [41, 41, 41], 0.12) + rows(64, 256, [41, 41, 41], 0.01, code="NON_FINITE"), 512),
        # Equal in everything: the smaller codebook.
        (rows(64, 512, [41, 41], 0.1) + rows(64, 256, [41, 41], 0.1), 256),
    ],
)
def test_the_fewest_bits_within_one_standard_error(results, chosen):
    found = choose(results)
    assert found is not None and found.candidate.codebook_size == chosen
    assert found.psnr_mean >= threshold([score for score in scores(results) if not score.failed])


def test_scores_are_means_with_their_error_and_failures_are_counted():
    (score,) = scores(rows(64, 512, [38, 40, 42], 0.25))
    assert (score.psnr_mean, score.bits_per_voxel, score.folds, score.failed) == (40, 0.25, 3, 0)
    assert (score.steps, score.seconds) == (7, 30.0)
    assert score.psnr_se == pytest.approx(2 / math.sqrt(3))
    failed = [Result(point(64, 512), fold, code="NON_FINITE") for fold in range(3)]
    assert scores(failed)[0].failed == 3 and math.isnan(scores(failed)[0].psnr_mean)
    assert choose(failed) is None


@pytest.mark.parametrize(
    ("count", "eta", "expected"),
    [
        (1, 2, [(1, 1)]),
        (2, 2, [(2, 1)]),
        (6, 2, [(6, 1 / 4), (3, 1 / 2), (2, 1)]),
        (9, 3, [(9, 1 / 3), (3, 1)]),
        (7, 1, [(7, 1)]),
    ],
)
def test_each_rung_has_fewer_candidates_and_more_time(count, eta, expected):
    assert [(rung.candidates, rung.share) for rung in rungs(count, eta)] == expected


@given(st.integers(1, 300), st.integers(2, 5))
def test_halving_costs_less_than_training_all_in_full(count, eta):
    plan = rungs(count, eta)
    assert plan[0].candidates == count and plan[-1].share == 1 and 1 <= plan[-1].candidates <= eta
    assert all(b.candidates == math.ceil(a.candidates / eta) for a, b in itertools.pairwise(plan))
    cost = sum(rung.candidates * rung.share for rung in plan)
    assert cost < count if count > max(4, eta) else cost <= count + 0.5  # few candidates: their halves round up


def test_no_eta_below_one():
    with pytest.raises(ConfigError, match="BAD_USAGE"):
        rungs(4, 0)


def test_the_better_go_on_and_what_failed_does_not():
    results = [
        *rows(64, 1024, [44, 44], 0.1, code="WORKER_KILLED"),
        *rows(64, 512, [41, 43], 0.12),
        *rows(32, 512, [40, 40], 0.10),
        *rows(32, 256, [40, 40], 0.08),
        *rows(16, 256, [20, 60], 0.08),
    ]
    # 42, 40, 40 and 40: of equal ones the fewest bits, then the narrower.
    assert survivors(results, 2) == [point(16, 256), point(64, 512)]
    assert survivors(results, 3) == [point(16, 256), point(32, 256), point(64, 512)]
    assert len(survivors(results, 9)) == 4
    assert survivors(rows(64, 1024, [44, 44], 0.1, code="NON_FINITE"), 2) == []


def test_fidelity_bought_with_bits_does_not_push_out_what_is_as_good_for_less():
    results = [
        *rows(64, 1024, [42.0, 42.0], 0.12),
        *rows(64, 512, [41.9, 41.9], 0.13),  # second by PSNR alone, but the first has more for less
        *rows(32, 512, [41.0, 41.0], 0.08),
        *rows(16, 256, [39.0, 39.0], 0.10),
    ]
    assert survivors(results, 2) == [point(32, 512), point(64, 1024)]
    assert survivors(results, 3) == [point(32, 512), point(64, 512), point(64, 1024)]


def test_the_spread_between_seeds_is_that_of_their_means():
    results = [
        *rows(64, 512, [38, 42], 0.1, seed=0),
        *rows(64, 512, [39, 43], 0.1, seed=1),
        *rows(64, 512, [40, 44], 0.1, seed=2),
        *rows(64, 512, [99, 10], 0.1, seed=3, code="NON_FINITE"),
    ]
    found = sensitivity(results)
    assert found.psnr == (40, 41, 42) and found.psnr_sd == 1.0
    assert (found.seeds, found.failed, found.use) == (4, 1, 0.5)
    assert math.isnan(sensitivity(results[:2]).psnr_sd)

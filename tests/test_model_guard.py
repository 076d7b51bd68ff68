"""The guard on the loss and the budget of a training: what is skipped, rolled back, and when it is over."""

from __future__ import annotations

import json
import time

import pytest
import torch

from archive.errors import InputError
from model.budget import LEAST_STEPS, MOST_STEPS, Budget, learning_rate
from model.config import resolve
from model.guard import BAD_STEPS, FEWEST, MOST_ROLLBACKS, SPIKE_STEPS, Guard


def settled(guard: Guard, loss: float = 1.0) -> Guard:
    guard.good = {"x": torch.zeros(1)}
    for _ in range(FEWEST):
        assert not guard.spiked(loss)
    return guard


def test_a_loss_that_goes_up_and_stays_is_rolled_back_and_learning_slows() -> None:
    guard = settled(Guard())
    assert [guard.spiked(9.0) for _ in range(SPIKE_STEPS)] == [False] * (SPIKE_STEPS - 1) + [True]
    guard.rolled_back(30)
    assert (guard.rollbacks, guard.rate) == (1, 0.5)
    assert not any(guard.spiked(9.0) for _ in range(50)), "after it a new usual loss is learned first"


def test_hard_batches_and_slow_drifts_are_not_spikes() -> None:
    guard = settled(Guard())
    for _ in range(20):
        assert not any(guard.spiked(9.0) for _ in range(SPIKE_STEPS - 1))
        assert not guard.spiked(1.0)
    loss = 1.0
    for _ in range(400):
        loss *= 1.01
        assert not guard.spiked(loss)


def test_rollbacks_end_and_none_is_made_without_a_state_to_go_to() -> None:
    guard = Guard()
    for _ in range(FEWEST):
        guard.spiked(1.0)
    assert not any(guard.spiked(9.0) for _ in range(2 * SPIKE_STEPS))
    guard.good = {"x": torch.zeros(1)}
    for number in range(MOST_ROLLBACKS):
        guard.forget()
        settled(guard)
        assert any(guard.spiked(9.0) for _ in range(SPIKE_STEPS)), number
        guard.rolled_back(number)
    settled(guard)
    assert not any(guard.spiked(9.0) for _ in range(3 * SPIKE_STEPS))


def test_a_loss_far_above_the_usual_is_not_learned_from_and_ten_are_rolled_back() -> None:
    guard = Guard()
    assert guard.most == float("inf"), "there is no usual loss yet"
    settled(guard, 2.0)
    assert guard.most == 100.0
    assert not guard.spiked(None, far=True) and guard.skipped == 1
    assert not guard.spiked(2.0) and guard.most == 100.0
    found = [guard.spiked(None, far=True) for _ in range(SPIKE_STEPS)]
    assert found == [False] * (SPIKE_STEPS - 1) + [True]
    guard.rolled_back(40)
    assert guard.most == float("inf") and guard.skipped == 1 + SPIKE_STEPS


def test_without_a_state_to_go_back_to_a_loss_that_stays_far_is_learned_from_again() -> None:
    guard = settled(Guard())
    guard.good = {}
    assert not any(guard.spiked(None, far=True) for _ in range(SPIKE_STEPS))
    assert guard.most == float("inf")


def test_states_are_kept_only_while_all_is_well() -> None:
    guard = settled(Guard())
    assert guard.keeps(0) and guard.keeps(200) and not guard.keeps(201)
    guard.spiked(9.0)
    assert not guard.keeps(300)
    guard.spiked(1.0)
    guard.spiked(None)
    assert not guard.keeps(300) and guard.skipped == 1


def test_a_training_that_is_never_finite_is_given_up() -> None:
    guard = Guard()
    for _ in range(BAD_STEPS):
        guard.spiked(None)
    guard.spiked(1.0)
    for _ in range(BAD_STEPS):
        guard.spiked(None)
    with pytest.raises(InputError, match="NON_FINITE"):
        guard.spiked(None)


def test_a_guard_from_a_checkpoint_goes_on_as_the_one_that_was_saved() -> None:
    guard = settled(Guard())
    for loss in (9.0, 9.0, 9.0):
        guard.spiked(loss)
    again = Guard()
    again.load(json.loads(json.dumps(guard.state())), guard.good)
    losses = [9.0] * SPIKE_STEPS
    assert [again.spiked(loss) for loss in losses] == [guard.spiked(loss) for loss in losses]


def test_given_steps_decide_alone_while_they_fit_in_the_time() -> None:
    config = resolve("tiny").model_copy(update={"steps": 1000})
    early = Budget(config, 100.0, 10, time.monotonic() - 36.0)  # 36 of 80 s, 2 % of the steps
    assert early.share(20) == 0.02 and not early.by_clock
    late = Budget(config, 100.0, 10, time.monotonic() - 60.0)
    assert late.share(20) == pytest.approx(60 / 80, abs=0.02) and late.by_clock
    assert late.share(900) == 0.9
    over = Budget(config, 100.0, 10, time.monotonic() - 81.0)
    assert over.share(LEAST_STEPS - 1) < 1 <= over.share(LEAST_STEPS)


def test_without_steps_the_clock_decides_and_epochs_are_steps() -> None:
    config = resolve("tiny")
    budget = Budget(config, 100.0, 10, time.monotonic() - 40.0)
    assert budget.by_clock and budget.steps == MOST_STEPS and budget.share(30) == pytest.approx(0.5, abs=0.01)
    epochs = Budget(config.model_copy(update={"epochs": 7}), 100.0, 10, time.monotonic())
    assert (epochs.steps, epochs.by_clock) == (70, False)
    both = Budget(config.model_copy(update={"epochs": 7, "steps": 50}), 100.0, 10, time.monotonic())
    assert both.steps == 50


def test_the_rate_warms_up_then_falls_or_stays() -> None:
    config = resolve("tiny").model_copy(update={"learning_rate": 0.1, "warmup_steps": 10})
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(config, 50, 0.5) == pytest.approx(0.05)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.0)
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 4, 0.9) == pytest.approx(0.05)
    assert learning_rate(constant, 99, 0.99) == pytest.approx(0.1)

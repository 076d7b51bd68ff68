"""Muon: the update is orthogonal, every parameter moves, and a state that was saved goes on exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.checkpoint import collect, restore
from model.config import PEAK_RATES, resolve
from model.optimise import Muon, optimiser, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (64, 9)])
@pytest.mark.parametrize("half", [False, True])
def test_an_update_has_singular_values_near_one(shape: tuple[int, int], half: bool) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(-1, 1, shape[1]))
    values = torch.linalg.svdvals(orthogonal(matrix, half))
    assert values.max() < 1.35
    assert values.median() > 0.6
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrix, half).flatten(), (u @ v).flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", sorted(PEAK_RATES))
def test_every_optimizer_learns_a_convolution(name: str) -> None:
    torch.manual_seed(0)
    teacher, pupil = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
    config = resolve("tiny").model_copy(update={"optimizer": name})
    learner = optimiser(pupil, config, half=False)
    first = last = 0.0
    for _ in range(60):
        x = torch.randn(8, 3, 12, 12)
        loss = (pupil(x) - teacher(x).detach()).square().mean()
        learner.zero_grad()
        loss.backward()
        learner.step()
        last = float(loss.detach())
        first = first or last
    assert last < 0.6 * first


def test_a_restored_state_gives_the_same_next_step() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def step(model: nn.Module, learner: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        learner.zero_grad()
        model(torch.randn(2, 1, 6, 6)).square().mean().backward()
        learner.step()

    first, second = network(), network()
    one = Muon(first.parameters(), 0.02, 1e-4, half=False)
    for seed in range(3):
        step(first, one, seed)
    saved = collect(first, [p.detach().clone() for p in first.parameters()], one)
    assert any(name.endswith("momentum") for name in saved)
    assert any(name.endswith("exp_avg_sq") for name in saved)
    other = Muon(second.parameters(), 0.02, 1e-4, half=False)
    restore(saved, second, [p.detach().clone() for p in second.parameters()], other)
    step(first, one, 9)
    step(second, other, 9)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)

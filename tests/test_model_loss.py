"""The loss: the article's formula, and what each of its parts measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import resolve
from model.loss import measure, similarity


def test_the_loss_is_the_articles() -> None:
    config = resolve("tiny").model_copy(update={"alpha": 0.7, "mse": 2.0, "l1": 3.0})
    x, y, quant = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5), torch.tensor(0.25)
    loss = measure(y, x, quant, config)
    assert float(loss.l_rec) == pytest.approx(2 * 0.25 + 3 * 0.5)
    assert float(loss.total) == pytest.approx(0.7 * float(loss.l_rec) + 0.3 * 0.25)


def test_the_articles_preset_has_squared_error_alone() -> None:
    config = resolve("article")
    x, y = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    loss = measure(y, x, torch.tensor(0.0), config)
    assert float(loss.l_rec) == pytest.approx(0.25)


def test_the_structural_part_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (24, 30))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), -1, 1)
    theirs = metrics.structural_similarity(a, b, win_size=7, data_range=2.0, use_sample_covariance=False)
    ours = similarity(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None])
    assert float(ours) == pytest.approx(theirs, abs=1e-6)

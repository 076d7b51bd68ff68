"""How often series are drawn: by voxels, or evenly over cells of modality, site and class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_model_train import phantoms

from model.balance import cell_of, drawing_weights
from model.config import resolve
from model.patches import PatchSampler


def series(voxels: int, modality: str = "CT", site: str | None = "GE", kind: str | None = None) -> Any:
    about = {"modality": modality, "acquisition": {"manufacturer": site} if site else {}}
    return SimpleNamespace(attributes=about | ({"class": kind} if kind else {}), shape=(voxels, 1, 1))


def test_without_cells_series_are_drawn_by_voxels_and_temperature() -> None:
    config = resolve("tiny")
    assert np.allclose(drawing_weights([series(1), series(4)], config), [1 / 3, 2 / 3])
    even = config.model_copy(update={"temperature": 1.0})
    assert np.allclose(drawing_weights([series(1), series(4)], even), [0.2, 0.8])


@pytest.mark.parametrize(("temperature", "rare"), [(0.0, 0.5), (0.5, 0.25), (1.0, 0.1)])
def test_a_rare_cell_gets_its_share_by_the_temperature(temperature: float, rare: float) -> None:
    config = resolve("tiny").model_copy(update={"balance": ("site",), "balance_temperature": temperature})
    sources = [series(50), series(40), series(10, site="SIEMENS")]
    weights = drawing_weights(sources, config)
    assert weights.sum() == pytest.approx(1.0) and weights[2] == pytest.approx(rare)
    assert weights[0] / weights[1] == pytest.approx((50 / 40) ** 0.5), "within a cell by voxels, as ever"


def test_cells_are_what_is_known_of_a_series() -> None:
    source = series(9, "MR", None, "a1b2")
    assert cell_of(source, ("modality", "site", "class")) == ("MR", "", "a1b2")
    assert cell_of(source, ()) == ()


def test_the_sampler_draws_a_rare_modality_as_often_as_the_common_one() -> None:
    volumes = phantoms(5)
    rare = sorted(volumes)[0]
    object.__setattr__(volumes[rare], "modality", "PT")
    config = resolve("tiny", intensity="hu").model_copy(update={"balance": ("modality",)})
    assert PatchSampler(volumes, config, 0, 2**24).weights[0] == pytest.approx(0.5)

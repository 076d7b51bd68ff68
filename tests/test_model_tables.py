"""Tables of the entropy coder: what is learned is what is coded, and it pays on codes that were not seen."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import ct_volume

from archive import entropy, tables
from archive.codes import StoredCodes, write
from archive.contexts import NEIGHBOURS
from archive.errors import MismatchError
from archive.integers import STEPS
from archive.predictor import Predictor
from model import bundle, intensity
from model.config import resolve
from model.encode import encode_volume
from model.source import as_source
from model.table_samples import table_samples
from model.tables import _Learner, fit
from model.vqvae import VQVAE


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def started(**changes) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", intensity="hu").model_copy(update=changes))
    model.quantizer.start(torch.randn(200, model.config.code_dim))
    return model.eval()


def planted(seed: int, levels: int = 1) -> np.ndarray:
    """Codes [L, 6, 24, 24] that follow from a smooth surface: what is around a code says much about it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:6, :24, :24]
    a, b, c = rng.uniform(0.2, 0.6, 3)
    surface = 32 + 15 * np.sin(a * y + 0.2 * z + rng.uniform(0, 6)) + 15 * np.cos(b * x + c * z)
    first = np.clip(surface + rng.normal(0, 0.5, surface.shape), 0, 63).astype(np.uint16)
    return np.stack([(first * (level + 1) + level * 7) % 64 for level in range(levels)]).astype(np.uint16)


def bits(codes: np.ndarray) -> float:
    """Zero-order."""
    share = np.bincount(codes.reshape(-1)) / codes.size
    return float(-codes.size * (share[share > 0] * np.log2(share[share > 0])).sum())


@pytest.mark.parametrize("levels", [1, 2])
def test_tables_pay_on_codes_that_were_not_seen(levels):
    model = started(levels=levels)
    data = fit(model, [planted(seed, levels) for seed in range(6)], steps=150)
    known = tables.from_bytes(data)
    unseen = planted(99, levels)
    coded = entropy.encode(unseen, 64, known)
    about = entropy.head(coded)
    assert about.modes == (entropy.CONTEXT,) * levels
    assert 8 * about.sizes[0] < 0.8 * bits(unseen[0])
    if levels == 2:  # the second level follows from the first
        assert 8 * about.sizes[1] < 0.5 * bits(unseen[1])
    np.testing.assert_array_equal(entropy.decode(coded, (24, 24), 64, known), unseen)


def test_equal_codes_give_equal_tables_and_the_random_state_stays():
    model, codes = started(), [planted(0), planted(1)]
    torch.manual_seed(5)
    first = fit(model, codes, steps=12)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert fit(model, codes, steps=12) == first
    assert torch.rand(1) == after
    assert fit(model, codes, seed=1, steps=12) != first


def test_the_clock_ends_a_fit():
    began = time.monotonic()
    fit(started(), [planted(0)], steps=10**6, deadline=began + 0.3)
    assert time.monotonic() - began < 60


def test_what_the_learner_expects_is_what_the_coder_does():
    model = started()
    learner = _Learner(model.quantizer.table(0).numpy(), np.full(64, -6 * STEPS, np.int32), False)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in learner.parameters():
            part += 0.1 * torch.randn_like(part)
    around = np.random.default_rng(0).integers(0, 65, (400, len(NEIGHBOURS[1])))
    codes = np.random.default_rng(1).integers(0, 64, 400)
    with torch.no_grad():
        expected = float(learner(torch.from_numpy(around), 1, None, torch.from_numpy(codes)))
    predictor = Predictor(learner.network())
    contexts = predictor.contexts(around, 1, None)
    group, member = predictor.split(codes)
    rows = np.arange(400)
    chosen = [predictor.group(contexts)[rows, group], predictor.member(contexts, group)[rows, member]]
    assert float(-np.log2((np.stack(chosen) + 1) / 2**24).sum(0).mean()) == pytest.approx(expected, abs=0.05)


def test_samples_depend_on_the_seed_alone():
    model, source = started(), as_source(ct_volume((6, 96, 80), 1))
    mapping = intensity.fit(source, "hu")
    samples = [table_samples(model, [source], [mapping], seed, time.monotonic() + 60) for seed in (0, 0, 1)]
    found = [one.codes for one in samples]
    assert all(one.distances.sum() == sum(part.size for part in one.codes) for one in samples)
    assert [part.tobytes() for part in found[0]] == [part.tobytes() for part in found[1]]
    assert found[2][0].tobytes() != found[0][0].tobytes()
    assert all(part.dtype == np.uint16 and part.ndim == 4 and part.max() < 64 for part in found[0])


def test_tables_lie_in_the_bundle_are_part_of_its_id_and_are_found_by_the_store(tmp_path: Path):
    model = started()
    data = fit(model, [planted(0)], steps=10)
    plain = bundle.save(model, model.config, tmp_path / "models", {})
    name = bundle.save(model, model.config, tmp_path / "models", {}, tables=data)
    assert name != plain and (tmp_path / "models" / name / tables.FILE).read_bytes() == data
    codes = encode_volume(bundle.load(tmp_path / "models" / name), ct_volume((4, 64, 72), 0))
    version = write(codes, tmp_path / "codes.zarr", "a" * 32).version
    found = StoredCodes(tmp_path / "codes.zarr" / ("a" * 32) / version)
    assert found.codec.known() is tables.from_bytes(data)
    np.testing.assert_array_equal(found.read().array, codes.array)
    (tmp_path / "models" / name / tables.FILE).unlink()
    bundle._load.cache_clear()
    with pytest.raises(MismatchError):
        bundle.load(tmp_path / "models" / name)

"""A series that is unlike the training shows: by the codes it uses, and by how far its latents lie from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import ct_volume

from archive import tables
from archive import volumes as volume_store
from archive.errors import StoreError
from archive.settings import GateSettings
from model import bundle, intensity
from model.config import resolve
from model.encode import Request, encode_volumes
from model.jobs import EncodeJob, encode_batch
from model.metrics import histogram
from model.source import as_source
from model.tables import fit
from model.unlike import BINS, Unlike, binned, counted, unlike
from model.vqvae import VQVAE


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> VQVAE:
    """Codes at the latents of the phantoms 1 and 2, as training would put them."""
    torch.manual_seed(0)
    made = VQVAE(resolve("tiny", intensity="hu").model_copy(update={"levels": 2})).eval()
    rows = []
    with torch.inference_mode():
        for seed in (1, 2):
            source = as_source(ct_volume((6, 96, 80), seed))
            slices = intensity.fit(source, "hu").to_model(source.slab_values(0, 6))
            rows.append(made.encoder(torch.from_numpy(slices)[:, None]).movedim(1, -1).flatten(0, -2))
    made.quantizer.start(torch.cat(rows))
    return made


def test_bins_are_half_octaves_and_everything_has_one():
    squares = torch.tensor([0.0, 1e-30, 0.5, 1.0, 1.42, 2.0, 4.0, 1e30])
    assert binned(squares).tolist() == [0, 0, 30, 32, 33, 34, 36, BINS - 1]
    assert counted(np.array([[0, 0, 3], [3, 3, 3]]))[:, :4].tolist() == [[2, 0, 0, 1], [0, 0, 0, 3]]


def test_the_search_says_how_far_the_latents_lie_from_their_codes(model):
    latents = torch.randn(2, model.config.code_dim, 5, 6, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = model.quantizer.find(latents)
        assert torch.equal(found.codes, model.quantizer.encode(latents))
        for levels in (1, 2):
            off = (latents - model.quantizer.decode(found.codes[:, :levels])).square().sum(1)
            torch.testing.assert_close(found.squares[:, levels - 1], off)


def test_distances_are_those_of_every_cell_whatever_the_company(model):
    volumes = {seed: ct_volume((3, 90, 70), seed) for seed in (1, 5)}

    def distances(names, **about):
        asked = [Request(name, lambda name=name: volumes[name]) for name in names]
        return {one.name: one.distances for one in encode_volumes(model, asked, **about)}

    both, alone = distances([1, 5]), distances([5], ahead_bytes=0)
    assert np.array_equal(both[5], alone[5])
    assert both[1].shape == (2, BINS) and both[1].sum(1).tolist() == [3 * 12 * 9] * 2
    assert np.array_equal(distances([5], levels=1)[5], alone[5][:1])


def known(model: VQVAE) -> bytes:
    """Tables that know the two phantoms as they are: samples as training takes them are jittered."""
    asked = [Request(seed, lambda seed=seed: ct_volume((6, 96, 80), seed)) for seed in (1, 2)]
    found = list(encode_volumes(model, asked))
    return fit(model, [one.codes.array for one in found], steps=10, distances=sum(one.distances for one in found))


def test_noise_that_training_never_saw_is_more_unlike_than_what_it_saw(model, tmp_path: Path):
    name = bundle.save(model, model.config, tmp_path / "models", {}, tables=known(model))
    seen = ct_volume((6, 96, 80), 1)
    noise = np.random.default_rng(0).normal(0, 300, seen.voxels.shape)
    other = seen.with_voxels(np.clip(seen.voxels + noise, -1000, 3000).astype(np.int16))
    scores = {}
    for series, volume in (("seen", seen), ("other", other)):
        committed = volume_store.write(volume, tmp_path / "volumes.zarr", series)
        job = EncodeJob(
            series=series, voxels=volume.voxels.size, volume=tmp_path / "volumes.zarr" / series / committed.version,
            source_version=committed.version, source_digest="d", codes=tmp_path / "codes.zarr", models=tmp_path / "models",
            model=name, profile="exact", levels=None, gate=GateSettings(), settings_digest="x", device="cpu",
        )  # fmt: skip
        for levels in (None, 1):
            (record,) = encode_batch([replace(job, levels=levels, codes=tmp_path / f"codes{levels}")])
            scores[series, levels] = record.certificate
    for levels in (None, 1):
        here, there = scores["seen", levels], scores["other", levels]
        assert 0 <= here["unlike_distances"] < 0.5 * there["unlike_distances"] <= 0.5
        assert here["unlike"] < 0.5 * there["unlike"] <= 0.5


def test_models_that_do_not_know_say_so(model):
    counts = histogram(np.zeros((2, 1, 4, 4), np.uint16), 64)
    distances = np.ones((2, BINS), np.int64)
    assert unlike(counts, distances, None) == Unlike(None, None)
    old = tables.from_bytes(fit(model, [np.zeros((2, 2, 8, 8), np.uint16)], steps=10))
    assert old.distances is None
    found = unlike(counts, distances, old)
    assert found.codes is not None and found.distances is None
    assert unlike(counts, None, replace(old, distances=distances)).distances is None
    assert unlike(counts, distances, replace(old, distances=distances)).distances == 0


def test_tables_whose_distances_are_of_other_levels_are_refused(model):
    good = tables.from_bytes(known(model))
    assert good.distances.shape == (2, BINS)
    with pytest.raises(StoreError) as caught:
        tables.from_bytes(tables.to_bytes(good.priors, good.networks, good.distances[:1]))
    assert caught.value.code == "DAMAGED"

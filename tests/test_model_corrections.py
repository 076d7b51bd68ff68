"""Corrections: what the decoder leaves over comes back, a scale at a time, for few bits; and the wavelet under them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_model_encode import volume
from test_model_ladder import climbed

from archive import codes as code_store
from archive import tables
from archive.codes import StoredCodes
from archive.errors import MismatchError
from archive.settings import GateSettings, TrainSettings
from archive.volume import Volume
from model import bundle, ladder, tiling, wavelet
from model import corrections as corrections_module
from model.config import ModelConfig, resolve
from model.corrections import Corrections, _scalars, _side, _triples
from model.decode import decode_codes
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.metrics import entropy, histogram
from model.train import train
from model.vqvae import VQVAE

SCALES = 3


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(levels: int = 2) -> VQVAE:
    """A network that has learned nothing, with a codebook large enough for five steps each way in three directions."""
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", TrainSettings(levels=levels, codebook_size=1331), intensity="robust"))
    model.quantizer.start(model.encoder(noise(8, 1, 48, 48)).movedim(1, -1).flatten(0, -2))
    return model.eval()


def corrected(step: float = 0.3, scales: int = SCALES, levels: int = 2) -> VQVAE:
    """The same with corrections."""
    base = plain(levels)
    model = VQVAE(base.config.model_copy(update={"corrections": scales, "correction_step": step}))
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert missing == ["corrections.points", "corrections.prices"] and not unexpected
    return model.eval()


def error(a: Volume, b: Volume) -> float:
    return float(np.square(a.values() - b.values()).mean())


# The wavelet


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_a_picture_comes_back_and_its_energy_stays(scales: int) -> None:
    x = noise(2, 1, 5 * 2**scales, 3 * 2**scales)
    found = wavelet.analyse(x, scales)
    assert found.shape == (2, 4**scales, 5, 3)
    torch.testing.assert_close(wavelet.synthesise(found, scales), x, atol=1e-5, rtol=0)
    assert 0.9 < float(found.square().sum() / x.square().sum()) < 1.15


def test_a_flat_picture_is_its_coarse_picture() -> None:
    found = wavelet.analyse(torch.ones(1, 1, 32, 24), 3)
    torch.testing.assert_close(found[:, 0], torch.full((1, 4, 3), 8.0), atol=1e-4, rtol=0)
    assert float(found[:, 1:].abs().max()) < 1e-4


def test_what_changes_along_an_axis_is_in_its_channels() -> None:
    rows = torch.arange(32.0)[:, None].remainder(2).expand(32, 32)[None, None]
    fine = wavelet.analyse(rows, 2)[:, 4:].unflatten(1, (4, 3)).abs().amax((0, 1, 3, 4))
    assert fine[0] > 0.9 and fine[1:].max() < 1e-5
    turned = wavelet.analyse(rows.transpose(-1, -2), 2)[:, 4:].unflatten(1, (4, 3)).abs().amax((0, 1, 3, 4))
    assert turned[1] > 0.9 and turned[[0, 2]].max() < 1e-5


def test_scales_that_are_left_out_count_as_zero() -> None:
    found = wavelet.analyse(noise(1, 1, 32, 32), 3)
    for scales in range(4):
        short = found.clone()
        short[:, 4**scales :] = 0
        torch.testing.assert_close(wavelet.synthesise(found[:, : 4**scales], 3), wavelet.synthesise(short, 3))


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_nothing_looks_further_than_the_reach_says(scales: int) -> None:
    cell, middle = 2**scales, 12
    for offset in range(cell):
        x = torch.zeros(1, 1, 24 * cell, 24 * cell)
        x[..., middle * cell + offset, middle * cell + offset] = 1
        rows = wavelet.analyse(x, scales).abs().amax((0, 1, 3)).nonzero()[:, 0].tolist()
        beyond = [at * cell - (middle * cell + offset) for at in rows if at > middle]
        beyond += [middle * cell + offset - ((at + 1) * cell - 1) for at in rows if at < middle]
        assert max(beyond, default=0) <= wavelet.reach(scales)
    for channel in range(4**scales):
        one = torch.zeros(1, 4**scales, 24, 24)
        one[0, channel, middle, middle] = 1
        rows = wavelet.synthesise(one, scales).abs().amax((0, 1, 3)).nonzero()[:, 0] // cell
        assert int((rows - middle).abs().max()) <= wavelet.reach_back(scales)


# The codes


def test_codes_are_triples_and_scalars_small_ones_first() -> None:
    assert [_side(size) for size in (27, 64, 125, 343, 1024, 2048, 4096)] == [3, 3, 5, 7, 9, 11, 15]
    triples = _triples(2048)
    assert triples.shape == (2048, 3) and not triples[0].any() and not triples[1331:].any()
    assert len(torch.unique(triples[:1331], dim=0)) == 1331
    assert (triples[:1331].square().sum(1).diff() >= 0).all()
    assert triples[:, 0].unique().tolist() == [-6.75, -4.5, -3, -2, -1, 0, 1, 2, 3, 4.5, 6.75]
    assert _scalars(6)[:, 0].tolist() == [0, -1, 1, -2, 2, 0] and not _scalars(6)[:, 1:].any()


def test_nothing_left_over_is_the_code_of_nothing() -> None:
    corrections = Corrections(3, 3, 64, 0.1, 0.1)
    found = corrections.find(torch.zeros(2, 1, 16, 24))
    assert found.codes.shape == found.squares.shape == (2, 22, 2, 3)
    assert not found.codes.any() and not found.squares.any()
    assert not corrections.picture(found.codes).any()


def test_each_scale_brings_the_picture_nearer_and_any_prefix_decodes() -> None:
    corrections = Corrections(3, 3, 2048, 0.2, 0.0)
    rest = noise(1, 1, 64, 64).cumsum(-1) * 0.05
    codes = corrections.find(rest).codes
    assert corrections.stops == (1, 2, 6, 22) and corrections.levels == codes.shape[1] == 22
    errors = [float((corrections.picture(codes[:, :count]) - rest).square().mean()) for count in corrections.stops]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2
    # Rounding to a step leaves a twelfth of its square, and nearly orthonormal means that the picture has little more.
    assert errors[-1] < 1.5 * 0.2**2 / 12
    assert torch.equal(corrections.find(rest, 6).codes, codes[:, :6])
    between = corrections.picture(codes[:, :4])
    padded = codes.clone()
    padded[:, 4:] = 0
    torch.testing.assert_close(between, corrections.picture(padded))


@pytest.mark.parametrize("penalty", [0.0, 0.02, 0.12, 0.5])
def test_found_are_the_codes_that_cost_least_in_distance_and_bits(penalty: float) -> None:
    corrections = Corrections(2, 2, 343, 0.3, penalty)
    corrections.learn([noise(4, 1, 32, 32) * 0.3])
    rest = noise(1, 1, 16, 16, seed=1) * 0.4
    found = corrections.find(rest)
    assert found.codes.unique().numel() > 10
    rows = wavelet.analyse(rest, 2)
    for level, kind in enumerate((0, 1, 2)):
        mine = rows[:, :1] if level == 0 else rows[:, 3 * level - 2 : 3 * level + 1]
        mine = mine.movedim(1, -1).reshape(-1, mine.shape[1])
        points = corrections.table(level)[:, : mine.shape[1]]
        cost = (mine[:, None] - points[None]).square().sum(2) + corrections.prices[kind]
        chosen = found.codes[:, level].reshape(-1, 1)
        torch.testing.assert_close(cost.gather(1, chosen)[:, 0], cost.min(1).values, atol=1e-5, rtol=1e-5)


def ties(corrections: Corrections, kind: int, count: int) -> torch.Tensor:
    """Rows [n, 3] that cost as much by one code as by another."""
    points, prices = corrections.points[kind].double(), corrections.prices[kind].double()
    rows = noise(count, 3).double() * 0.6
    cost = (rows[:, None] - points[None]).square().sum(2) + prices
    first, second = cost.topk(2, dim=1, largest=False).indices.T
    across = points[second] - points[first]
    ahead = (cost.gather(1, second[:, None]) - cost.gather(1, first[:, None]))[:, 0]
    return (rows + across * (ahead / (2 * across.square().sum(1)))[:, None]).float()


def test_a_code_does_not_depend_on_what_is_searched_beside_it() -> None:
    corrections = Corrections(3, 3, 2048, 0.15, 0.12)
    corrections.learn([noise(8, 1, 64, 64) * noise(8, 1, 64, 64, seed=1).square() * 0.2])
    rows = ties(corrections, 3, 3000)
    together = corrections._search(rows, 3)[0]
    assert together.unique().numel() > 100
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.equal(corrections._search(rows[order], 3)[0], together[order])
    alone = [int(corrections._search(row[None], 3)[0]) for row in rows[:400]]
    assert alone == together[:400].tolist()
    few = torch.cat([corrections._search(part, 3)[0] for part in rows[:1000].split(3)])
    assert torch.equal(few, together[:1000])


def test_what_is_left_over_is_searched_in_float32_under_autocast() -> None:
    corrections = Corrections(3, 3, 2048, 0.05, 0.0)
    rest = noise(1, 1, 64, 64) * 0.2
    found = corrections.find(rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = corrections.find(rest)
    assert torch.equal(found.codes, halved.codes) and halved.squares.dtype == torch.float32


def test_a_model_that_learned_nothing_has_prices_from_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    real = corrections_module.nearest

    def counting(rows, *arguments):
        searched.append(len(rows))
        return real(rows, *arguments)

    monkeypatch.setattr(corrections_module, "nearest", counting)
    monkeypatch.setattr(corrections_module, "SEARCHED", 1000)
    Corrections(2, 2, 343, 0.3, 0.1).learn([noise(8, 1, 64, 64)])
    most = 1000 + corrections_module.TOGETHER["cpu"]
    assert sum(searched) <= 3 * corrections_module.ROUNDS * most


def test_prices_save_bits() -> None:
    rest = noise(8, 1, 64, 64) * noise(8, 1, 64, 64, seed=1).square() * 0.2
    bits, errors = [], []
    for penalty in (0.0, 0.1, 0.3):
        corrections = Corrections(3, 3, 2048, 0.3, penalty)
        corrections.learn([rest])
        codes = corrections.find(rest).codes
        assert int(codes.max()) < 2048
        counts = histogram(codes[0].numpy().astype(np.uint16)[:, None], 2048)
        bits.append(sum(entropy(level) * level.sum() for level in counts))
        errors.append(float((corrections.picture(codes) - rest).square().mean()))
    assert bits[0] > 1.05 * bits[1] > 1.1 * bits[2] and errors == sorted(errors)


# The model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dims": 3, "unshuffle": (2, 2, 2), "stride": (2, 2, 2), "patch": (8, 16, 16)}, "grey slices"),
        ({"channels": 3}, "grey slices"),
        ({"attention": True}, "without attention"),
        ({"corrections": 4}, "square cells"),
        ({"unshuffle": (1, 2, 4)}, "square cells"),
        ({"unshuffle": (1, 8, 8)}, "of 2, 4 or 8"),
        ({"codebook_size": 26}, "at least 27"),
    ],
)
def test_what_corrections_cannot_be_had_with(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate({"preset": "x", "corrections": 3, **changes})


def test_levels_stops_and_folds_follow_from_the_config() -> None:
    config = resolve("tiny", TrainSettings(corrections=3, levels=2))
    assert (config.levels, config.code_levels) == (2, 24)
    assert config.stops == (1, 2, 3, 4, 8, 24) and config.folds == (1, 1, 1, 1, 2, 4)
    plain = resolve("tiny", TrainSettings(levels=3))
    assert plain.code_levels == 3 and plain.stops == (1, 2, 3) and plain.folds == (1, 1, 1)
    fine = resolve("ct-2d-fine")
    assert fine.corrections == 3 and fine.code_levels == 23 and fine.intensity == "hu-companded"
    model = VQVAE(fine)
    assert model.encoder_kflop > VQVAE(resolve("ct-2d")).encoder_kflop + model.decoder_kflop - 1


def test_the_codebooks_levels_are_what_they_were_and_the_rest_comes_back() -> None:
    source = volume("zyx", (3, 61, 50))
    base, model = plain(), corrected()
    codes = encode_volume(model, source)
    assert codes.levels == 24 and codes.array.shape[0] == 24
    assert np.array_equal(codes.array[:2], encode_volume(base, source).array)
    assert np.array_equal(encode_volume(model, source, levels=8).array, codes.array[:8])
    assert np.array_equal(decode_codes(model, codes, 2).voxels, decode_codes(base, encode_volume(base, source)).voxels)
    errors = [error(decode_codes(model, codes, levels), source) for levels in model.config.stops[1:]]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 20
    lazy = DecodedVolume(model, codes)
    whole = decode_codes(model, codes).voxels
    assert np.array_equal(lazy[1:2, 7:50, 3:31], whole[1:2, 7:50, 3:31])
    with pytest.raises(MismatchError) as caught:
        encode_volume(model, source, levels=25)
    assert caught.value.code == "WRONG_MODEL"


def test_tiles_correct_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    source = volume("zyx", (2, 330, 420))
    model = corrected()
    monkeypatch.setattr(tiling, "TILE", {2: (1, 4096, 4096), 3: (4096, 4096, 4096)})
    whole = encode_volume(model, source)
    monkeypatch.setattr(tiling, "TILE", {2: (1, 200, 200), 3: (28, 28, 28)})
    tiled = encode_volume(model, source)
    assert whole.array[2:].any()
    assert (whole.array != tiled.array).mean() < 1e-4  # near ties, as for the codebooks
    a, b = decode_codes(model, tiled).voxels, decode_codes(model, whole).voxels
    assert (a != b).mean() < 1e-3


def test_fast_codes_are_corrected_too() -> None:
    source = volume("zyx", (2, 64, 64))
    model = corrected()
    exact, fast = (
        error(decode_codes(model, encode_volume(model, source, profile=p)), source) for p in ("exact", "fast")
    )
    assert fast == pytest.approx(exact, rel=0.1)


def test_a_gate_that_fails_climbs_scale_by_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_model_ladder.network", lambda channels, levels: corrected(levels=levels))
    real = ladder.certify

    def graded(volume, decoded, codes, size, gate, **named):
        return replace(real(volume, decoded, codes, size, **named), passed=codes.levels >= gate.min_psnr)

    monkeypatch.setattr(ladder, "certify", graded)
    source = volume("zyx", (2, 40, 40))
    found = climbed(source, tmp_path, GateSettings(min_psnr=8), levels=1).certificate
    assert [rung["levels"] for rung in found.rungs] == [1, 2, 3, 4, 8]
    figures = [rung["psnr"] for rung in found.rungs]
    assert figures[-1] > figures[1] + 5 and found.passed and found.rung == "codes"


def test_a_training_prices_its_corrections_and_the_store_keeps_all_of_them(tmp_path: Path) -> None:
    volumes = {f"s{i}": volume("zyx", (4, 48, 48)) for i in range(3)}
    settings = TrainSettings(
        steps=12, corrections=2, correction_step=1.5, correction_penalty=0.2, levels=1, codebook_size=343, threads=1
    )
    config = resolve("tiny", settings, channels=1, intensity="robust")
    result = train(volumes, {}, config, settings, tmp_path / "run", 60.0, models=tmp_path / "models")
    model = bundle.load(result.folder)
    assert model.corrections is not None
    prices = model.corrections.prices
    assert (prices[1:, 0] <= prices[1:].min(1).values).all() and float(prices[1].max()) > 0
    assert result.codebook_use <= 1 and result.bits_per_voxel > 0
    found = tables.of_model(tmp_path / "models", result.model)
    assert found is not None and found.folds == (1, 1, 1, 2) and len(found.networks) == 4 and len(found.priors) == 7
    source = volume("zyx", (5, 70, 90))
    codes = encode_volume(model, source)
    committed = code_store.write(codes, tmp_path / "codes", "s")
    stored = StoredCodes(tmp_path / "codes" / "s" / committed.version)
    assert np.array_equal(stored.read().array, codes.array)
    for levels in range(1, 8):
        assert np.array_equal(stored.slab(1, 4, levels), codes.array[:levels, 1:4])
    assert np.array_equal(decode_codes(model, stored.read()).voxels, decode_codes(model, codes).voxels)
    # Fewer levels than the model has are stored one by one where they do not complete a scale.
    short = replace(codes, array=codes.array[:5], levels=5)
    committed = code_store.write(short, tmp_path / "codes", "short")
    assert np.array_equal(StoredCodes(tmp_path / "codes" / "short" / committed.version).read().array, short.array)

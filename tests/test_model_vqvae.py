"""The network: shapes, reach, stems, attention, and every quantizer in it; who is held out, and the learning rate."""

from __future__ import annotations

import math

import pytest
import torch

from archive.codes import Codes
from model.budget import learning_rate
from model.config import PRESETS, ModelConfig, preset_for, resolve
from model.decode import Decoder
from model.layers import WHOLE, Attention, DepthToSpace, Haar, InverseHaar, SpaceToDepth, haar
from model.optimise import optimiser
from model.validation import held_out
from model.vqvae import VQVAE

ANISOTROPIC = {"dims": 3, "unshuffle": (1, 2, 2), "stride": (2, 2, 2), "patch": (8, 16, 16)}
FSQ = {"quantizer": "fsq", "codebook_size": 1000, "code_dim": 4}


def started(preset: str, **changes) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(resolve(preset).model_copy(update=changes))
    model.quantizer.start(torch.randn(400, model.config.code_dim))
    return model.eval()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_builds_and_keeps_the_size(preset: str) -> None:
    config = resolve(preset)
    model = started(preset)
    x = torch.zeros(1, config.channels, *config.axes(config.patch))
    with torch.inference_mode():
        codes = model.encode(x)
        grid = [size // d for size, d in zip(config.patch, config.downsample, strict=True)]
        assert codes.shape == (1, config.code_levels, *config.axes((grid[0], grid[1], grid[2])))
        assert model.decode(codes).shape == x.shape
        assert model.decode(codes, levels=1).shape == x.shape


def test_the_default_of_ct_keeps_its_rate() -> None:
    config = resolve(preset_for("CT"))
    z, y, x = config.downsample
    assert config.levels * math.log2(config.codebook_size) / (z * y * x) <= 0.18


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("tiny", {}),
        ("tiny-3d", {}),
        ("tiny", {"stem": "haar"}),
        ("tiny", {"stem": "strided"}),
        ("article", {"channels": 1}),
        ("tiny-3d", {"stem": "strided", **ANISOTROPIC}),
    ],
)
def test_the_computed_reach_is_the_real_one(preset: str, changes: dict) -> None:
    model = started(preset, **changes)
    dims, cell = model.config.dims, model.config.axes(model.config.downsample)
    size = [d * 9 for d in cell]
    middle = tuple(slice(4 * d, 5 * d) for d in cell)
    x = torch.randn(1, 1, *size, requires_grad=True)
    model.encoder(x)[(0, slice(None), *(4 for _ in range(dims)))].sum().backward()
    touched = x.grad[0, 0].abs() > 0
    for axis, halo in enumerate(model.encoder_halo):
        places = touched.any(tuple(a for a in range(dims) if a != axis)).nonzero().flatten() if dims > 1 else None
        assert places is not None
        low, high = int(places.min()), int(places.max()) + 1
        assert (middle[axis].start - low, high - middle[axis].stop) == (halo, halo)
    codes = torch.randn(1, model.config.code_dim, *(9 for _ in range(dims)), requires_grad=True)
    model.decoder(codes)[(0, 0, *middle)].sum().backward()
    seen = codes.grad[0].abs().sum(0) > 0
    for axis, halo in enumerate(model.decoder_halo):
        places = seen.any(tuple(a for a in range(dims) if a != axis)).nonzero().flatten()
        # The computed reach counts code cells that a convolution's edge only touches; one cell at most is spare.
        reach = max(4 - int(places.min()), int(places.max()) - 4)
        assert halo - 1 <= reach <= halo


@pytest.mark.parametrize("factors", [(4, 4), (1, 4, 4), (2, 3, 1)])
def test_space_to_depth_is_lossless(factors: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *(f * 2 for f in factors))
    folded = SpaceToDepth(factors)(x)
    assert folded.shape[2:] == tuple(2 for _ in factors)
    assert torch.equal(DepthToSpace(factors)(folded), x)


@pytest.mark.parametrize("factors", [(2, 2), (4, 4), (1, 4, 4), (2, 4, 1)])
def test_the_haar_stem_is_orthonormal_and_has_its_inverse(factors: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    matrix = haar(factors).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-6)
    x = torch.randn(2, 3, *(2 * factor for factor in factors))
    folded = Haar(factors)(x)
    assert float(folded.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)
    assert torch.allclose(InverseHaar(factors)(folded), x, atol=1e-5)
    flat = Haar(factors)(torch.ones(1, 1, *factors)).flatten()
    assert float(flat[0]) == pytest.approx(len(matrix) ** 0.5) and float(flat[1:].abs().max()) < 1e-6


def test_the_haar_pyramid_is_that_of_the_textbook() -> None:
    r = 0.5**0.5
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [r, -r, 0, 0], [0, 0, r, -r]])
    assert torch.allclose(haar((4,)), expected)


def test_the_articles_network_is_two_convolutions_each_way() -> None:
    model = VQVAE(resolve("article"))
    for part in (model.encoder, model.decoder):
        layers = [m for m in part.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
        assert [(layer.kernel_size, layer.stride) for layer in layers] == [((4, 4), (2, 2))] * 2
        assert sum(isinstance(m, torch.nn.ReLU) for m in part.modules()) == 1


@pytest.mark.parametrize("preset", ["tiny", "tiny-3d"])
@pytest.mark.parametrize(
    "changes",
    [
        {"stem": "haar", "levels": 2},
        {"stem": "strided", "quantizer": "vq", "levels": 2},
        {**FSQ, "levels": 2},
        {"quantizer": "vq", "gradient": "rotation"},
        {"normalize": True, "gradient": "rotation", "attention": True},
        {"optimizer": "adam", "quantizer": "vq", "normalize": True},
    ],
)
def test_every_kind_of_model_learns_a_batch(preset: str, changes: dict) -> None:
    config = ModelConfig.model_validate({**resolve(preset).model_dump(), **changes})
    torch.manual_seed(0)
    model = VQVAE(config)
    # Something smooth: noise cannot be learned through codes.
    coarse = torch.rand(4, 1, *(size // 8 for size in config.axes(config.patch)))
    x = torch.nn.functional.interpolate(coarse, scale_factor=8) * 2 - 1
    with torch.no_grad():
        model.quantizer.start(model.encoder(x).movedim(1, -1).reshape(-1, config.code_dim))
    steps = optimiser(model.train(), config, False)
    losses = []
    for _ in range(50):
        output = model(x)
        steps.zero_grad()
        output.loss.backward()
        steps.step()
        losses.append(float(output.mse.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.inference_mode():
        codes = model.eval().encode(x)
        assert int(codes.max()) < config.codebook_size
        assert model.decode(codes).shape == model.decode(codes, levels=1).shape == x.shape


def test_learned_codes_are_neither_decayed_nor_orthogonalised() -> None:
    for name in ("muon", "adamw", "sgd"):
        config = resolve("tiny").model_copy(update={"quantizer": "vq", "optimizer": name, "weight_decay": 0.5})
        model = VQVAE(config)
        with torch.no_grad():
            model.quantizer.codebooks.fill_(1.0)
        steps = optimiser(model, config, False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight = next(p for p in model.encoder.parameters() if p.dim() > 1)
        before = weight.detach().clone()
        steps.step()
        assert torch.equal(model.quantizer.codebooks.detach(), torch.ones_like(model.quantizer.codebooks))
        assert not torch.equal(weight.detach(), before)


def test_attention_starts_as_nothing_and_then_sees_everything() -> None:
    torch.manual_seed(0)
    layer = Attention(2, 16)
    x = torch.randn(1, 16, 6, 7, requires_grad=True)
    assert torch.equal(layer(x), x)
    torch.nn.init.normal_(layer.mix.weight)
    layer(x)[0, :, 0, 0].sum().backward()
    assert bool((x.grad.abs().sum((0, 1)) > 0).all())


def test_with_attention_a_volume_is_one_window_and_encoding_stays_local() -> None:
    plain, model = started("tiny"), started("tiny", attention=True)
    assert model.decoder_halo == (WHOLE, WHOLE)
    assert model.encoder_halo == plain.encoder_halo
    about = Codes(
        array=torch.zeros(1, 1, 200, 200, dtype=torch.uint16).numpy(),
        model="",
        levels=1,
        codebook_size=model.config.codebook_size,
        downsample=model.config.downsample,
        source={"axes": "zyx", "shape": [1, 1600, 1600], "dtype": "int16"},
        pad=(0, 0, 0),
        mapping={},
    )
    assert len(Decoder(model, about, lambda t, a, b: about.array)._plan) == 1
    assert len(Decoder(plain, about, lambda t, a, b: about.array)._plan) > 1


def test_patients_are_held_out_whole_and_only_where_there_are_enough() -> None:
    few = {f"s{i}": f"p{i % 9}" for i in range(30)}
    assert held_out(few, 0.1, 0) == set()
    many = {f"s{i}": f"p{i % 40}" for i in range(90)}
    assert len(held_out(many, 0.1, 0)) == 4
    assert held_out(many, 0.1, 0) == held_out(dict(reversed(many.items())), 0.1, 0)
    assert held_out(many, 0.0, 0) == set()


def test_the_learning_rate_warms_up_and_ends_at_nothing() -> None:
    config = resolve("ct-2d")
    assert learning_rate(config, 0, 0.0) < config.peak_rate / 10
    assert learning_rate(config, 500, 0.0) == pytest.approx(config.peak_rate)
    assert learning_rate(config, 500, 1.0) == pytest.approx(0.0, abs=1e-9)

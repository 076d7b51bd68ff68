"""The quantizers: one interface, nearest codes, prefixes of levels, health of the codebooks, gradients."""

from __future__ import annotations

import pytest
import torch

from archive.errors import InputError
from model import codebooks
from model.codebooks import LearnedQuantizer, ResidualQuantizer
from model.fsq import ScalarQuantizer
from model.gradient import rotated, straight_through
from model.kmeans import kmeans
from model.metrics import entropy
from model.quantize import Quantizer

KINDS = ["ema", "vq", "fsq"]
CODEBOOKS = ["ema", "vq"]


def quantizer_of(kind: str, levels: int = 2, size: int = 16, dim: int = 4, **options) -> Quantizer:
    """A quantizer; of fsq with 3 steps in each dimension."""
    if kind == "fsq":
        return ScalarQuantizer(levels, (3,) * dim)
    return (LearnedQuantizer if kind == "vq" else ResidualQuantizer)(levels, size, dim, **options)


def started(kind: str, **options) -> tuple[Quantizer, torch.Tensor]:
    """A quantizer and latents [2, 4, 6, 5] that it started from."""
    torch.manual_seed(2)
    quantizer = quantizer_of(kind, **options)
    latents = torch.randn(2, quantizer.dim, 6, 5)
    assert not quantizer.ready
    quantizer.start(latents.movedim(1, -1).reshape(-1, quantizer.dim))
    assert quantizer.ready
    return quantizer, latents


@pytest.mark.parametrize("kind", KINDS)
def test_one_interface_and_every_prefix_of_levels_decodes(kind: str) -> None:
    quantizer, latents = started(kind, levels=3)
    quantizer.eval()
    codes = quantizer.encode(latents)
    assert codes.shape == (2, 3, 6, 5) and codes.dtype == torch.int64
    assert quantizer.codebooks.shape == (3, quantizer.size, quantizer.dim)
    assert int(codes.min()) >= 0 and int(codes.max()) < quantizer.size
    target = quantizer.continuous(latents)
    with torch.no_grad():
        errors = [float((quantizer.decode(codes[:, :n]) - target).square().mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(quantizer.encode(latents, 2), codes[:, :2])
    found = quantizer(latents)
    assert torch.equal(found.codes, codes)
    assert torch.allclose(found.latents, quantizer.decode(codes), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_brings_back_the_same_codes(kind: str) -> None:
    quantizer, latents = started(kind)
    other = quantizer_of(kind)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval().encode(latents), quantizer.eval().encode(latents))


@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("normalize", [False, True])
def test_search_finds_the_nearest_and_ties_go_low(kind: str, normalize: bool) -> None:
    torch.manual_seed(1)
    quantizer = quantizer_of(kind, levels=1, size=64, dim=8, normalize=normalize)
    quantizer.start(torch.randn(500, 8) + 100.0 * (not normalize))  # far from zero: distances are taken centred
    rows = torch.randn(300, 8)
    with torch.no_grad():
        truth = torch.cdist(rows.double(), quantizer.table(0).double()).argmin(1)
        assert torch.equal(quantizer.search(rows, 0), truth)
        quantizer.codebooks[0, 5] = quantizer.codebooks[0, 40] = rows[0]
        assert int(quantizer.search(rows[:1], 0)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_batch_changes_no_codebook(kind: str) -> None:
    quantizer, latents = started(kind)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    latents[0, 0, 0, 0] = float("nan")
    assert not quantizer.train()(latents).finite
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    with pytest.raises(InputError, match="NON_FINITE"):
        quantizer.eval().encode(latents)


def test_codebooks_do_not_start_from_nothing_finite() -> None:
    with pytest.raises(InputError, match="NON_FINITE"):
        quantizer_of("ema").start(torch.full((10, 4), float("inf")))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_revived_code_stays_alive(kind: str) -> None:
    torch.manual_seed(3)
    quantizer = quantizer_of(kind, levels=1, size=32, dim=2, decay=0.9).train()
    quantizer.start(torch.randn(500, 2))
    with torch.no_grad():
        quantizer.codebooks[0, 7] = 1e4  # where nothing ever comes
        if kind == "ema":
            quantizer.sums[0, 7] = 1e4 * quantizer.counts[0, 7]
    for _ in range(80):
        quantizer(torch.randn(1, 2, 16, 16))
    assert quantizer.codebooks[0, 7].abs().max() < 10
    counts = torch.bincount(quantizer.encode(torch.randn(1, 2, 64, 64)).flatten(), minlength=32)
    assert (counts > 0).float().mean() > 0.9


def test_without_revival_a_dead_code_stays_dead() -> None:
    torch.manual_seed(3)
    quantizer = quantizer_of("vq", levels=1, size=32, dim=2, decay=0.9, revive=False).train()
    quantizer.start(torch.randn(500, 2))
    with torch.no_grad():
        quantizer.codebooks[0, 7] = 1e4
    for _ in range(80):
        quantizer(torch.randn(1, 2, 16, 16))
    assert float(quantizer.codebooks[0, 7].detach().min()) == 1e4


def test_codes_without_a_price_are_used_evenly_and_their_counts_stay_bounded() -> None:
    def trained(penalty: float) -> tuple[float, float]:
        torch.manual_seed(4)
        quantizer = quantizer_of("ema", levels=1, size=64, dim=4, rate_penalty=penalty).train()
        latents = torch.randn(8, 4, 16, 16) * torch.rand(8, 1, 16, 16) ** 4
        quantizer.start(latents.movedim(1, -1).reshape(-1, 4))
        for _ in range(100):
            quantizer(latents)
        codes = quantizer.eval().encode(latents)
        return entropy(torch.bincount(codes.flatten(), minlength=64).numpy()), float(quantizer.counts.sum())

    (even, counted), (uneven, _) = trained(0.0), trained(1e-6)
    assert even > 5.6 > uneven + 0.2  # of 6 bits
    assert counted < 2 * 8 * 16 * 16  # a code that is revived raises the sum, not what the next is measured by


def test_a_conscience_evens_codes_in_training_and_leaves_the_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(conscience: float) -> tuple[float, float]:
        monkeypatch.setattr(codebooks, "CONSCIENCE", conscience)
        torch.manual_seed(4)
        quantizer = quantizer_of("ema", levels=1, size=64, dim=4).train()
        latents = torch.randn(8, 4, 16, 16) * torch.rand(8, 1, 16, 16) ** 2
        rows = latents.movedim(1, -1).reshape(-1, 4)
        quantizer.start(rows)
        for _ in range(100):
            quantizer(latents)
        far = torch.cdist(rows - quantizer.centre, quantizer.table(0)).min(1).values
        found = quantizer.eval().find(latents)
        assert torch.allclose(found.squares.flatten().sqrt(), far, atol=1e-4), "nearest, whatever it learned by"
        return entropy(torch.bincount(found.codes.flatten(), minlength=64).numpy()), float(far.square().mean())

    (even, near), (uneven, nearest) = trained(0.05), trained(0.0)
    assert even > uneven + 0.03 and near < 1.05 * nearest


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_random_numbers_leave_most_of_a_codebook_unused(kind: str) -> None:
    """Why codebooks start from data: latents are small and lie to one side, random codes lie all around."""
    torch.manual_seed(4)
    latents = 0.1 * torch.randn(2, 8, 16, 16) + 0.5
    shares = {}
    for from_data in (True, False):
        quantizer = quantizer_of(kind, levels=1, size=64, dim=8, from_data=from_data)
        quantizer.start(latents.movedim(1, -1).reshape(-1, 8))
        shares[from_data] = len(quantizer.encode(latents).unique()) / 64
    assert shares[True] > 0.9 and shares[False] < 0.1


def test_a_learned_codebook_follows_its_gradient_and_draws_the_latents() -> None:
    quantizer, latents = started("vq", levels=1)
    latents.requires_grad_(True)
    found = quantizer.train()(latents)
    found.loss.backward()
    rows = latents.detach().movedim(1, -1).reshape(-1, 4) - quantizer.centre
    codes = found.codes.flatten()
    codebook = quantizer.codebooks.detach()[0]
    assert float(found.loss.detach()) == pytest.approx(float((rows - codebook[codes]).square().mean()), rel=1e-5)
    expected = torch.zeros(16, 4).index_add_(0, codes, 2 * (codebook[codes] - rows)) / rows.numel()
    assert torch.allclose(quantizer.codebooks.grad[0], expected, atol=1e-6)
    towards = 2 * (rows - codebook[codes]) / rows.numel()
    assert torch.allclose(latents.grad.movedim(1, -1).reshape(-1, 4), towards, atol=1e-6)


def test_a_moving_average_codebook_takes_no_gradient() -> None:
    quantizer, latents = started("ema")
    assert list(quantizer.parameters()) == []
    latents.requires_grad_(True)
    quantizer.train()(latents).loss.backward()
    assert float(latents.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_normalized_codes_lie_on_the_sphere_and_only_direction_counts(kind: str) -> None:
    quantizer, latents = started(kind, normalize=True)
    for _ in range(3):
        quantizer.train()(torch.randn(2, 4, 6, 5))
    lengths = quantizer.table(0).detach().norm(dim=1)
    assert torch.allclose(lengths, torch.full((16,), 2.0), atol=1e-4)
    quantizer.eval()
    assert torch.equal(quantizer.encode(latents), quantizer.encode(7 * latents))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_level_dropout_takes_the_share_that_it_is_told(share: float) -> None:
    torch.manual_seed(5)
    quantizer = quantizer_of("ema", levels=4, level_dropout=share)
    keep = quantizer.train()._keep((4000, 1), torch.zeros(4000, 4))
    if share == 0:
        assert keep is None
    else:
        assert keep is not None
        assert torch.bincount(keep, minlength=5)[1:].float().div(4000).sub(0.25).abs().max() < 0.03
    assert quantizer.eval()._keep((4000, 1), torch.zeros(4000, 4)) is None


def test_scalar_codes_are_the_papers() -> None:
    quantizer = ScalarQuantizer(1, (8, 5, 5, 5)).eval()
    assert (quantizer.size, quantizer.dim) == (1000, 4)
    table = quantizer.codebooks[0]
    assert len(table.unique(dim=0)) == 1000
    assert table[:, 0].unique().tolist() == pytest.approx([-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75])
    assert table[:, 3].unique().tolist() == pytest.approx([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert table[1].tolist() == pytest.approx([-0.75, -1.0, -1.0, -1.0])  # the first dimension changes fastest
    far = torch.tensor([[-1e6] * 4, [1e6] * 4, [0.0] * 4])[:, :, None]
    assert torch.equal(quantizer.encode(far).flatten(), torch.tensor([0, 999, 4 + 2 * 8 + 2 * 40 + 2 * 200]))
    latents = torch.randn(1, 4, 2000)
    inside = quantizer.continuous(latents)
    assert (quantizer.decode(quantizer.encode(latents)) - inside).abs().max() <= 0.25 + 1e-6  # half a step of five


def test_every_residual_level_of_scalars_divides_the_error() -> None:
    quantizer = ScalarQuantizer(3, (5, 5)).eval()
    latents = torch.randn(1, 2, 3000)
    codes = quantizer.encode(latents)
    inside = quantizer.continuous(latents)
    worst = [float((quantizer.decode(codes[:, :n]) - inside).abs().max()) for n in (1, 2, 3)]
    assert worst == pytest.approx([0.25, 0.05, 0.01], rel=0.02)


def test_scalars_pass_the_gradient_and_ask_for_no_commitment() -> None:
    quantizer, latents = started("fsq")
    latents.requires_grad_(True)
    found = quantizer.train()(latents)
    assert float(found.loss) == 0
    found.latents.sum().backward()
    assert float(latents.grad.min()) > 0


def test_the_rotation_is_the_papers() -> None:
    torch.manual_seed(6)
    e, q, g = (torch.randn(50, 6, dtype=torch.float64) for _ in range(3))
    e.requires_grad_(True)
    out = rotated(e, q)
    assert torch.allclose(out, q)
    out.backward(g)
    for row in range(50):
        a, b = e.detach()[row] / e.detach()[row].norm(), q[row] / q[row].norm()
        r = (a + b) / (a + b).norm()
        turn = torch.eye(6, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        assert torch.allclose(turn @ turn.T, torch.eye(6, dtype=torch.float64)) and torch.allclose(turn @ a, b)
        scale = q[row].norm() / e.detach()[row].norm()
        assert torch.allclose(e.grad[row], scale * turn.T @ g[row])


def test_where_there_is_nothing_to_turn_the_gradient_goes_straight_through() -> None:
    e = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], requires_grad=True)
    q = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # from nothing, opposite, to nothing
    out = rotated(e, q)
    assert torch.equal(out, q)
    out.sum().backward()
    assert torch.equal(e.grad, torch.ones(3, 2))
    assert torch.equal(straight_through(e, q).detach(), q)


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_the_rotation_learns_as_the_quantizers_option(kind: str) -> None:
    quantizer, latents = started(kind, rotation=True)
    latents.requires_grad_(True)
    found = quantizer.train()(latents)
    found.latents.square().sum().backward()
    assert torch.isfinite(latents.grad).all() and float(latents.grad.abs().sum()) > 0


@pytest.mark.parametrize("rows", [3, 64, 500])
def test_kmeans_gives_as_many_centres_as_asked(rows: int) -> None:
    centres, index = kmeans(torch.randn(rows, 3), 64, 4)
    assert centres.shape == (64, 3) and torch.isfinite(centres).all()
    assert index.shape == (rows,) and int(index.max()) < 64


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_rate_penalty_saves_bits_for_little_distance(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "EVEN", codebooks.SPARING)  # the price alone, not what else goes with it
    monkeypatch.setattr(codebooks, "CONSCIENCE", 0.0)

    def trained(penalty: float) -> tuple[float, float]:
        torch.manual_seed(4)
        quantizer = quantizer_of(kind, levels=1, size=64, dim=4, rate_penalty=penalty)
        latents = torch.randn(8, 4, 16, 16) * torch.rand(8, 1, 16, 16) ** 4  # most are near nothing, as air is
        quantizer.start(latents.movedim(1, -1).reshape(-1, 4))
        quantizer.train()
        for _ in range(60):
            quantizer(latents)
        quantizer.eval()
        codes = quantizer.encode(latents)
        rest = float((quantizer.decode(codes) - latents).square().mean().detach())
        return entropy(torch.bincount(codes.flatten(), minlength=64).numpy()), rest

    (bits, rest), (fewer, more) = trained(0.0), trained(0.2)
    assert fewer < 0.82 * bits and rest < more < 1.2 * rest


def test_prices_follow_use_and_travel_with_the_weights() -> None:
    quantizer, latents = started("ema", levels=1, rate_penalty=0.2)
    quantizer.train()
    quantizer(latents)
    used = quantizer.counts[0].argsort()
    assert float(quantizer.prices[0][used[-1]]) < float(quantizer.prices[0][used[0]])
    other = quantizer_of("ema", levels=1, rate_penalty=0.2)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval().encode(latents), quantizer.eval().encode(latents))
    plain = quantizer_of("ema").train()
    plain.start(latents.movedim(1, -1).flatten(0, -2))
    assert "prices" not in plain.state_dict(), "none where codes have no price"
    plain(latents)
    assert plain.state_dict()["spread"].min() > 0, "what a resumed run measures common codes by"


def test_a_learned_codebook_on_a_sphere_revives_codes_of_later_levels() -> None:
    quantizer, latents = started("vq", levels=2, normalize=True)
    quantizer.train()
    quantizer.counts[1, 3] = 0.0
    found = quantizer(latents.requires_grad_())
    (found.loss + found.latents.sum()).backward()
    assert torch.isfinite(quantizer.codebooks.grad).all() and quantizer.counts[1, 3] > 0


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_codes_are_searched_in_float32_under_autocast(kind: str) -> None:
    quantizer, _ = started(kind)
    latents = torch.randn(4, quantizer.dim, 40, 40)
    plain = quantizer.eval().encode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), plain)
    with torch.autocast("cpu", torch.bfloat16):
        rough = quantizer.search(latents.movedim(1, -1).reshape(-1, quantizer.dim) - quantizer.centre, 0)
    assert not torch.equal(rough, plain[:, 0].flatten()), "these latents would not tell the difference"

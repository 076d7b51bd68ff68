"""The adversary: silent before its time, weighed against the reconstruction, and safe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_model_encode import volume

from archive.settings import TrainSettings
from model import bundle
from model.adversary import Adversary
from model.config import ModelConfig, resolve
from model.progress import read
from model.train import train
from model.vqvae import VQVAE, Output


def made(preset: str = "tiny", after: int = 0, weight: float = 0.5) -> tuple[ModelConfig, VQVAE, Adversary]:
    torch.manual_seed(0)
    config = resolve(preset).model_copy(update={"adversarial": weight, "adversarial_after": after})
    return config, VQVAE(config), Adversary(config).to("cpu")


def last_weight(model: VQVAE) -> torch.Tensor:
    return [parameter for parameter in model.decoder.parameters() if parameter.dim() > 1][-1]


def passed(config: ModelConfig, model: VQVAE) -> tuple[torch.Tensor, Output]:
    batch = torch.randn(2, 1, *config.axes(config.patch))
    return batch, model.train()(batch, False)


def test_before_its_time_it_says_and_learns_nothing() -> None:
    config, model, adversary = made(after=10)
    batch, output = passed(config, model)
    before = {name: tensor.clone() for name, tensor in adversary.state_dict().items()}
    assert adversary.generator_term(output, batch, last_weight(model), 9) is None
    assert adversary.learn([batch], [output.reconstruction]) == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in adversary.state_dict().items())
    assert adversary.generator_term(output, batch, last_weight(model), 10) is not None


@pytest.mark.parametrize("preset", ["tiny", "tiny-3d"])
def test_its_pull_on_the_last_layer_is_the_share_it_was_given(preset: str) -> None:
    config, model, adversary = made(preset, weight=0.5)
    batch, output = passed(config, model)
    weight = last_weight(model)
    term = adversary.generator_term(output, batch, weight, 0)
    assert term is not None
    theirs = torch.autograd.grad(term, weight, retain_graph=True)[0].norm()
    ours = torch.autograd.grad(config.alpha * output.l_rec, weight, retain_graph=True)[0].norm()
    assert float(theirs / ours) == pytest.approx(0.5, rel=0.2)  # 1e-4 beside a small norm
    (output.loss + term).backward()
    assert all(parameter.grad is None for parameter in adversary.critic.parameters())


def test_it_learns_to_tell_images_from_reconstructions() -> None:
    config, model, adversary = made()
    batch, output = passed(config, model)
    adversary.generator_term(output, batch, last_weight(model), 0)
    losses = [adversary.learn([batch], [output.reconstruction])["adversary"] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    assert output.reconstruction.requires_grad  # its graph was not touched


def test_batches_that_make_one_step_teach_it_together() -> None:
    config, model, adversary = made()
    both = [passed(config, model) for _ in range(2)]
    adversary.generator_term(both[0][1], both[0][0], last_weight(model), 0)
    torch.manual_seed(9)
    other = Adversary(config).to("cpu")
    other.load_state_dict(adversary.state_dict())
    other.active = True
    told = adversary.learn([batch for batch, _ in both], [output.reconstruction for _, output in both])
    batch, made_of = torch.cat([batch for batch, _ in both]), torch.cat([output.reconstruction for _, output in both])
    assert other.learn([batch], [made_of]) == pytest.approx(told, abs=1e-5)
    for mine, theirs in zip(adversary.critic.parameters(), other.critic.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_training_with_it_makes_other_weights_and_records_what_it_says(tmp_path: Path) -> None:
    volumes = {f"s{i}": volume("zyx", (4, 48, 48)) for i in range(2)}
    weights, lines = {}, {}
    for share in (0.0, 0.5):
        settings = TrainSettings(
            steps=25, adversarial=share, adversarial_after=20, accumulate=2, threads=1, codebook_size=16
        )
        config = resolve("tiny", settings, channels=1, intensity="robust")
        result = train(volumes, {}, config, settings, tmp_path / str(share), 60.0)
        weights[share] = bundle.load(result.folder).state_dict()
        lines[share] = read(result.folder / "metrics.jsonl")
    assert any(not torch.equal(tensor, weights[0.5][name]) for name, tensor in weights[0.0].items())
    assert not any("adversary" in line for line in lines[0.0])
    told = [line for line in lines[0.5] if "adversary" in line]
    assert told and all(line["step"] > 20 for line in told)
    assert told[-1].keys() >= {"adversary_on_images", "adversary_on_decoded"}


def test_a_bad_batch_changes_nothing() -> None:
    config, model, adversary = made()
    batch, output = passed(config, model)
    adversary.generator_term(output, batch, last_weight(model), 0)
    adversary.learn([batch], [output.reconstruction])
    before = {name: tensor.clone() for name, tensor in adversary.state_dict().items()}
    batch[0, 0, 0, 0] = float("nan")
    adversary.learn([batch], [output.reconstruction])
    assert all(torch.equal(before[name], tensor) for name, tensor in adversary.state_dict().items())


def test_its_state_goes_on_exactly() -> None:
    config, model, adversary = made()
    batch, output = passed(config, model)
    adversary.generator_term(output, batch, last_weight(model), 0)
    adversary.learn([batch], [output.reconstruction])
    torch.manual_seed(9)
    other = Adversary(config).to("cpu")
    other.load_state_dict({name: tensor.clone() for name, tensor in adversary.state_dict().items()})
    other.active = True
    assert adversary.learn([batch], [output.reconstruction]) == other.learn([batch], [output.reconstruction])
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adversary.state_dict().items())

"""The optional adversary: a patch discriminator that learns to tell reconstructions from images. It can invent structure.

Off by default (`config.adversarial`). Esser 2021 (VQGAN, 2012.09841): hinge loss, patches, adaptive weight, late start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.distributed import agreed, average_gradients, shared
from model.vqvae import Output

WIDTH = 64  # channels after the first convolution; twice as many after each more
MOST_LAYERS = 3  # strided ones: a judgement then sees about 70 voxels across
LEARNING_RATE = 2e-4
LARGEST_WEIGHT = 1e4  # of the adaptive weight
CLIP = 1.0


class Adversary:
    """A discriminator with its own optimiser; equal on all ranks where gradients are.

    Until step `adversarial_after` it neither judges nor learns, so that the autoencoder is good before it is fooled.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.critic = _critic(config)
        self.optimiser = torch.optim.Adam(self.critic.parameters(), LEARNING_RATE, betas=(0.5, 0.9))
        self.active = False

    def to(self, device: torch.device | str) -> Adversary:
        """Onto a device, with rank 0's weights where several train together."""
        self.critic.to(device)
        for tensor in self.critic.state_dict().values():
            shared(tensor)
        return self

    def generator_term(self, output: Output, batch: Tensor, last_weight: Tensor, step: int) -> Tensor | None:
        """What is added to the loss of a batch: -D(reconstruction), so weighed that its gradient on `last_weight` is
        `config.adversarial` times that of alpha * L_rec; None before its time, or where it is not finite.

        output: of the very forward pass, with its graph. last_weight: the decoder's last weight.
        """
        self.active = step >= self.config.adversarial_after
        if not self.active:
            return None
        for parameter in self.critic.parameters():
            parameter.requires_grad_(False)
        try:
            with torch.autocast(batch.device.type, enabled=False):
                term = -self.critic(output.reconstruction.float()).mean()
            ours = torch.autograd.grad(self.config.alpha * output.l_rec, last_weight, retain_graph=True)[0].norm()
            theirs = torch.autograd.grad(term, last_weight, retain_graph=True)[0].norm()
        finally:
            for parameter in self.critic.parameters():
                parameter.requires_grad_(True)
        weight = (ours / (theirs + 1e-4)).clamp(0, LARGEST_WEIGHT).detach() * self.config.adversarial
        weighed: Tensor = weight * term
        return weighed if bool(torch.isfinite(weighed)) else None

    def learn(self, batches: Sequence[Tensor], reconstructions: Sequence[Tensor]) -> dict[str, float]:
        """One step of the discriminator on all batches of a step together; its hinge loss and its mean judgement of images
        and of reconstructions, empty before its time.

        A batch that gives anything not finite, on any rank, changes nothing.
        """
        if not self.active:
            return {}
        self.optimiser.zero_grad(set_to_none=True)
        told = torch.zeros(3, device=batches[0].device)
        for batch, reconstruction in zip(batches, reconstructions, strict=True):
            with torch.autocast(batch.device.type, enabled=False):
                real = self.critic(batch.float())
                fake = self.critic(reconstruction.detach().float())
                part = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / len(batches)
            part.backward()
            told += torch.stack(
                [part.detach(), real.detach().mean() / len(batches), fake.detach().mean() / len(batches)]
            )
        loss, images, others = told.unbind()
        parameters = list(self.critic.parameters())
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, CLIP)
        if agreed(bool(torch.isfinite(norm)) and bool(torch.isfinite(loss)), told.device):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"adversary": float(loss), "adversary_on_images": float(images), "adversary_on_decoded": float(others)}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and moments by name: tensors alone."""
        tensors = {f"critic.{name}": tensor for name, tensor in self.critic.state_dict().items()}
        for name, parameter in self.critic.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}/{key}"] = value
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """What `state_dict` gave."""
        head = "critic."
        self.critic.load_state_dict({name[len(head) :]: t for name, t in tensors.items() if name.startswith(head)})
        self.optimiser.state.clear()
        for name, parameter in self.critic.named_parameters():
            head = f"optimiser.{name}/"
            state = {key[len(head) :]: value.clone() for key, value in tensors.items() if key.startswith(head)}
            if state:  # the moments beside the weights, the count of steps as it was
                at = parameter.device
                self.optimiser.state[parameter] = {k: v if k == "step" else v.to(at) for k, v in state.items()}


def _critic(config: ModelConfig) -> nn.Sequential:
    """Strided convolutions to one judgement per patch (Isola 2017, 1611.07004); [B, C, *size] to [B, 1, *grid].

    Without normalisation over the batch, which would differ between ranks.
    """
    convolution = nn.Conv2d if config.dims == 2 else nn.Conv3d
    smallest = min(config.axes(config.patch))
    count = max(1, min(MOST_LAYERS, smallest.bit_length() - 2))
    layers: list[nn.Module] = []
    inputs = config.channels
    for number in range(count):
        outputs = WIDTH * 2**number
        layers += [convolution(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inputs = outputs
    return nn.Sequential(*layers, convolution(inputs, 1, 3, padding=1))

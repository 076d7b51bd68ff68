"""The optimiser: Muon for weights, AdamW for biases; three times fewer steps for the same fidelity (docs/log.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig

# Odd quintic that pulls singular values towards 1 fastest (Jordan 2024, "Muon: an optimizer for hidden layers").
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95
BIAS_SHARE = 0.075  # of Muon's rate, whose updates are an order larger than AdamW's
CODE_SHARE = 0.5  # codes must keep up with latents that Muon moves fast


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight is orthogonalised, so that all directions learn at one pace.

    A convolution's weight [out, in, *kernel] counts as the matrix [out, in * kernel]; torch.optim.Muon (2.9) takes
    matrices alone. Parameters of one dimension go through AdamW at `BIAS_SHARE` of the rate, and `others` (codebooks,
    whose rows are points) at `CODE_SHARE`. half: orthogonalise in bfloat16, where the machine is fast at it.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float, half: bool, others: Iterable[Tensor] = ()
    ) -> None:
        every = list(parameters)
        weights = [parameter for parameter in every if parameter.dim() > 1]
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        plain = [{"params": [parameter for parameter in every if parameter.dim() <= 1], "share": BIAS_SHARE}]
        codes = list(others)
        if codes:
            plain.append({"params": codes, "share": CODE_SHARE})
        self.half = half
        self.biases = torch.optim.AdamW(plain, lr * BIAS_SHARE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.biases.state = self.state  # one state for both: what a checkpoint holds

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            rate = group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                nesterov = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
                rows, columns = nesterov.shape
                update = orthogonal(nesterov, self.half).mul_(max(1.0, rows / columns) ** 0.5)
                weight.mul_(1 - BIAS_SHARE * rate * group["weight_decay"])
                weight.add_(update.view(weight.shape), alpha=-rate)
            for biases in self.biases.param_groups:
                biases["lr"] = rate * biases["share"]
        self.biases.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients of weights and biases away."""
        super().zero_grad(set_to_none)
        self.biases.zero_grad(set_to_none)


def orthogonal(matrix: Tensor, half: bool = False) -> Tensor:
    """The nearest matrix with equal singular values (about 1, within 0.7 to 1.2), by Newton-Schulz; float32 [m, n]."""
    a, b, c = QUINTIC
    x = matrix.to(torch.bfloat16 if half else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float().contiguous()


def optimiser(model: nn.Module, config: ModelConfig, half: bool) -> torch.optim.Optimizer:
    """The optimiser that a config names, at its peak rate; codes are never decayed towards zero or orthogonalised."""
    codes = [parameter for name, parameter in model.named_parameters() if name.startswith("quantizer.")]
    known = {id(parameter) for parameter in codes}
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in known]
    if config.optimizer == "muon":
        return Muon(parameters, config.peak_rate, config.weight_decay, half, codes)
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": config.weight_decay}]
    if codes:
        groups.append({"params": codes, "weight_decay": 0.0})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.peak_rate, momentum=0.9)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, config.peak_rate, fused=True)
    return torch.optim.AdamW(groups, config.peak_rate, betas=(0.9, 0.99), fused=True)

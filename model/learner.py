"""The model while it learns: weights, their average, the optimiser and the adversary, and one step of all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from model import checkpoint
from model.adversary import Adversary
from model.config import ModelConfig
from model.device import fast_bfloat16
from model.distributed import agreed, average_gradients, reduced, shared, world
from model.optimise import optimiser
from model.vqvae import VQVAE, Output

log = logging.getLogger(__name__)

CLIP = 1.0  # largest norm of the gradient


class Learner:
    """A model and everything that changes with it; equal on all ranks, because only sums over ranks change it.

    half: bfloat16 autocast. spiked: the last step was left out for its loss. average: moving average of every
    parameter, what is published. counts: int64 [L, K], how often each code was chosen since it was last cleared.
    """

    def __init__(self, config: ModelConfig, device: torch.device, compiled: bool = False) -> None:
        self.config, self.device = config, device
        self.half = fast_bfloat16(device) and not _unsound(config, device)
        self.spiked = False
        torch.manual_seed(config.seed)
        self.model = VQVAE(config).to(device)
        if config.dims == 2:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for tensor in self.model.state_dict().values():
            shared(tensor)
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimiser = optimiser(self.model, config, self.half)
        self.adversary = Adversary(config).to(device) if config.adversarial else None
        self.judged: dict[str, float] = {}  # what the adversary said of the last step, where it had a say
        self.counts = torch.zeros(config.levels, config.codebook_size, dtype=torch.int64, device=device)
        if compiled:
            self._compile()

    @property
    def ready(self) -> bool:
        """Whether the codebooks have been started."""
        return self.model.quantizer.ready

    def advance(
        self, batches: Sequence[Tensor], step: int, rate: float, quantize: bool, most: float = math.inf
    ) -> Output | None:
        """One step of the optimiser on the gradients of all batches [B, C, *patch] together.

        rate: the learning rate. most: a larger loss is not learned from.
        Gives the last batch's output, its loss being the mean over batches and ranks; None where that is more than
        `most` (self.spiked) or anything was not finite: then weights, moments, averages and codebooks are what they
        were, bit for bit.
        """
        self._seed(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        before = [tensor.clone() for tensor in self.model.quantizer.state_dict().values()]  # learned codes too
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        finite, made = True, []
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                output: Output = self.model(batch, quantize)
            finite = agreed(finite and output.finite and bool(torch.isfinite(output.loss)), self.device)
            if not finite:
                break
            loss = output.loss
            if self.adversary is not None and quantize:
                term = self.adversary.generator_term(output, batch, self._last_weight(), step)
                loss = loss if term is None else loss + term
                made.append(output.reconstruction.detach())
            (loss / len(batches)).backward()
            total += output.loss.detach() / len(batches)
        mean = reduced(total) / world() if finite else total  # all ranks agree on `finite`
        why, self.spiked = "" if finite else "its loss is not finite", bool(finite and mean > most)
        if self.spiked:
            why = f"its loss of {float(mean):.3g} is far above the usual one"
        elif finite:
            average_gradients(self.parameters)
            if not torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, CLIP)):
                why = "its gradient is not finite"
        if why:
            for tensor, old in zip(self.model.quantizer.state_dict().values(), before, strict=True):
                tensor.copy_(old)
            self.optimiser.zero_grad(set_to_none=True)
            log.warning("step %d skipped: %s; weights and codebook are as before", step, why)
            return None
        self.optimiser.step()
        decay = min(self.config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        if self.adversary is not None and quantize:
            self.judged = self.adversary.learn(batches, made)
        if quantize:
            for level in range(self.config.levels):
                codes = output.codes[:, level].flatten()
                self.counts[level] += torch.bincount(codes, minlength=self.config.codebook_size)
        return replace(output, loss=mean)

    @torch.no_grad()
    def start_codebooks(self, batches: Sequence[Tensor], step: int) -> None:
        """Codebooks from the latents of several batches; averages of learned codebooks start with them."""
        self._seed(step)
        self.model.eval()
        rows = []
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                latents = self.model.encoder(batch)
            rows.append(latents.float().movedim(1, -1).reshape(-1, self.config.code_dim))
        self.model.quantizer.start(torch.cat(rows))
        own = {id(parameter) for parameter in self.model.quantizer.parameters()}
        for parameter, mean in zip(self.parameters, self.average, strict=True):
            if id(parameter) in own:
                mean.copy_(parameter)

    def snapshot(self) -> dict[str, Tensor]:
        """Everything that learning goes on from, by name; copies on the device."""
        tensors = checkpoint.collect(self.model, self.average, self.optimiser)
        if self.adversary is not None:
            mine = self.adversary.state_dict().items()
            tensors |= {f"adversary.{name}": tensor.detach().clone() for name, tensor in mine}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Be what `snapshot` saw."""
        checkpoint.restore(tensors, self.model, self.average, self.optimiser)
        if self.adversary is not None:
            self.adversary.load_state_dict(checkpoint.under("adversary.", tensors))

    def published(self) -> dict[str, Tensor]:
        """The model's state with the averaged weights in it; copies."""
        with self.averaged():
            return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    @contextmanager
    def averaged(self) -> Iterator[VQVAE]:
        """The model with its averaged weights while the block runs."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_([parameter.detach() for parameter in self.parameters], self.average)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                torch._foreach_copy_([parameter.detach() for parameter in self.parameters], own)

    def finished(self, state: Mapping[str, Tensor]) -> VQVAE:
        """The model with a published state in it, laid out plainly and ready to encode; learning ends here."""
        self.model.load_state_dict(state)
        for part in (self.model.encoder, self.model.decoder):
            part._compiled_call_impl = None  # other sizes come now, each of which would be compiled anew
        self.model = self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return self.model

    def _seed(self, step: int) -> None:
        """Dropout, revived codes and k-means depend on seed and step alone, so that a resumed run sees the same."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) % 2**63)

    def _last_weight(self) -> Tensor:
        return [parameter for parameter in self.model.decoder.parameters() if parameter.dim() > 1][-1]

    def _compile(self) -> None:
        """torch.compile of encoder and decoder, tried on zeros; plain where it fails, with a word in the log."""
        shape = (self.config.batch_size, self.config.channels, *self.config.axes(self.config.patch))
        parts = (self.model.encoder, self.model.decoder)
        try:
            for part in parts:
                part.compile()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                self.model.decoder(self.model.encoder(torch.zeros(shape, device=self.device))).sum().backward()
        except Exception as error:  # of the compiler, the C++ or CUDA toolchain behind it, whichever is missing
            log.warning("torch.compile failed (%s): training goes on without it, slower", type(error).__name__)
            for part in parts:
                part._compiled_call_impl = None
        self.model.zero_grad(set_to_none=True)


def _unsound(config: ModelConfig, device: torch.device) -> bool:
    """Whether bfloat16 would give wrong gradients.

    On CPUs the weights' gradient of a 3 x 3 x 3 convolution over exactly two slices comes out of memory that nobody has
    written (oneDNN of torch 2.13: not finite whenever that memory held such numbers; one and four slices are right).
    """
    depth, cell = config.patch[0], config.downsample[0]
    return (
        config.dims == 3
        and device.type == "cpu"
        and any(depth == 2 * by for by in range(1, cell + 1) if cell % by == 0)
    )

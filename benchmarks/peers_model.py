"""The models that voxbook's is raced against, each with a plain loop that trains it on the same patches.

MONAI's VQVAE by its tutorial's recipe and by ours; and voxbook's own autoencoder with its quantizer or with
vector-quantize-pytorch's ResidualVQ in it, which differ in nothing else.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.device import fast_bfloat16
from model.loss import measure
from model.optimise import optimiser
from model.patches import PatchSampler
from model.quantize import Found, Quantized
from model.vqvae import VQVAE

CPU = torch.device("cpu")
RESERVOIR_BATCHES = 8
WARMUP = 20


class Learner(Protocol):
    """A contestant that also learns. anneals: its rate goes to nothing at the end, so every budget is a run of its own."""

    cell: tuple[int, int]
    codebook_size: int
    anneals: bool

    def step(self, batch: Tensor, share: float) -> None:
        """Learn from patches [B, C, y, x] in the model's range; share: how much of the training is done."""
        ...

    def codes(self, x: Tensor) -> Tensor: ...

    def pictures(self, codes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Mark:
    """What a learner had done when a budget was spent. step_ms: median over the run's later half."""

    minutes: float
    steps: int
    seconds: float
    step_ms: float


@dataclass
class Clock:
    """Seconds that count: measuring in between does not."""

    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds so far."""
        return self.spent + time.monotonic() - self.began

    def stop(self) -> None:
        """Hold it."""
        self.spent = self.now()

    def go(self) -> None:
        """Let it run on."""
        self.began = time.monotonic()


def learn(
    learner: Learner,
    sampler: PatchSampler,
    minutes: list[float],
    at_mark: Callable[[Mark], None],
    steps: int | None = None,
) -> None:
    """Train until the last budget (or `steps`) is spent and call `at_mark` at each, while the clock stands still."""
    clock, stop = Clock(), threading.Event()
    lasted: list[float] = []
    marks = sorted(minutes)
    total = 60.0 * marks[-1]
    done = 0
    try:
        for batch in sampler.batches(0, stop):
            share = done / steps if steps else clock.now() / total
            while marks and share < 1 and not steps and clock.now() >= 60.0 * marks[0]:
                clock.stop()
                at_mark(_mark(marks.pop(0), done, clock.spent, lasted))
                clock.go()
            if share >= 1:
                break
            began = time.monotonic()
            learner.step(torch.from_numpy(batch), share)
            lasted.append(time.monotonic() - began)
            done += 1
    finally:
        stop.set()
    clock.stop()
    for left in marks[-1:] if steps else marks:  # one long step may pass several
        at_mark(_mark(left, done, clock.spent, lasted))


def _mark(minutes: float, steps: int, seconds: float, lasted: list[float]) -> Mark:
    later = lasted[len(lasted) // 2 :] or [0.0]
    return Mark(minutes, steps, round(seconds, 2), round(1000 * statistics.median(later), 1))


def rate(peak: float, step_share: float, step: int) -> float:
    """Linear warm-up, then a cosine to nothing."""
    return peak * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, step_share)))


class Monai:
    """MONAI's VQVAE with its default channels and layers, K codes of 32 dimensions on a grid of 1/8.

    recipe tutorial: pictures in [0, 1], L1 and its own commitment, Adam 1e-4 all along, the class's codebook decay of
    0.5 (Project-MONAI/tutorials, generation/2d_vqvae). recipe tuned: voxbook's range and loss, AdamW 1e-3 with warm-up
    and cosine, clipping, codebook decay 0.99. Both in bfloat16 where that is fast, the search in float32.
    """

    def __init__(self, config: ModelConfig, recipe: str, small: bool = False) -> None:
        from monai.networks.nets import VQVAE as MonaiVQVAE

        torch.manual_seed(config.seed)
        self.config, self.tutorial = config, recipe == "tutorial"
        self.anneals = not self.tutorial
        self.cell, self.codebook_size = (8, 8), config.codebook_size
        widths = (8, 8, 16) if small else (96, 96, 192)
        self.net = MonaiVQVAE(
            spatial_dims=2,
            in_channels=config.channels,
            out_channels=config.channels,
            channels=widths,
            num_res_layers=1 if small else 3,
            num_res_channels=widths,
            downsample_parameters=((2, 4, 1, 1),) * 3,
            upsample_parameters=((2, 4, 1, 1, 0),) * 3,
            num_embeddings=config.codebook_size,
            embedding_dim=32,
            decay=0.5 if self.tutorial else 0.99,
        ).to(memory_format=torch.channels_last)
        weights = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        if self.tutorial:
            self.optimiser: Any = torch.optim.Adam(weights, 1e-4)
        else:
            self.optimiser = torch.optim.AdamW(weights, 1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.weights, self.half, self.done = weights, fast_bfloat16(CPU), 0

    def step(self, batch: Tensor, share: float) -> None:
        """One step of its optimiser."""
        if not self.tutorial:
            for group in self.optimiser.param_groups:
                group["lr"] = rate(1e-3, share, self.done)
        self.net.train()
        x = self._in(batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            latents = self.net.encode(x)
        chosen, commitment = self.net.quantize(latents.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            out = self.net.decode(chosen)
        if self.tutorial:
            loss = F.l1_loss(out.float(), x) + commitment
        else:
            loss = measure(out.float(), x, commitment, self.config).l_rec + commitment
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if not self.tutorial:
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.done += 1

    def codes(self, x: Tensor) -> Tensor:
        """int64 [B, 1, h, w]."""
        self.net.eval()  # in training mode its forward would change the codebook
        return self.net.index_quantize(self._in(x))[:, None]

    def pictures(self, codes: Tensor) -> Tensor:
        """[B, C, H, W] in voxbook's range."""
        out = self.net.decode_samples(codes[:, 0])
        return out * 2 - 1 if self.tutorial else out

    def _in(self, x: Tensor) -> Tensor:
        return (x + 1) / 2 if self.tutorial else x


class Trained:
    """A trained voxbook model as a contestant."""

    def __init__(self, model: VQVAE) -> None:
        if model.config.dims != 2:
            raise ValueError("the race is between 2D models")
        self.net = model.eval()
        self.cell = (model.config.downsample[1], model.config.downsample[2])
        self.codebook_size = model.config.codebook_size

    def codes(self, x: Tensor) -> Tensor:
        """int64 [B, L, h, w]."""
        return self.net.encode(x)

    def pictures(self, codes: Tensor) -> Tensor:
        """[B, C, H, W]."""
        return self.net.decode(codes)


class OurAutoencoder:
    """voxbook's autoencoder, loss and optimiser in a plain loop, with a quantizer to compare: `ours` or `vqp`.

    Without averaged weights, guards or records; what `voxbook train` adds to that helps both alike.
    """

    anneals = True

    def __init__(self, config: ModelConfig, quantizer: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.net = config, VQVAE(config).to(memory_format=torch.channels_last)
        if quantizer == "vqp":
            self.net.quantizer = PeerQuantizer(config)
        self.cell = (config.downsample[1], config.downsample[2])
        self.codebook_size = config.codebook_size
        self.half, self.done = fast_bfloat16(CPU), 0
        self.weights = list(self.net.parameters())
        self.optimiser = optimiser(self.net, config, self.half)
        self._waiting: list[Tensor] = []

    def step(self, batch: Tensor, share: float) -> None:
        """One step; the codebooks start as voxbook's do (from eight batches), or as the peer's (from its first)."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.config.peak_rate, share, self.done)
        quantize = self.done >= self.config.quantize_after
        x = batch.contiguous(memory_format=torch.channels_last)
        if not self.net.quantizer.ready:
            self._waiting = [*self._waiting, x][-RESERVOIR_BATCHES:]
            quantize = quantize and self._start()
        self.net.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            output = self.net(x, quantize)
        self.optimiser.zero_grad(set_to_none=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.done += 1

    def codes(self, x: Tensor) -> Tensor:
        """int64 [B, L, h, w]."""
        self.net.eval()
        return self.net.encode(x)

    def pictures(self, codes: Tensor) -> Tensor:
        """[B, C, H, W]."""
        return self.net.decode(codes)

    @torch.no_grad()
    def _start(self) -> bool:
        if len(self._waiting) < RESERVOIR_BATCHES:
            return False
        self.net.eval()
        rows = [self.net.encoder(x).float().movedim(1, -1).reshape(-1, self.config.code_dim) for x in self._waiting]
        self.net.quantizer.start(torch.cat(rows))
        self._waiting = []
        return True


class PeerQuantizer(nn.Module):
    """vector-quantize-pytorch's ResidualVQ with the surface of voxbook's quantizer.

    Its k-means start, its expiry of dead codes (threshold 2, as its README advises), and voxbook's decay; no quantizer
    dropout, as ours has none beside it; its commitment is weighted as voxbook's is, by the mean over levels.
    """

    ready = True  # it starts itself from the first batch

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        self.levels, self.size, self.dim = config.levels, config.codebook_size, config.code_dim
        self.inner = ResidualVQ(
            dim=config.code_dim,
            num_quantizers=config.levels,
            codebook_size=config.codebook_size,
            decay=config.decay,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=2,
            quantize_dropout=False,
        )

    @property
    def codebooks(self) -> Tensor:
        """float32 [L, K, d]."""
        return self.inner.codebooks

    def forward(self, latents: Tensor) -> Quantized:
        """As voxbook's, in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            moved = latents.float().movedim(1, -1)
            found, codes, losses = self.inner(moved.reshape(len(moved), -1, self.dim))
            codes = codes.clamp_min(0).unflatten(1, moved.shape[1:-1]).movedim(-1, 1)
            picked = found.reshape(moved.shape).movedim(-1, 1)
            return Quantized(latents=picked, codes=codes, loss=losses.mean(), finite=True)

    def continuous(self, latents: Tensor) -> Tensor:
        """What the decoder gets while nothing is quantized yet."""
        return latents

    def encode(self, latents: Tensor, levels: int | None = None) -> Tensor:
        """int64 [B, L, *grid]."""
        return self.find(latents, levels).codes

    def find(self, latents: Tensor, levels: int | None = None) -> Found:
        """Codes and, as the library does not tell of each level, the squared distance that all of them leave."""
        moved = latents.float().movedim(1, -1)
        picked, codes, _ = self.inner(moved.reshape(len(moved), -1, self.dim))
        left = (moved - picked.reshape(moved.shape)).square().sum(-1)
        codes = codes.unflatten(1, moved.shape[1:-1]).movedim(-1, 1)[:, :levels]
        return Found(codes, left[:, None].expand(codes.shape))

    def decode(self, codes: Tensor) -> Tensor:
        """float32 [B, d, *grid]."""
        moved = codes.movedim(1, -1)
        found = self.inner.get_output_from_indices(moved.reshape(len(moved), -1, moved.shape[-1]))
        return found.reshape(*moved.shape[:-1], self.dim).movedim(-1, 1)

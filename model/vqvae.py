"""The VQ-VAE: a cheap local encoder, residual codebooks, a decoder that mirrors it; one class for 2D and 3D."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.codebooks import LearnedQuantizer, ResidualQuantizer
from model.config import ModelConfig
from model.corrections import Corrections
from model.fsq import ScalarQuantizer
from model.layers import (
    Attention,
    DepthToSpace,
    Down,
    Haar,
    InverseHaar,
    Residual,
    SpaceToDepth,
    Strided,
    StridedUp,
    Up,
    conv,
    operations,
    reach,
    reach_back,
)
from model.loss import Loss, measure
from model.quantize import Found, Quantizer


@dataclass(frozen=True)
class Output:
    """One training pass.

    reconstruction: [B, C, *size], as the input. loss: L = alpha * l_rec + (1 - alpha) * l_quant, scalar.
    mse: mean squared error alone, for PSNR. codes: int64 [B, L, *grid] (zeros while the quantizer is off).
    finite: whether the encoder's output was.
    """

    reconstruction: Tensor
    loss: Tensor
    l_rec: Tensor
    l_quant: Tensor
    mse: Tensor
    codes: Tensor
    finite: bool


class VQVAE(nn.Module):
    """Space to depth (or a wavelet), convolutions at low resolution, residual quantization, and back.

    The encoder has no normalisation and no attention over space: its reach is finite, so codes do not depend on the
    tiling. The decoder is the same unless `config.attention` is set: then whole volumes are decoded at once.
    Input [B, C, *size] in the model's range (about -1 to 1), sizes multiples of `config.downsample`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model_id = ""  # set by model.bundle; codes name it
        self.encoder = nn.Sequential(*_encoder(config))
        self.quantizer = _quantizer(config)
        self.decoder = nn.Sequential(*_decoder(config))
        self.corrections = _corrections(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.codebooks.device

    @property
    def encoder_halo(self) -> tuple[int, ...]:
        """Voxels per axis that a code sees beyond its own cell."""
        found = reach(self.encoder, self.config.dims)
        if self.corrections is None:
            return found
        # Of what is left over around a place, through the decoder's codes, to the voxels that those look at.
        back, more = reach_back(self.decoder, self.config.dims), self.corrections.reach
        cell = self.config.axes(self.config.downsample)
        return tuple(f + (b + 1) * d + more for f, b, d in zip(found, back, cell, strict=True))

    @property
    def decoder_halo(self) -> tuple[int, ...]:
        """Codes per axis that a voxel depends on beyond its own cell."""
        found = reach_back(self.decoder, self.config.dims)
        return found if self.corrections is None else tuple(max(f, self.corrections.reach_back) for f in found)

    @property
    def encoder_kflop(self) -> float:
        """Thousand floating point operations per voxel to encode, the search included; and to decode, for corrections."""
        cell = _product(self.config.downsample)
        search = self.config.levels * self.quantizer.operations / cell
        own = (operations(self.encoder, cell) + search) / 1000
        return own if self.corrections is None else own + self.decoder_kflop

    @property
    def decoder_kflop(self) -> float:
        """Thousand floating point operations per voxel to decode."""
        # The decoder starts with one position per cell.
        cell = _product(self.config.downsample)
        return operations(self.decoder, 1) / cell / 1000

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Codes int64 [B, L, *grid] of [B, C, *size]; raises InputError NON_FINITE."""
        return self.find(x, levels).codes

    def find(self, x: Tensor, levels: int | None = None) -> Found:
        """Codes of [B, C, *size], and how far the latents lie from them; raises InputError NON_FINITE."""
        return self.corrected(self.quantizer.find(self.encoder(x), self._own(levels)), x, levels)

    def corrected(self, found: Found, x: Tensor, levels: int | None = None) -> Found:
        """The codebooks' codes of [B, C, *size], and after them the corrections' that `levels` asks for."""
        count = (levels or self.config.code_levels) - self.config.levels
        if self.corrections is None or count <= 0:
            return found
        more = self.corrections.find(self.rest(found.codes, x), count)
        return Found(torch.cat([found.codes, more.codes], 1), torch.cat([found.squares, more.squares], 1))

    def rest(self, codes: Tensor, x: Tensor) -> Tensor:
        """What the decoder leaves over of [B, C, *size], float32, given the codebooks' codes."""
        with torch.autocast(x.device.type, enabled=False):
            return x.float() - self.decoder(self.quantizer.decode(codes))

    @torch.inference_mode()
    def price_corrections(self, batches: Iterable[Tensor]) -> None:
        """Learn what the corrections' codes cost from pictures [B, C, *size]; nothing where the model has none."""
        if self.corrections is not None:
            placed = (batch.to(self.device) for batch in batches)
            self.corrections.learn(self.rest(self.encode(batch, self.config.levels), batch) for batch in placed)

    def table(self, level: int) -> Tensor:
        """What the codes of a level stand for, float32 [K, d]: places in latent space, or of wavelets."""
        own = self.config.levels
        if level < own:
            return self.quantizer.table(level)
        assert self.corrections is not None  # else there is no such level
        return self.corrections.table(level - own)

    def decode(self, codes: Tensor, levels: int | None = None) -> Tensor:
        """[B, C, *size] float of codes [B, L, *grid]; levels: use only the first so many."""
        codes = codes if levels is None else codes[:, :levels]
        own = self.config.levels
        picture = self.decoder(self.quantizer.decode(codes[:, :own]))
        if self.corrections is None or codes.shape[1] <= own:
            return picture
        return picture + self.corrections.picture(codes[:, own:])

    def _own(self, levels: int | None) -> int | None:
        return None if levels is None else min(levels, self.config.levels)

    def forward(self, x: Tensor, quantize: bool = True) -> Output:
        """A training pass; quantize False leaves the codebooks out (the first steps of training)."""
        latents = self.encoder(x)
        if quantize:
            result = self.quantizer(latents)
            latents, codes, l_quant, finite = result.latents, result.codes, result.loss, result.finite
        else:
            latents = self.quantizer.continuous(latents)
            codes = torch.zeros(len(x), 1, *latents.shape[2:], dtype=torch.int64, device=x.device)
            l_quant, finite = x.new_zeros(()), bool(torch.isfinite(latents).all())
        reconstruction = self.decoder(latents)
        loss: Loss = measure(reconstruction, x, l_quant, self.config)
        return Output(reconstruction, loss.total, loss.l_rec, l_quant, loss.mse, codes, finite)


def _encoder(config: ModelConfig) -> list[nn.Module]:
    dims, fine, wide = config.dims, config.fine_width, config.width
    fold, stride = config.axes(config.unshuffle), config.axes(config.stride)
    layers: list[nn.Module] = []
    if config.stem == "strided":
        inputs = config.channels
        for step in _halvings(fold):
            layers += [Strided(dims, inputs, fine, step), nn.ReLU()]
            inputs = fine
        layers += [Residual(dims, fine) for _ in range(config.fine_blocks)]
        for step in _halvings(stride):
            layers += [Strided(dims, inputs, wide, step), nn.ReLU()]
            inputs = wide
        if not config.blocks:
            layers.pop()  # latents may be negative
    else:
        cell = config.channels * _product(fold)
        layers += [(Haar if config.stem == "haar" else SpaceToDepth)(fold), conv(dims, cell, fine, 3)]
        layers += [Residual(dims, fine) for _ in range(config.fine_blocks)]
        layers += [Down(dims, fine, wide, stride)]
    layers += [Residual(dims, wide) for _ in range(config.blocks)]
    return layers if _plain(config) else [*layers, conv(dims, wide, config.code_dim, 1)]


def _decoder(config: ModelConfig) -> list[nn.Module]:
    dims, wide, fine = config.dims, config.width, config.decoder_width
    fold, stride = config.axes(config.unshuffle), config.axes(config.stride)
    layers: list[nn.Module] = [] if _plain(config) else [conv(dims, config.code_dim, wide, 1)]
    deep = config.blocks if config.deep_blocks is None else config.deep_blocks
    layers += [Residual(dims, wide) for _ in range(deep)]
    if config.attention:
        layers += [Attention(dims, wide)]
    if config.stem == "strided":
        inputs = wide
        for step in reversed(_halvings(stride)):
            layers += [StridedUp(dims, inputs, fine, step), nn.ReLU()]
            inputs = fine
        layers += [Residual(dims, fine) for _ in range(config.decoder_blocks)]
        *inner, last = reversed(_halvings(fold))
        for step in inner:
            layers += [StridedUp(dims, fine, fine, step), nn.ReLU()]
        return [*layers, StridedUp(dims, fine, config.channels, last)]
    layers += [Up(dims, wide, fine, stride), *(Residual(dims, fine) for _ in range(config.decoder_blocks))]
    layers += [conv(dims, fine, config.channels * _product(fold), 3)]
    return [*layers, (InverseHaar if config.stem == "haar" else DepthToSpace)(fold)]


def _quantizer(config: ModelConfig) -> Quantizer:
    if config.quantizer == "fsq":
        return ScalarQuantizer(config.levels, config.fsq_levels, config.level_dropout)
    kind = LearnedQuantizer if config.quantizer == "vq" else ResidualQuantizer
    return kind(
        config.levels,
        config.codebook_size,
        config.code_dim,
        config.decay,
        rate_penalty=config.rate_penalty,
        level_dropout=config.level_dropout,
        rotation=config.gradient == "rotation",
        normalize=config.normalize,
        revive=config.revive,
        from_data=config.start == "data",
    )


def _corrections(config: ModelConfig) -> Corrections | None:
    if not config.corrections:
        return None
    scales = config.downsample[1].bit_length() - 1
    return Corrections(
        scales, config.corrections, config.codebook_size, config.correction_step, config.correction_penalty
    )


def _plain(config: ModelConfig) -> bool:
    """Whether the strided convolutions give and take latents themselves, as the article's do."""
    return config.stem == "strided" and not config.blocks and config.width == config.code_dim


def _halvings(factors: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Powers of two as strides of 1 or 2 that multiply up to them: (1, 4, 2) is (1, 2, 2) and (1, 2, 1)."""
    steps = []
    left = factors
    while _product(left) > 1:
        steps.append(tuple(min(2, factor) for factor in left))
        left = tuple(factor // min(2, factor) for factor in left)
    return steps


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total

"""The VQ-VAE: a cheap local encoder, residual codebooks, a decoder that mirrors it; one class for 2D and 3D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import (
    DepthToSpace,
    Down,
    Residual,
    SpaceToDepth,
    Up,
    conv,
    operations,
    reach,
    reach_back,
)
from model.loss import Loss, measure
from model.quantize import ResidualQuantizer


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
    """Space to depth, convolutions at low resolution, residual vector quantization, and back.

    No normalisation and no attention over space: the reach is finite, so codes do not depend on the tiling.
    Input [B, C, *size] in the model's range (about -1 to 1), sizes multiples of `config.downsample`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model_id = ""  # set by model.bundle; codes name it
        dims, wide = config.dims, config.width
        fold, stride = config.axes(config.unshuffle), config.axes(config.stride)
        cell = config.channels * _product(fold)
        self.encoder = nn.Sequential(
            SpaceToDepth(fold),
            conv(dims, cell, config.fine_width, 3),
            *(Residual(dims, config.fine_width) for _ in range(config.fine_blocks)),
            Down(dims, config.fine_width, wide, stride),
            *(Residual(dims, wide) for _ in range(config.blocks)),
            conv(dims, wide, config.code_dim, 1),
        )
        self.quantizer = ResidualQuantizer(config.levels, config.codebook_size, config.code_dim, config.decay)
        self.decoder = nn.Sequential(
            conv(dims, config.code_dim, wide, 1),
            *(Residual(dims, wide) for _ in range(config.blocks)),
            Up(dims, wide, config.decoder_width, stride),
            *(Residual(dims, config.decoder_width) for _ in range(config.decoder_blocks)),
            conv(dims, config.decoder_width, cell, 3),
            DepthToSpace(fold),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.codebooks.device

    @property
    def encoder_halo(self) -> tuple[int, ...]:
        """Voxels per axis that a code sees beyond its own cell."""
        return reach(self.encoder, self.config.dims)

    @property
    def decoder_halo(self) -> tuple[int, ...]:
        """Codes per axis that a voxel depends on beyond its own cell."""
        return reach_back(self.decoder, self.config.dims)

    @property
    def encoder_kflop(self) -> float:
        """Thousand floating point operations per voxel to encode, the search included."""
        cell = _product(self.config.downsample)
        search = 2 * self.config.levels * self.config.codebook_size * self.config.code_dim / cell
        return (operations(self.encoder, cell) + search) / 1000

    @property
    def decoder_kflop(self) -> float:
        """Thousand floating point operations per voxel to decode."""
        # The decoder starts with one position per cell.
        cell = _product(self.config.downsample)
        return operations(self.decoder, 1) / cell / 1000

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Codes int64 [B, L, *grid] of [B, C, *size]; raises InputError NON_FINITE."""
        return self.quantizer.encode(self.encoder(x), levels)

    def decode(self, codes: Tensor, levels: int | None = None) -> Tensor:
        """[B, C, *size] float of codes [B, L, *grid]; levels: use only the first so many."""
        return self.decoder(self.quantizer.decode(codes if levels is None else codes[:, :levels]))

    def forward(self, x: Tensor, quantize: bool = True) -> Output:
        """A training pass; quantize False leaves the codebooks out (the first steps of training)."""
        latents = self.encoder(x)
        if quantize:
            result = self.quantizer(latents)
            latents, codes, l_quant, finite = result.latents, result.codes, result.loss, result.finite
        else:
            codes = torch.zeros(len(x), 1, *latents.shape[2:], dtype=torch.int64, device=x.device)
            l_quant, finite = x.new_zeros(()), bool(torch.isfinite(latents).all())
        reconstruction = self.decoder(latents)
        loss: Loss = measure(reconstruction, x, l_quant, self.config)
        return Output(reconstruction, loss.total, loss.l_rec, l_quant, loss.mse, codes, finite)


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total

"""The few layers that a VQ-VAE is made of, for two or three dimensions, and the reach of a stack of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_DECONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(dims: int, inputs: int, outputs: int, kernel: int) -> Any:
    """A convolution that keeps the size; zeros beyond the border."""
    return _CONV[dims](inputs, outputs, kernel, padding=kernel // 2)


class Residual(nn.Module):
    """x + conv1(gelu(conv3(x))); no normalisation, so that the reach stays finite."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.wide = conv(dims, width, width, 3)
        self.mix = conv(dims, width, width, 1)
        nn.init.zeros_(self.mix.bias)
        with torch.no_grad():  # starts close to the identity: deep stacks train at once at a high learning rate
            self.mix.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, *grid] to the same."""
        return x + self.mix(F.gelu(self.wide(x), approximate="tanh"))


class SpaceToDepth(nn.Module):
    """[B, C, *size] to [B, C * prod(factors), *(size / factors)]; lossless."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Fold each cell of `factors` voxels into the channels."""
        batch, channels, *size = x.shape
        split: list[int] = []
        for length, factor in zip(size, self.factors, strict=True):
            split += [length // factor, factor]
        n = len(self.factors)
        order = [0, 1, *range(3, 2 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]
        grid = [length // factor for length, factor in zip(size, self.factors, strict=True)]
        return x.reshape(batch, channels, *split).permute(order).reshape(batch, -1, *grid)


class DepthToSpace(nn.Module):
    """The inverse of SpaceToDepth."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Unfold the channels into cells of `factors` voxels."""
        batch, _, *grid = x.shape
        n = len(self.factors)
        x = x.reshape(batch, -1, *self.factors, *grid)
        order = [0, 1]
        for axis in range(n):
            order += [2 + n + axis, 2 + axis]
        size = [length * factor for length, factor in zip(grid, self.factors, strict=True)]
        return x.permute(order).reshape(batch, -1, *size)


class Down(nn.Module):
    """A convolution whose kernel is its stride: no reach beyond its own cell."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride
        self.layer = _CONV[dims](inputs, outputs, stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, *grid] to [B, outputs, *(grid / stride)]."""
        return self.layer(x)


class Up(nn.Module):
    """The transpose of Down."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride
        self.layer = _DECONV[dims](inputs, outputs, stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, *grid] to [B, outputs, *(grid * stride)]."""
        return self.layer(x)


def reach(layers: Iterable[nn.Module], dims: int) -> tuple[int, ...]:
    """How far beyond its own cell an output of an encoder looks, in voxels per axis; computed from the layers."""
    jump = [1] * dims
    far = [0] * dims
    for layer in layers:
        if isinstance(layer, SpaceToDepth):
            jump = [j * f for j, f in zip(jump, layer.factors, strict=True)]
        elif isinstance(layer, Down):
            jump = [j * s for j, s in zip(jump, layer.stride, strict=True)]
        else:
            far = [r + j * _radius(layer) for r, j in zip(far, jump, strict=True)]
    return tuple(far)


def reach_back(layers: Iterable[nn.Module], dims: int) -> tuple[int, ...]:
    """How many cells beyond its own an output of a decoder looks, per axis, rounded up; computed from the layers."""
    reversed_layers: list[nn.Module] = []
    for layer in layers:
        reversed_layers.insert(0, layer)
    jump = [1] * dims
    far = [0] * dims
    for layer in reversed_layers:  # from the output back: voxels, then fine cells, then codes
        if isinstance(layer, DepthToSpace):
            jump = [j * f for j, f in zip(jump, layer.factors, strict=True)]
        elif isinstance(layer, Up):
            jump = [j * s for j, s in zip(jump, layer.stride, strict=True)]
        else:
            far = [r + j * _radius(layer) for r, j in zip(far, jump, strict=True)]
    return tuple(-(-r // j) for r, j in zip(far, jump, strict=True))


def operations(layers: Iterable[nn.Module], grids: int) -> float:
    """Floating point operations per voxel of a stack, a multiply and an add counting two.

    grids: voxels per code cell; the layers after the stride work once per cell, those before it more often.
    """
    total = 0.0
    cells = float(grids)  # positions that a cell of codes has at this layer
    for layer in layers:
        if isinstance(layer, SpaceToDepth):
            cells /= _product(layer.factors)
        elif isinstance(layer, DepthToSpace):
            cells *= _product(layer.factors)
        else:
            if isinstance(layer, Down):
                cells /= _product(layer.stride)
            weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
            total += 2 * weights * cells
            if isinstance(layer, Up):
                cells *= _product(layer.stride)
    return total / grids


def _radius(layer: nn.Module) -> int:
    kernels = [m.kernel_size[-1] // 2 for m in layer.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    return sum(kernels)


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total

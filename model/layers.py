"""The few layers that a VQ-VAE is made of, for two or three dimensions, and the reach of a stack of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_DECONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
WHOLE = 2**20  # cells, more than any volume has: the reach of what looks at everything


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


class Haar(SpaceToDepth):
    """SpaceToDepth, then an orthonormal Haar transform of each cell: one mean and prod(factors) - 1 differences.

    factors: powers of two; a factor of 4 is two levels of the pyramid along that axis.
    """

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__(factors)
        self.register_buffer("matrix", haar(factors), persistent=False)
        self.matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *size] to [B, C * prod(factors), *(size / factors)], of each channel the mean first."""
        return _mixed(super().forward(x), self.matrix)


class InverseHaar(DepthToSpace):
    """The inverse of Haar, which is its transpose."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__(factors)
        self.register_buffer("matrix", haar(factors).T.contiguous(), persistent=False)
        self.matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, C * prod(factors), *grid] to [B, C, *(grid * factors)]."""
        return super().forward(_mixed(x, self.matrix))


def haar(factors: tuple[int, ...]) -> Tensor:
    """The orthonormal Haar matrix of a cell, float32 [P, P] with P = prod(factors), last axis fastest (Haar 1910)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        along = torch.ones(1, 1, dtype=torch.float64)
        while len(along) < factor:
            fine = torch.kron(torch.eye(len(along), dtype=torch.float64), torch.tensor([1.0, -1.0]).double())
            along = torch.cat([torch.kron(along, torch.ones(1, 2, dtype=torch.float64)), fine]) / 2**0.5
        matrix = torch.kron(matrix, along)
    return matrix.float()


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """[B, C * P, *grid] with the P values of each channel multiplied by a matrix [P, P]."""
    cells = x.flatten(2).unflatten(1, (-1, len(matrix)))
    return torch.matmul(matrix.to(x.dtype), cells).flatten(1, 2).unflatten(2, x.shape[2:])


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


class Strided(Down):
    """The article's convolution: stride 2 with a kernel of 4, which looks one place beyond its own cell."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__(dims, inputs, outputs, stride)
        self.layer = _CONV[dims](inputs, outputs, *_wider(stride))


class StridedUp(Up):
    """The transpose of Strided."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__(dims, inputs, outputs, stride)
        self.layer = _DECONV[dims](inputs, outputs, *_wider(stride))


def _wider(stride: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride and padding of a convolution that overlaps its neighbours by one place on each side."""
    return tuple(step + 2 for step in stride), stride, (1,) * len(stride)


class Attention(nn.Module):
    """x + self-attention over the whole grid: every place may draw on every other, so nothing of it is local.

    Vaswani 2017 (1706.03762), normalised over channels first, without positions (the convolutions before it see
    borders). Starts as the identity.
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.heads = max(head for head in range(1, max(1, width // 32) + 1) if width % head == 0)
        self.norm = nn.LayerNorm(width)
        self.query_key_value = conv(dims, width, 3 * width, 1)
        self.mix = conv(dims, width, width, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, *grid] to the same."""
        calm = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        parts = self.query_key_value(calm).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        query, key, value = (part.contiguous() for part in parts.unbind(1))
        found = F.scaled_dot_product_attention(query, key, value)
        return x + self.mix(found.transpose(-1, -2).flatten(1, 2).unflatten(2, x.shape[2:]))


def reach(layers: Iterable[nn.Module], dims: int) -> tuple[int, ...]:
    """How far beyond its own cell an output of an encoder looks, in voxels per axis; computed from the layers."""
    jump = [1] * dims
    far = [0] * dims
    for layer in layers:
        if isinstance(layer, SpaceToDepth):
            jump = [j * f for j, f in zip(jump, layer.factors, strict=True)]
        else:
            far = [r + j * _radius(layer) for r, j in zip(far, jump, strict=True)]
            if isinstance(layer, Down):
                jump = [j * s for j, s in zip(jump, layer.stride, strict=True)]
    return tuple(far)


def reach_back(layers: Iterable[nn.Module], dims: int) -> tuple[int, ...]:
    """How many cells beyond its own an output of a decoder looks, per axis, rounded up; computed from the layers.

    WHOLE where it looks at everything: windows then are whole volumes, and no part of one is decoded by itself.
    """
    reversed_layers: list[nn.Module] = []
    for layer in layers:
        reversed_layers.insert(0, layer)
    jump = [1] * dims
    far = [0] * dims
    for layer in reversed_layers:  # from the output back: voxels, then fine cells, then codes
        if isinstance(layer, DepthToSpace):
            jump = [j * f for j, f in zip(jump, layer.factors, strict=True)]
        elif isinstance(layer, Attention):
            return (WHOLE,) * dims
        else:
            far = [r + j * _radius(layer) for r, j in zip(far, jump, strict=True)]
            if isinstance(layer, Up):
                jump = [j * s for j, s in zip(jump, layer.stride, strict=True)]
    return tuple(-(-r // j) for r, j in zip(far, jump, strict=True))


def operations(layers: Iterable[nn.Module], grids: int) -> float:
    """Floating point operations per voxel of a stack, a multiply and an add counting two.

    grids: voxels per code cell; the layers after the stride work once per cell, those before it more often. Of
    attention the products that grow with the picture are left out.
    """
    total = 0.0
    cells = float(grids)  # positions that a cell of codes has at this layer
    for layer in layers:
        if isinstance(layer, SpaceToDepth):
            cells /= _product(layer.factors)
            if isinstance(layer, Haar):  # of each voxel, one product with a row of the matrix; one channel
                total += 2 * len(layer.matrix) ** 2 * cells
        elif isinstance(layer, DepthToSpace):
            if isinstance(layer, InverseHaar):
                total += 2 * len(layer.matrix) ** 2 * cells
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
    """Places on each side that a layer sees beyond its own cell, where it keeps the size, and beyond its stride."""
    if isinstance(layer, (Strided, StridedUp)):
        return 1
    if isinstance(layer, (Down, Up)):
        return 0
    kernels = [m.kernel_size[-1] // 2 for m in layer.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    return sum(kernels)


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total

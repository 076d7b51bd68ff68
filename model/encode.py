"""Volumes to codes, window by window, in an order and in shapes that follow from the volume alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from archive.codes import Codes
from archive.errors import MismatchError
from model import intensity
from model.device import arithmetic, pick
from model.source import Source, as_source, channel_slab, channels
from model.tiling import Tile, batch_size, groups, tiles, windows
from model.vqvae import VQVAE

READ = 8  # slices read together, the stores' chunk along z


def encode_volume(
    model: VQVAE,
    volume: Any,
    *,
    profile: str = "exact",
    levels: int | None = None,
    device: str | None = None,
    model_id: str = "",
    source_version: str = "",
    source_digest: str = "",
) -> Codes:
    """The codes of a Volume or StoredVolume.

    array: uint16 [level, (t), z, y, x] over cells of `downsample` voxels; what does not fill a cell at the end of an
    axis is padded by its edge. profile exact: float32, byte-identical for equal threads and device, whatever worker
    or order; fast: bfloat16. Memory is bounded by windows and slabs, not by the volume. device: None leaves the model
    where it is. Raises InputError NON_FINITE; MismatchError WRONG_MODEL where grey and colour do not fit.
    """
    source = as_source(volume)
    config = model.config
    if channels(source) != config.channels:
        raise MismatchError("WRONG_MODEL", f"the model takes {config.channels} channels, not {channels(source)}")
    if device is not None:
        model.to(pick(device))
    model.eval()
    count = levels or config.levels
    if not 1 <= count <= config.levels:
        raise MismatchError("WRONG_MODEL", f"the model has {config.levels} levels, not {count}")
    mapping = intensity.fit(source, config.intensity)
    depth, rows, columns = source.shape[-3:]
    cell = config.downsample
    grid = (math.ceil(depth / cell[0]), math.ceil(rows / cell[1]), math.ceil(columns / cell[2]))
    frames = source.slices // depth
    array = np.empty((count, frames, *grid), np.uint16)
    plan = _plan(model, grid)
    for t in range(frames):
        reader = _Reader(source, mapping, t, (grid[0] * cell[0], grid[1] * cell[1], grid[2] * cell[2]))
        for group, batch in _batches(model, plan, reader):
            with arithmetic(model.device, profile):
                codes = model.encode(batch.to(model.device), count).cpu().numpy()
            for tile, found in zip(group, codes, strict=False):
                if config.dims == 2:
                    found = found[:, None]
                z, y, x = tile.inner
                inside = tile.inside
                array[:, t, z, y, x] = found[:, inside[0], inside[1], inside[2]]
    return Codes(
        array=array if source.axes.startswith("t") else array[:, 0],
        model=model_id or model.model_id,
        levels=count,
        codebook_size=config.codebook_size,
        downsample=cell,
        source=source.attributes,
        source_version=source_version,
        source_digest=source_digest,
        pad=(grid[0] * cell[0] - depth, grid[1] * cell[1] - rows, grid[2] * cell[2] - columns),
        mapping=mapping.as_dict(),
        profile=profile,
    )


def _plan(model: VQVAE, grid: tuple[int, int, int]) -> list[Tile]:
    cell = model.config.downsample
    reach = [math.ceil(r / d) for r, d in zip(model.encoder_halo, model.config.axes(cell), strict=True)]
    return tiles(grid, *windows(model.config.dims, cell, tuple(reach)))


def _batches(model: VQVAE, plan: list[Tile], reader: _Reader):
    """Tiles and their voxels float32 [B, C, *window], always of one shape: the last batch is filled up with zeros."""
    config = model.config
    cell = config.downsample
    shape = [(part.stop - part.start) * d for part, d in zip(plan[0].outer, cell, strict=True)]
    size = batch_size(model.device.type, math.prod(shape), len(plan))
    for group in groups(plan, size):
        batch = torch.zeros(size, config.channels, *shape)
        for place, tile in enumerate(group):
            z, y, x = (slice(part.start * d, part.stop * d) for part, d in zip(tile.outer, cell, strict=True))
            slab = reader.slab(z.start, z.stop)[:, :, y, x]
            batch[place] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(slab, 1, 0)))
        yield group, batch[:, :, 0] if config.dims == 2 else batch


class _Reader:
    """Slices of one time point in the model's range, padded by their edges to `size`; the last slab read is kept."""

    def __init__(self, source: Source, mapping: intensity.Mapping, t: int, size: tuple[int, int, int]) -> None:
        self.source, self.mapping, self.size = source, mapping, size
        self.depth = source.shape[-3]
        self.first = t * self.depth
        self.start = self.stop = 0
        self.held = np.empty(0, np.float32)

    def slab(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, c, y, x]; slices beyond the last repeat it."""
        if not self.start <= start < stop <= self.stop:
            a = start // READ * READ
            b = min(self.size[0], -(-stop // READ) * READ)
            real = min(b, self.depth)
            values = channel_slab(self.source, self.first + a, self.first + real)
            rows, columns = values.shape[-2:]
            pad = [(0, b - real), (0, 0), (0, self.size[1] - rows), (0, self.size[2] - columns)]
            self.held = np.pad(self.mapping.to_model(values), pad, mode="edge")
            self.start, self.stop = a, b
        return self.held[start - self.start : stop - self.start]

"""What tiling and the `fast` profile change: share of differing codes, how near ties they are, PSNR, time.

    python benchmarks/profiles.py --workspace WS --model MODELS/ID [--side 256] [--slices 24] [--device cpu]

For each of a workspace's CT (or for a drawn chest, with a model that was started and not trained): codes of the
canonical tiling, of much smaller tiles, and of every slice (every volume, in 3D) at once; and of the fast profile. Of
codes that differ between tilings the gap between the nearest two codes is looked at: (second - first) / first of the
squared distances, with the prices of the search. Table on stderr, one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scores import machine, table

from archive.codes import Codes
from archive.geometry import Geometry
from archive.phantoms import phantom
from archive.volume import Volume
from archive.volumes import StoredVolume
from model import bundle, tiling
from model.certificate import certify
from model.config import resolve
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.intensity import Mapping
from model.source import MemoryVolume, as_source
from model.vqvae import VQVAE
from model.windows import Layout, read_windows

WHOLE = {2: (1, 2**16, 2**16), 3: (2**16, 2**16, 2**16)}


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="an ingested workspace; its CT is measured")
    parser.add_argument("--model", type=Path, help="a bundle's folder; none: a model that was started, not trained")
    parser.add_argument("--preset", default="ct-2d")
    parser.add_argument("--side", type=int, default=96, help="of the small tiles, in voxels")
    parser.add_argument("--slices", type=int, default=24, help="at most, of each series")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    found = measure(arguments)
    columns = ["series", "codes", "tiled_ppm", "largest_gap", "fast_share", "fast_psnr_change", "exact_s", "fast_s"]
    print(table(found["series"], columns), file=sys.stderr)
    print(json.dumps(found))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of each series, and over all of their codes together."""
    volumes = dict(chosen(arguments))
    model = bundle.load(arguments.model, device=arguments.device) if arguments.model else started(arguments, volumes)
    rows = [compared(name, volume, model, arguments.side) for name, volume in volumes.items()]
    codes = sum(row["codes"] for row in rows)
    return {
        "benchmark": "profiles",
        **machine(),
        "series": rows,
        "codes": codes,
        "tiled_ppm": 1e6 * sum(row["tiled_different"] for row in rows) / codes / 2,  # of two tilings
        "largest_gap": max(row["largest_gap"] for row in rows),
        "fast_share": sum(row["fast_share"] * row["codes"] for row in rows) / codes,
        "fast_psnr_change": float(np.mean([row["fast_psnr_change"] for row in rows])),
    }


def chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, Volume]]:
    """Up to `slices` slices from the middle of each CT, in memory."""
    if arguments.workspace is None:
        values = phantom("ct-chest", (arguments.slices, 320, 384), (2.0, 1.0, 1.0), 1)
        voxels = np.rint(values).astype(np.int16)
        yield "chest phantom", Volume(voxels, "zyx", Geometry.pixels(voxels.shape), "CT", units="HU")
        return
    for folder in sorted(arguments.workspace.glob("volumes.zarr/[0-9a-f]*/*")):
        stored = StoredVolume(folder)
        if stored.units == "HU" and stored.axes == "zyx":
            first = max(0, (stored.slices - arguments.slices) // 2)
            voxels = np.rint(stored.slab_values(first, min(stored.slices, first + arguments.slices))).astype(np.int16)
            yield folder.parent.name[:8], Volume(voxels, "zyx", Geometry.pixels(voxels.shape), "CT", units="HU")


def started(arguments: argparse.Namespace, volumes: dict[str, Volume]) -> VQVAE:
    """A model whose codebooks were started on a volume's latents."""
    torch.manual_seed(0)
    model = VQVAE(resolve(arguments.preset, channels=1, intensity="hu")).eval()
    source = as_source(next(iter(volumes.values())))
    mapping = Mapping(-1024.0, 3071.0, clip=True)
    rows = []
    with torch.no_grad():
        for window in read_windows(source, Layout.of(model, source), mapping):
            voxels = torch.from_numpy(np.ascontiguousarray(window.voxels))[None]
            latents = model.encoder(voxels[:, :, 0] if model.config.dims == 2 else voxels)
            rows.append(latents.movedim(1, -1).flatten(0, -2))
    model.quantizer.start(torch.cat(rows))
    return model.to(torch.device(arguments.device))


def compared(name: str, volume: Volume, model: VQVAE, side: int) -> dict[str, Any]:
    """One series: canonical, small tiles, whole; and fast."""
    began = time.perf_counter()
    exact = encode_volume(model, volume)
    middle = time.perf_counter()
    fast = encode_volume(model, volume, profile="fast")
    ended = time.perf_counter()
    small = {2: (1, side, side), 3: (side // 2, side, side)}
    with tile_of(WHOLE):
        whole = encode_volume(model, volume)
        gaps = [gap for tile in (small, None) for gap in gaps_of(model, volume, whole, tile)]
    scores = [certify(volume, DecodedVolume(model, one), one, 1000, peer=False).psnr for one in (exact, fast)]
    return {
        "series": name,
        "codes": exact.array.size,
        "tiled_different": len(gaps),
        "tiled_ppm": 1e6 * len(gaps) / exact.array.size / 2,
        "largest_gap": max(gaps, default=0.0),
        "fast_share": float((fast.array != exact.array).mean()),
        "exact_psnr": scores[0],
        "fast_psnr_change": scores[1] - scores[0],
        "exact_s": middle - began,
        "fast_s": ended - middle,
    }


def gaps_of(model: VQVAE, volume: Volume, whole: Codes, tile: dict[int, tuple[int, int, int]] | None) -> list[float]:
    """Relative gaps of the codes that another tiling (None: the canonical one) finds other than the whole does."""
    with tile_of(tile or CANONICAL):
        tiled = encode_volume(model, volume).array
    gaps = []
    for level, z, y, x in np.argwhere(tiled != whole.array):
        if level and (tiled[:level, z, y, x] != whole.array[:level, z, y, x]).any():
            continue  # a consequence of the level before
        rest = latent(model, volume, whole, (int(z), int(y), int(x)))
        for earlier in range(level):
            rest = rest - model.quantizer.table(earlier)[int(whole.array[earlier, z, y, x])]
        distances = (model.quantizer.table(level) - rest).square().sum(1)
        if model.quantizer.rate_penalty:
            distances = distances + model.quantizer.prices[level]
        first, second = distances.topk(2, largest=False).values.tolist()
        gaps.append(abs(second - first) / max(abs(first), 1e-12))
    return gaps


@torch.no_grad()
def latent(model: VQVAE, volume: Volume, codes: Codes, place: tuple[int, int, int]) -> torch.Tensor:
    """The centred latent of a cell, of the window that it lies in under the tiling that holds now."""
    source = MemoryVolume(volume)
    for window in read_windows(source, Layout.of(model, source), Mapping.from_dict(codes.mapping)):
        if all(part.start <= at < part.stop for part, at in zip(window.tile.inner, place, strict=True)):
            voxels = torch.from_numpy(np.ascontiguousarray(window.voxels))[None].to(model.device)
            grid = model.quantizer.continuous(model.encoder(voxels[:, :, 0] if model.config.dims == 2 else voxels))[0]
            at = [p - part.start for p, part in zip(place, window.tile.outer, strict=True)]
            return grid[(slice(None), *(at[1:] if model.config.dims == 2 else at))] - model.quantizer.centre
    raise AssertionError("every cell is in a window")


CANONICAL = dict(tiling.TILE)


@contextmanager
def tile_of(sizes: dict[int, tuple[int, int, int]]) -> Iterator[None]:
    """Another tiling than the canonical one, for a while."""
    before = tiling.TILE
    tiling.TILE = sizes
    try:
        yield
    finally:
        tiling.TILE = before


if __name__ == "__main__":
    main()

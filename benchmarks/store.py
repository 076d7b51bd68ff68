"""The code store in bytes and milliseconds, on series that the model never saw.

    python benchmarks/store.py ../shared/data --group ct --model models/<id> [--refit 60] [--workspace WS] [--out FOLDER]

Bytes on disk with everything counted (zarr.json, shard indices, checksums) against fixed length, zero-order entropy,
and zstd and blosc of the same indices; symbols per second of the coder each way; milliseconds for one slice, one 64^3
region and the whole volume from codes and from the volume tier. --refit SECONDS fits new tables of the entropy coder
on the series not left out (for bundles that have none). A table on stderr, one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from held_out import Split, opened
from numcodecs import Blosc, Zstd
from scores import machine, spread, table

from archive import codes as store
from archive import entropy, tables
from archive.codes import Codes, StoredCodes
from archive.volumes import StoredVolume
from model import bundle, intensity
from model.decode import DecodedVolume
from model.encode import encode_volume
from model.source import as_source
from model.table_samples import table_codes
from model.tables import fit
from model.vqvae import VQVAE

SIDE = 64  # of the region that is read
COLUMNS = ["series", "codes", "fixed", "zero_order", "zstd", "blosc", "own_table", "stored", "saved", "beside"]
SPEEDS = ["series", "encode_msym_s", "decode_msym_s", "own_encode_msym_s", "own_decode_msym_s",
          "slice_ms", "region_ms", "whole_ms", "volume_slice_ms", "volume_region_ms", "volume_whole_ms"]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="ct")
    parser.add_argument("--model", type=Path, required=True, help="a bundle's folder")
    parser.add_argument("--refit", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--leave-out", action="append", default=[])
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--series", type=int, help="at most so many")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, arguments.leave_out, arguments.workspace) as split:
        found = measure(split, bundle.load(arguments.model), arguments.model, arguments.refit, arguments.series)
    text = report(found)
    sys.stderr.write(text + "\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "store.json").write_text(json.dumps(found, indent=1))
        (arguments.out / "store.md").write_text(text + "\n")
    print(json.dumps(found))


def measure(split: Split, model: VQVAE, folder: Path, refit: float, most: int | None = None) -> dict[str, Any]:
    """Every unseen series; figures ready for JSON. The largest series of all is there too, as `full_size`."""
    name = folder.resolve().name
    if refit:
        sources = [as_source(volume) for volume in split.learn.values()]
        mappings = [intensity.fit(source, model.config.intensity) for source in sources]
        began = time.monotonic()
        codes = table_codes(model, sources, mappings, 0, began + 0.4 * refit)
        data: bytes | None = fit(model, codes, 0, deadline=began + refit)
    else:
        path = folder / tables.FILE
        data = path.read_bytes() if path.exists() else None
    with TemporaryDirectory() as root:
        for kind, kept in (("context", data), ("plain", None)):
            (Path(root) / kind / "models" / name).mkdir(parents=True)
            if kept is not None:
                (Path(root) / kind / "models" / name / tables.FILE).write_bytes(kept)
        names = list(split.unseen)
        chosen = [names[at] for at in spread(len(names), most)]
        rows = [one_series(split.names[each], split.unseen[each], model, name, Path(root)) for each in chosen]
        everything = {**split.learn, **split.unseen}
        largest = max(everything, key=lambda each: float(np.prod(as_source(everything[each]).shape)))
        full = one_series(split.names[largest], everything[largest], model, name, Path(root))
    return {
        "benchmark": "store",
        **machine("constriction", "zarr", "numcodecs", "numpy"),
        "group": split.group,
        "preset": model.config.preset,
        "model": name,
        "refit_seconds": refit,
        "tables_bytes": len(data or b""),
        "unseen": rows,
        "full_size": {**full, "seen_in_training": largest in split.learn},
        "summary": {
            "saved_against_zero_order": round(float(np.mean([row["saved"] for row in rows])), 4),
            "zero_order_overhead_full_size": round(full["own_table"] / full["zero_order"] - 1, 4),
            "largest_beside": max(row["beside"] for row in [*rows, full]),
        },
    }


def one_series(label: str, volume: Any, model: VQVAE, name: str, root: Path) -> dict[str, Any]:
    """Bits per voxel and speeds of one series."""
    codes = dataclasses.replace(encode_volume(model, volume), model=name)
    voxels = float(np.prod(as_source(volume).shape))
    bits = codes.levels * (codes.codebook_size - 1).bit_length()
    raw = np.ascontiguousarray(codes.array, "<u2")
    stored = {kind: _stored(codes, root / kind, label) for kind in ("context", "plain")}
    sizes = {kind: sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
             for kind, found in stored.items()}  # fmt: skip
    zero = sum(_entropy(level) * level.size for level in codes.array) / voxels
    speeds = {f"{prefix}{way}_msym_s": rate for kind, prefix in (("context", ""), ("plain", "own_"))
              for way, rate in _speed(codes, stored[kind]).items()}  # fmt: skip
    return {
        "series": label,
        "shape": list(as_source(volume).shape),
        "codes": int(codes.array.size),
        "fixed": round(bits * codes.array[0].size / voxels, 4),
        "zero_order": round(zero, 4),
        "zstd": round(8 * len(Zstd(level=19).encode(raw)) / voxels, 4),
        "blosc": round(8 * len(Blosc("zstd", 9, Blosc.BITSHUFFLE).encode(raw)) / voxels, 4),
        "own_table": round(8 * sizes["plain"] / voxels, 4),
        "stored": round(8 * sizes["context"] / voxels, 4),
        "saved": round(1 - 8 * sizes["context"] / voxels / zero, 4),
        "bytes": sizes["context"],
        "beside": (stored["context"].folder / "zarr.json").stat().st_size,
        **speeds,
        **_reading(volume, model, stored["context"]),
    }


def report(found: dict[str, Any]) -> str:
    """Two tables: bits per voxel, and speeds."""
    rows = [*found["unseen"], {**found["full_size"], "series": found["full_size"]["series"] + " (largest)"}]
    said = [f"Bits per voxel; saved: against zero-order entropy. {found['summary']}", table(rows, COLUMNS), ""]
    return "\n".join([*said, table(rows, SPEEDS)])


def _stored(codes: Codes, workspace: Path, label: str) -> StoredCodes:
    root = workspace / "codes.zarr"
    root.mkdir(exist_ok=True)
    return StoredCodes(root / label / store.write(codes, root, label).version)


def _speed(codes: Codes, stored: StoredCodes) -> dict[str, float]:
    """Million codes per second of the coder alone, on the chunks as they are stored, best of three."""
    deep = stored.chunks[-3]
    frames = codes.array if codes.array.ndim == 5 else codes.array[:, None]
    slabs = [np.ascontiguousarray(frames[:, t, z : z + deep])
             for t in range(frames.shape[1]) for z in range(0, frames.shape[2], deep)]  # fmt: skip
    known, size, grid = stored.codec.known(), codes.codebook_size, (frames.shape[-2], frames.shape[-1])
    made = [entropy.encode(slab, size, known) for slab in slabs]
    encode = _best(lambda: [entropy.encode(slab, size, known) for slab in slabs])
    decode = _best(lambda: [entropy.decode(data, grid, size, known) for data in made])
    return {"encode": round(codes.array.size / encode / 1e6, 3), "decode": round(codes.array.size / decode / 1e6, 3)}


def _reading(volume: Any, model: VQVAE, stored: StoredCodes) -> dict[str, float]:
    """Milliseconds from codes and from the volume tier, opened anew each time; the volume tier only where stored."""
    depth, rows, columns = as_source(volume).shape[-3:]
    middle = depth // 2
    region = tuple(
        slice(max(0, (size - SIDE) // 2), max(0, (size - SIDE) // 2) + SIDE) for size in (depth, rows, columns)
    )
    lead = (0,) * (len(as_source(volume).shape) - 3)

    def codes() -> DecodedVolume:
        return DecodedVolume(model, StoredCodes(stored.folder))

    found = {
        "slice_ms": _best(lambda: codes()[(*lead, middle)]),
        "region_ms": _best(lambda: codes()[(*lead, *region)]),
        "whole_ms": _best(lambda: codes().read()),
    }
    if isinstance(volume, StoredVolume):
        folder = volume.folder
        found["volume_slice_ms"] = _best(lambda: StoredVolume(folder).slab(middle, middle + 1))
        found["volume_region_ms"] = _best(lambda: StoredVolume(folder).array[(*lead, *region)])
        found["volume_whole_ms"] = _best(lambda: StoredVolume(folder).read())
    return {key: round(1000 * seconds, 1) for key, seconds in found.items()}


def _best(call: Callable[[], Any], times: int = 3) -> float:
    found: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def _entropy(codes: np.ndarray) -> float:
    share: Sequence[float] = np.bincount(codes.reshape(-1)) / codes.size
    there = np.asarray([value for value in share if value > 0])
    return float(-(there * np.log2(there)).sum())


if __name__ == "__main__":
    main()

"""The code store in bytes and milliseconds, on series that the model never saw.

    python benchmarks/store.py ../shared/data --group ct --model models/<id> [--refit 60] [--workspace WS] [--out FOLDER]

Bytes on disk with everything counted (zarr.json, shard indices, checksums) against fixed length, zero-order entropy,
and zstd and blosc of the same indices; PSNR and SSIM beside what JPEG 2000, JPEG XL and JPEG-LS make of the same slices
in those bytes on disk (bare codestreams, their common start counted once; `ahead` is ours less theirs); symbols per
second of processor time of the coder each way; milliseconds for one slice, one 64^3 region and the whole volume from
codes and from the volume tier. --refit SECONDS fits new tables of the entropy coder on the series not left out (for
bundles that have none; kept in --out). Three tables on stderr, one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from held_out import Split, opened
from image_codecs import LEAST_SIDE, at_bytes
from numcodecs import Blosc, Zstd
from scores import Scorer, machine, mean, spread, table

from archive import codes as store
from archive import entropy, tables
from archive.codes import Codes, StoredCodes
from archive.volumes import StoredVolume
from model import bundle, intensity
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.fidelity import peak_of
from model.source import as_source, channel_slab
from model.table_samples import table_samples
from model.tables import fit
from model.vqvae import VQVAE

SIDE = 64  # of the region that is read
SPEED_RUNS = 7
CODECS = ("JPEG 2000", "JPEG XL", "JPEG-LS")
COLUMNS = ["series", "codes", "fixed", "zero_order", "zstd", "blosc", "own_table", "stored", "saved", "beside"]
BESIDE = ["series", "stored", "psnr", "ssim",
          *(f"{codec}: {figure}" for codec in CODECS for figure in ("psnr", "ssim"))]  # fmt: skip
SPEEDS = ["series", "encode_msym_s", "decode_msym_s", "own_encode_msym_s", "own_decode_msym_s",
          "slice_ms", "region_ms", "whole_ms", "volume_slice_ms", "volume_region_ms", "volume_whole_ms"]  # fmt: skip


def main() -> None:
    """Measure and print."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # looked at when numpy is imported: one core is what is measured
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="ct")
    parser.add_argument("--model", type=Path, required=True, help="a bundle's folder")
    parser.add_argument("--refit", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--leave-out", action="append", default=[])
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--series", type=int, help="at most so many")
    parser.add_argument("--slices", type=int, default=16, help="of a series that go through the codecs; 0: none")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, arguments.leave_out, arguments.workspace) as split:
        data = known(split, bundle.load(arguments.model), arguments.model, arguments.refit)
        found = measure(split, bundle.load(arguments.model), arguments.model, data, arguments.series, arguments.slices)
    found["refit_seconds"] = arguments.refit
    text = report(found)
    sys.stderr.write(text + "\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if data is not None:
            (arguments.out / tables.FILE).write_bytes(data)
        (arguments.out / "store.json").write_text(json.dumps(found, indent=1))
        (arguments.out / "store.md").write_text(text + "\n")
    print(json.dumps(found))


def known(split: Split, model: VQVAE, folder: Path, refit: float) -> bytes | None:
    """Tables of the entropy coder: the bundle's own, or fitted anew for so many seconds; None where it has none."""
    if not refit:
        return (folder / tables.FILE).read_bytes() if (folder / tables.FILE).exists() else None
    sources = [as_source(volume) for volume in split.learn.values()]
    mappings = [intensity.fit(source, model.config.intensity) for source in sources]
    began = time.monotonic()
    found = table_samples(model, sources, mappings, 0, began + 0.4 * refit)
    return fit(model, found.codes, 0, deadline=began + refit, distances=found.distances)


def measure(
    split: Split, model: VQVAE, folder: Path, data: bytes | None, most: int | None = None, slices: int = 16
) -> dict[str, Any]:
    """Every unseen series; figures ready for JSON. The largest series of all is there too, as `full_size`."""
    name = folder.resolve().name
    with TemporaryDirectory() as root:
        for kind, kept in (("context", data), ("plain", None)):
            (Path(root) / kind / "models" / name).mkdir(parents=True)
            if kept is not None:
                (Path(root) / kind / "models" / name / tables.FILE).write_bytes(kept)
        names = list(split.unseen)
        chosen = [names[at] for at in spread(len(names), most)]
        rows = [one_series(split.names[each], split.unseen[each], model, name, Path(root), slices) for each in chosen]
        everything = {**split.learn, **split.unseen}
        largest = max(everything, key=lambda each: float(np.prod(as_source(everything[each]).shape)))
        full = one_series(split.names[largest], everything[largest], model, name, Path(root), slices)
    return {
        "benchmark": "store",
        **machine("constriction", "zarr", "numcodecs", "numpy", "imagecodecs", "pylibjpeg-openjpeg", "pyjpegls"),
        "group": split.group,
        "preset": model.config.preset,
        "model": name,
        "tables_bytes": len(data or b""),
        "unseen": rows,
        "full_size": {**full, "seen_in_training": largest in split.learn},
        "summary": {
            "saved_against_zero_order": round(float(np.mean([row["saved"] for row in rows])), 4),
            "zero_order_overhead_full_size": round(full["own_table"] / full["zero_order"] - 1, 4),
            **{f"ahead of {codec}, {figure}": mean([ahead(row, codec, figure) for row in rows])
               for codec in CODECS for figure in ("psnr", "ssim")},
            "largest_beside": max(row["beside"] for row in [*rows, full]),
        },
    }  # fmt: skip


def ahead(row: dict[str, Any], codec: str, figure: str) -> float | None:
    """How far the codes are ahead of a codec in the same bytes; None where it cannot go so low."""
    theirs = row.get(f"{codec}: {figure}")
    return None if theirs is None or row[figure] is None else row[figure] - theirs


def one_series(label: str, volume: Any, model: VQVAE, name: str, root: Path, slices: int = 0) -> dict[str, Any]:
    """Bits per voxel, fidelity and speeds of one series."""
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
        **_beside(volume, DecodedVolume(model, codes), 8 * sizes["context"] / voxels, slices),
        **speeds,
        **_reading(volume, model, stored["context"]),
    }


def report(found: dict[str, Any]) -> str:
    """Three tables: bits per voxel, fidelity beside the codecs at equal bytes, and speeds."""
    rows = [*found["unseen"], {**found["full_size"], "series": found["full_size"]["series"] + " (largest)"}]
    said = [
        f"Bits per voxel; saved: against zero-order entropy. {found['summary']}",
        table(rows, COLUMNS),
        "",
        table(rows, BESIDE),
        "",
    ]
    return "\n".join([*said, table(rows, SPEEDS)])


def _stored(codes: Codes, workspace: Path, label: str) -> StoredCodes:
    root = workspace / "codes.zarr"
    root.mkdir(exist_ok=True)
    return StoredCodes(root / label / store.write(codes, root, label).version)


def _beside(volume: Any, decoded: DecodedVolume, bits: float, slices: int) -> dict[str, Any]:
    """PSNR and SSIM of slices spread over a series, and of the same through the codecs in at most `bits` per voxel."""
    source = as_source(volume)
    if not slices:
        return {"psnr": None, "ssim": None}
    picks, peak = spread(source.slices, slices), peak_of(source)
    pictures = [channel_slab(source, at, at + 1)[0] for at in picks]
    scorer = Scorer(peak)
    for at, picture in zip(picks, pictures, strict=True):
        scorer.add(picture, channel_slab(decoded, at, at + 1)[0])
    score = scorer.score()
    found: dict[str, Any] = {"psnr": score.psnr, "ssim": score.ssim, "compared_slices": len(picks)}
    if min(source.shape[-2:]) >= LEAST_SIDE:
        slopes = source.attributes["slope"]
        step = abs(slopes[0]) if len(slopes) == 1 and source.dtype.kind in "iu" else None
        for codec, point in at_bytes(pictures, peak, step, bits).items():
            found[f"{codec}: psnr"] = None if point is None else point.psnr
            found[f"{codec}: ssim"] = None if point is None else point.ssim
            found[f"{codec}: bits"] = None if point is None else point.bits
    return found


def _speed(codes: Codes, stored: StoredCodes) -> dict[str, float]:
    """Million codes per second of this thread's processor time, of the coder alone, on the chunks as stored; the best of
    some runs."""
    deep = stored.chunks[-3]
    frames = codes.array if codes.array.ndim == 5 else codes.array[:, None]
    slabs = [np.ascontiguousarray(frames[:, t, z : z + deep])
             for t in range(frames.shape[1]) for z in range(0, frames.shape[2], deep)]  # fmt: skip
    have, size, grid = stored.codec.known(), codes.codebook_size, (frames.shape[-2], frames.shape[-1])
    made = [entropy.encode(slab, size, have) for slab in slabs]
    clock = time.thread_time  # a core's: other work on the machine is not the coder's
    encode = _best(lambda: [entropy.encode(slab, size, have) for slab in slabs], SPEED_RUNS, clock)
    decode = _best(lambda: [entropy.decode(data, grid, size, have) for data in made], SPEED_RUNS, clock)
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


def _best(call: Callable[[], Any], times: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
    found: list[float] = []
    for _ in range(times):
        began = clock()
        call()
        found.append(clock() - began)
    return min(found)


def _entropy(codes: np.ndarray) -> float:
    share: Sequence[float] = np.bincount(codes.reshape(-1)) / codes.size
    there = np.asarray([value for value in share if value > 0])
    return float(-(there * np.log2(there)).sum())


if __name__ == "__main__":
    main()

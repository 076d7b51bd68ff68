"""The rungs of the ladder: what each costs and what it is worth, beside JPEG 2000, JPEG XL and JPEG-LS.

    python benchmarks/ladder.py --case ct VOLUME_FOLDER MODEL_FOLDER [--case mr …] [--slices 16] [--errors 0 2 5 10]
        [--tables FILE] [--out FOLDER]

Two tables on stderr, one JSON line on stdout. Bytes, for each series and bound in the volume's units: bits per voxel of
the codes on disk, of the layer that voxbook writes beside them, of the difference between the source and the decoded
codes coded in the same way, and of JPEG-LS files with that bound; for bound 0 also of lossless JPEG XL files. largest:
error of the layer as read, in units. Rungs: PSNR, SSIM and largest error of every prefix of levels and of every bound
(everything on disk counted), and what JPEG 2000, JPEG XL and JPEG-LS near-lossless make of the same slices in the same
bytes; empty where a codec cannot go so low. The bounded layer is JPEG-LS: at the same bound its picture is that of
JPEG-LS, and `jpeg_ls` of the first table says what that costs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imagecodecs
import numpy as np
import torch
from image_codecs import LEAST_SIDE, at_bytes
from scores import Scorer, machine, table

from archive import bounded, tables
from archive import codes as store
from archive.bounded import Bounded
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import StoredVolume
from model import bundle
from model.decode import decode_codes
from model.encode import encode_volume
from model.fidelity import peak_of
from model.source import as_source, channel_slab

COLUMNS = ["case", "error", "codes", "layer", "residual", "jpeg_ls", "jpeg_xl", "largest", "write_s", "read_s"]
CODECS = ("JPEG 2000", "JPEG XL", "JPEG-LS")
FIGURES = ("psnr", "ssim", "largest")
RUNGS = ["case", "rung", "bits", *FIGURES, *(f"{codec}: {figure}" for codec in CODECS for figure in FIGURES)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("NAME", "VOLUME", "MODEL"))
    parser.add_argument("--slices", type=int, default=16, help="of the middle of each series")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.0, 2.0, 5.0, 10.0])
    parser.add_argument("--tables", type=Path, help="of the entropy coder, for models that have none (store.py --out)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    rungs: list[dict[str, Any]] = []
    for name, folder, model in arguments.case:
        volume = middle(StoredVolume(Path(folder)), arguments.slices)
        made = measure(name, volume, Path(model), arguments.errors, arguments.tables)
        rows += made.rows
        rungs += made.rungs
    text = "\n\n".join([table(rows, COLUMNS), table(rungs, RUNGS)])
    found = {"benchmark": "ladder", "slices": arguments.slices, "rows": rows, "rungs": rungs,
             **machine("imagecodecs", "pyjpegls", "pylibjpeg-openjpeg", "constriction")}  # fmt: skip
    print(text, file=sys.stderr)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "ladder.json").write_text(json.dumps(found, indent=1))
        (arguments.out / "ladder.md").write_text(text + "\n")
    print(json.dumps(found))


@dataclass(frozen=True)
class Measured:
    """rows: bytes of each bound. rungs: fidelity of each rung, and of the codecs in its bytes."""

    rows: list[dict[str, Any]]
    rungs: list[dict[str, Any]]


def middle(stored: Any, slices: int) -> Volume:
    """The middle slices of the first time point of a grey series, as a series."""
    depth = min(slices, stored.shape[-3])
    first = (stored.shape[-3] - depth) // 2
    attributes = stored.attributes
    shape = (depth, *stored.shape[-2:])
    numbers = {
        key: attributes[key] if len(attributes[key]) == 1 else attributes[key][first : first + depth]
        for key in ("slope", "intercept")
    }
    return Volume(
        stored.slab(first, first + depth),
        "zyx",
        Geometry.pixels(shape),
        stored.modality,
        slope=tuple(numbers["slope"]),
        intercept=tuple(numbers["intercept"]),
        units=stored.units,
        bits_stored=attributes["bits_stored"],
    )


def measure(name: str, volume: Volume, model: Path, errors: list[float], known: Path | None = None) -> Measured:
    """Every rung of one series."""
    network = bundle.load(model, model.name)
    codes = encode_volume(network, volume)
    decoded = [decode_codes(network, codes, levels) for levels in range(1, codes.levels + 1)]
    sizes = [on_disk(replace(codes, array=codes.array[: count + 1], levels=count + 1), model, known)
             for count in range(codes.levels)]  # fmt: skip
    voxels = volume.voxels.size
    difference = volume.voxels.astype(np.int32) - decoded[-1].voxels.astype(np.int32)
    rows, rungs = [], []
    for levels, (pictures, size) in enumerate(zip(decoded, sizes, strict=True), 1):
        rungs.append({"case": name, "rung": f"{levels} levels", **rung(volume, pictures, 8 * size / voxels)})
    for error in errors:
        began = time.perf_counter()
        size, off, read_s, pictures = layer(volume, error)
        write_s = time.perf_counter() - began - read_s
        # The same slopes, so the same nearness; what the reader adds to it is the decoded codes.
        residual = layer(replace(volume, voxels=difference), error)[0]
        rows.append(
            {
                "case": name,
                "error": error,
                "codes": 8 * sizes[-1] / voxels,
                "layer": 8 * size / voxels,
                "residual": 8 * residual / voxels,
                "jpeg_ls": 8 * sum(map(len, jpeg_ls(volume, error))) / voxels,
                "jpeg_xl": 8 * sum(map(len, jpeg_xl(volume))) / voxels if error == 0 else None,
                "largest": off,
                "write_s": write_s,
                "read_s": read_s,
            }
        )
        if error:  # without loss there is nothing to compare but bytes
            whole = 8 * (size + sizes[-1]) / voxels
            rungs.append({"case": name, "rung": f"within {error:g}", **rung(volume, pictures, whole)})
    return Measured(rows, rungs)


def rung(volume: Volume, decoded: Volume, bits: float) -> dict[str, Any]:
    """What a decoded series is worth beside what the codecs make of it in the same bits per voxel."""
    source, other, peak = as_source(volume), as_source(decoded), peak_of(as_source(volume))
    pictures = [channel_slab(source, at, at + 1)[0] for at in range(volume.slices)]
    scorer = Scorer(peak)
    for at, picture in enumerate(pictures):
        scorer.add(picture, channel_slab(other, at, at + 1)[0])
    score = scorer.score()
    found: dict[str, Any] = {"bits": bits, "psnr": score.psnr, "ssim": score.ssim, "largest": score.largest}
    if min(volume.voxels.shape[-2:]) >= LEAST_SIDE:
        step = abs(volume.slope[0]) if len(volume.slope) == 1 else None
        for codec, point in at_bytes(pictures, peak, step, bits).items():
            for figure in FIGURES:
                found[f"{codec}: {figure}"] = None if point is None else getattr(point, figure)
    return found


def on_disk(codes: Any, model: Path, known: Path | None) -> int:
    """Bytes of a version of these codes, everything counted, coded with the model's tables or else those given."""
    there = model / tables.FILE if (model / tables.FILE).exists() else known
    with TemporaryDirectory() as root:
        if there is not None:
            (Path(root) / "models" / model.name).mkdir(parents=True)
            (Path(root) / "models" / model.name / tables.FILE).write_bytes(there.read_bytes())
        return store.write(codes, Path(root) / "codes.zarr", "s").bytes


def layer(volume: Volume, error: float) -> tuple[int, float, float, Volume]:
    """Bytes of the bounded layer on disk, the largest error of any voxel of it in units, seconds to read it, itself."""
    with TemporaryDirectory() as folder:
        bounded.write(as_source(volume), Path(folder), error)
        written = Bounded(Path(folder), volume.attributes(), error)
        began = time.perf_counter()
        again = written.slab(0, volume.slices)
        seconds = time.perf_counter() - began
        read = volume.with_voxels(again)
        off = read.values().astype(np.float64) - volume.values()
        return written.bytes, float(np.abs(off).max()), seconds, read


def jpeg_ls(volume: Volume, error: float) -> list[bytes]:
    """Each slice as a JPEG-LS file of the stored values (signed ones from zero up, as JPEG-LS has no others)."""
    files = []
    for number, stored in enumerate(volume.voxels):
        slope = abs(volume.slope[0] if len(volume.slope) == 1 else volume.slope[number])
        files.append(imagecodecs.jpegls_encode(unsigned(stored, volume), level=min(255, math.floor(error / slope))))
    return files


def jpeg_xl(volume: Volume) -> list[bytes]:
    """Each slice as a lossless JPEG XL file, effort 7."""
    return [imagecodecs.jpegxl_encode(unsigned(stored, volume), lossless=True, effort=7) for stored in volume.voxels]


def unsigned(stored: np.ndarray, volume: Volume) -> np.ndarray:
    """Stored values of a slice as uint8 or uint16, less the series' least."""
    values = stored.astype(np.int64) - int(volume.voxels.min())
    return np.ascontiguousarray(values.astype(np.uint8 if volume.voxels.dtype.itemsize == 1 else np.uint16))


if __name__ == "__main__":
    main()

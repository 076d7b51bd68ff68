"""The rungs of the ladder in bytes: a layer of its own (JPEG-LS) against a residual to the decoded codes.

    python benchmarks/ladder.py --case ct VOLUME_FOLDER MODEL_FOLDER [--case mr …] [--slices 16] [--errors 0 2 5 10]

For each series and bound, in the volume's units: bits per voxel of the layer that voxbook writes beside the codes, of
the difference between the source and the decoded codes coded in the same way, and of the codes themselves; for bound 0
also of plain JPEG-LS files and JPEG XL lossless ones of the same slices (imagecodecs), for others of JPEG-LS
near-lossless. largest: error of the layer as read, in units. A table on stderr, one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imagecodecs
import numpy as np
import torch
from scores import machine, table

from archive import bounded
from archive.bounded import Bounded
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import StoredVolume
from model import bundle
from model.decode import decode_codes
from model.encode import encode_volume
from model.metrics import entropy, histogram
from model.source import as_source

COLUMNS = ["case", "error", "codes", "layer", "residual", "jpeg_ls", "jpeg_xl", "largest", "write_s", "read_s"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("NAME", "VOLUME", "MODEL"))
    parser.add_argument("--slices", type=int, default=16, help="of the middle of each series")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.0, 2.0, 5.0, 10.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, folder, model in arguments.case:
        volume = middle(StoredVolume(Path(folder)), arguments.slices)
        rows += measure(name, volume, Path(model), arguments.errors)
    print(table(rows, COLUMNS), file=sys.stderr)
    print(json.dumps({"benchmark": "ladder", "slices": arguments.slices, "rows": rows, **machine()}))


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


def measure(name: str, volume: Volume, model: Path, errors: list[float]) -> list[dict[str, Any]]:
    """One row for each bound."""
    network = bundle.load(model, model.name)
    codes = encode_volume(network, volume)
    decoded = decode_codes(network, codes)
    counts = histogram(codes.array, codes.codebook_size)
    voxels = volume.voxels.size
    zero_order = sum(entropy(level) * int(level.sum()) for level in counts) / voxels
    difference = volume.voxels.astype(np.int32) - decoded.voxels.astype(np.int32)
    rows = []
    for error in errors:
        began = time.perf_counter()
        size, largest, read_s = layer(volume, error)
        write_s = time.perf_counter() - began - read_s
        # The same slopes, so the same nearness; what the reader adds to it is the decoded codes.
        residual, _, _ = layer(replace(volume, voxels=difference), error)
        rows.append(
            {
                "case": name,
                "error": error,
                "codes": zero_order,
                "layer": 8 * size / voxels,
                "residual": 8 * residual / voxels,
                "jpeg_ls": 8 * sum(map(len, jpeg_ls(volume, error))) / voxels,
                "jpeg_xl": 8 * sum(map(len, jpeg_xl(volume))) / voxels if error == 0 else None,
                "largest": largest,
                "write_s": write_s,
                "read_s": read_s,
            }
        )
    return rows


def layer(volume: Volume, error: float) -> tuple[int, float, float]:
    """Bytes of the bounded layer on disk, the largest error of any voxel of it in units, seconds to read it."""
    with TemporaryDirectory() as folder:
        bounded.write(as_source(volume), Path(folder), error)
        written = Bounded(Path(folder), volume.attributes(), error)
        began = time.perf_counter()
        again = written.slab(0, volume.slices)
        seconds = time.perf_counter() - began
        off = volume.with_voxels(again).values().astype(np.float64) - volume.values()
        return written.bytes, float(np.abs(off).max()), seconds


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

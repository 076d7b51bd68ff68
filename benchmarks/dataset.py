"""Voxels per second that training on codes sees, against reading the volumes.

    python benchmarks/dataset.py WORKSPACE [--series 4] [--epochs 3] [--rows 8]

One process, one thread: all slices of the volumes through StoredVolume.slab, and the same slices' codes through
CodesDataset, in the first epoch (decoding) and in later ones (held in memory). JSON on stdout, a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scores import machine, table

from archive import open_codes, open_volumes
from model.dataset import CodesDataset

SLICES = 8  # of a volume read at once, as its chunks lie
COLUMNS = ["what", "seconds", "voxels_s", "times_volume"]


def main() -> None:
    """Measure and print."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # looked at when numpy is imported: one core is what is measured
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--series", type=int, default=4, help="at most so many, the largest")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="slices of codes in an item")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(
        open_volumes(arguments.workspace),
        open_codes(arguments.workspace),
        arguments.series,
        arguments.epochs,
        arguments.rows,
    )
    print(table(found["rows"], COLUMNS), file=sys.stderr)
    print(json.dumps(found))


def measure(
    volumes: Mapping[str, Any], codes: Mapping[str, Any], series: int = 4, epochs: int = 3, rows: int = 8
) -> dict[str, Any]:
    """The largest series by both ways; figures ready for JSON. volumes, codes: series = stored one."""
    names = sorted(codes, key=lambda name: -math.prod(codes[name].shape))[:series]
    voxels = sum(math.prod(volumes[name].shape) for name in names)
    for _warm in range(2):  # the files are in memory either way
        began = time.perf_counter()
        for name in names:
            volume = volumes[name]
            for start in range(0, volume.slices, SLICES):
                volume.slab(start, min(start + SLICES, volume.slices))
        seconds = time.perf_counter() - began
    found = [{"what": "volumes", "seconds": seconds, "voxels_s": voxels / seconds, "times_volume": 1.0}]
    dataset = CodesDataset({name: codes[name] for name in names}, patch=(rows, None, None))
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        began = time.perf_counter()
        items = sum(1 for _ in dataset)
        taken = time.perf_counter() - began
        what = "codes, first epoch" if epoch == 0 else f"codes, epoch {epoch + 1}"
        about = {"what": what, "seconds": taken, "voxels_s": voxels / taken, "times_volume": seconds / taken}
        found.append({**about, "items": items})
    return {"benchmark": "dataset", "series": len(names), "voxels": voxels, "rows": found, **machine()}


if __name__ == "__main__":
    main()

"""Voxels per second that training on codes sees, against reading the volumes.

    python benchmarks/dataset.py WORKSPACE [--series 4] [--epochs 3] [--rows 8]

One process, one thread: all slices of the volumes through StoredVolume.slab, and the same slices' codes through
CodesDataset, in the first epoch (decoding) and in later ones (held in memory). JSON on stdout, a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from scores import machine, table

from archive import open_codes, open_volumes
from model.dataset import CodesDataset

SLICES = 8  # of a volume read at once, as its chunks lie
COLUMNS = ["what", "seconds", "voxels_s", "times_volume"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--series", type=int, default=4, help="at most so many, the largest")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="slices of codes in an item")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    volumes, codes = open_volumes(arguments.workspace), open_codes(arguments.workspace)
    names = sorted(codes, key=lambda name: -math.prod(codes[name].shape))[: arguments.series]
    voxels = sum(math.prod(volumes[name].shape) for name in names)
    for _warm in range(2):  # the files are in memory either way
        began = time.perf_counter()
        for name in names:
            volume = volumes[name]
            for start in range(0, volume.slices, SLICES):
                volume.slab(start, min(start + SLICES, volume.slices))
        seconds = time.perf_counter() - began
    rows = [{"what": "volumes", "seconds": seconds, "voxels_s": voxels / seconds, "times_volume": 1.0}]
    dataset = CodesDataset({name: codes[name] for name in names}, patch=(arguments.rows, None, None))
    for epoch in range(arguments.epochs):
        dataset.set_epoch(epoch)
        began = time.perf_counter()
        for _item in dataset:
            pass
        taken = time.perf_counter() - began
        what = "codes, first epoch" if epoch == 0 else f"codes, epoch {epoch + 1}"
        rows.append({"what": what, "seconds": taken, "voxels_s": voxels / taken, "times_volume": seconds / taken})
    print(table(rows, COLUMNS), file=sys.stderr)
    print(json.dumps({"benchmark": "dataset", "series": len(names), "voxels": voxels, "rows": rows, **machine()}))


if __name__ == "__main__":
    main()

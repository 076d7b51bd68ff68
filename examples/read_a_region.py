"""Voxels out of a workspace: the lossless volume and the decoded codes of one series, only as much as is asked for.

python examples/read_a_region.py ws 3f2a
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from archive import open_volumes
from archive.workspace import Workspace
from model import open_decoded


def main(root: Path, beginning: str) -> float:
    """Compare a block in the middle of a series from both tiers; returns the mean absolute difference in its units."""
    workspace = Workspace.open(root)
    series = workspace.catalog.one(beginning).series  # the whole pseudonym
    volume, decoded = open_volumes(workspace)[series], open_decoded(workspace)[series]

    *_, depth, height, width = decoded.shape
    z, y, x = depth // 2, slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    block = np.asarray(decoded[..., z : z + 1, y, x])  # stored values; decodes the windows it touches, no more
    exact = np.asarray(volume.array[..., z : z + 1, y, x])
    lazy = decoded.as_dask()  # for what does not fit into memory

    about = volume.header()  # geometry, slope, intercept, units; reads no voxels
    slope, intercept = about.slope[z % len(about.slope)], about.intercept[z % len(about.slope)]  # PET: one per slice
    difference = float(np.abs(block.astype(float) - exact).mean() * abs(slope))
    print(f"{series[:12]}: {volume.modality} {volume.shape} {volume.dtype}")
    print(f"value = {slope:g} * stored + {intercept:g} {volume.units}")
    print(f"affine (z y x 1) -> (L P S 1) in mm:\n{np.array(volume.geometry.matrix).round(3)}")
    print(f"a block {block.shape}: codes differ from the volume by {difference:.2f} {volume.units} on average")
    print(f"as dask: {lazy.shape} in {lazy.npartitions} chunks")
    return difference


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])

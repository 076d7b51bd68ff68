"""Every certificate of a workspace as CSV, the worst series first: for a notebook, a spreadsheet or a threshold of your own.

python examples/quality_table.py ws > quality.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any, TextIO

from archive.workspace import Workspace

COLUMNS = (
    "series",
    "group",
    "state",
    "psnr",
    "ssim",
    "mean_error",
    "max_error",
    "units",
    "bits",
    "ratio",
    "jpeg2000_psnr",
)


def main(root: Path, out: TextIO) -> list[dict[str, Any]]:
    """Write the table; returns its rows. Errors in the units of each series, bits per voxel as they lie on disk."""
    workspace = Workspace.open(root)
    known = {row.series: row for row in workspace.catalog.series()}
    rows = [
        {
            "series": row.series,
            "group": known[row.series].group,
            "state": known[row.series].state,
            "psnr": row.psnr,
            "ssim": row.ssim,
            "units": known[row.series].units,
            "bits": row.data["bits_per_voxel"]["disk"],
            **{name: row.data.get(name) for name in ("mean_error", "max_error", "ratio", "jpeg2000_psnr")},
        }
        for row in workspace.catalog.certificates()
    ]
    rows.sort(key=lambda row: row["psnr"])
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.stdout)

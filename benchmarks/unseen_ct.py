"""Fidelity on CT of patients that the training never saw: voxbook's default preset, and JPEG 2000 at the same bytes.

    python benchmarks/unseen_ct.py ../shared/data --seconds 460 --leave-out ct_lidc_chest --leave-out sts001_flat_mixed

Ingests the CT of the data with the folders named left out, trains the group ct, then ingests what was left out and
encodes it. Prints a table on stderr and one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

from archive.workspace import Workspace
from flows.encode import encode
from flows.ingest import ingest
from flows.train import train

FOLDERS = (
    "train/ct_head_phantom_1mm",
    "series/ct_ibsi_lung_phantom",
    "series/ct_lidc_chest",
    "series/sts001_flat_mixed",
)


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=460.0, help="what CT gets of 15 minutes on the whole data")
    parser.add_argument("--leave-out", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    left = [folder for folder in FOLDERS if Path(folder).name in arguments.leave_out]
    if len(left) != len(set(arguments.leave_out)):
        parser.error(f"--leave-out takes {', '.join(Path(folder).name for folder in FOLDERS)}")
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(measure(arguments.data, Path(root), left, arguments.seconds, arguments.set)))


def measure(data: Path, root: Path, left: list[str], seconds: float, overrides: list[str]) -> dict:
    """Train on all but `left`, encode `left`; figures per unseen series."""
    settings = [f"train.max_seconds={seconds}", *overrides]
    run(ingest, root, settings, sources=register(root, data, [folder for folder in FOLDERS if folder not in left]))
    trained = run(train, root, settings, group="ct")
    run(ingest, root, settings, sources=register(root, data, left))
    catalog = Workspace.open(root).catalog
    unseen = unseen_series(root, data, left)
    assert unseen or not left, "nothing of what was left out is CT"
    run(encode, root, settings, series=[series for series, _ in unseen])
    certificates = {row.series: row for row in catalog.certificates()}
    figures = [figure(folder, certificates[series]) for series, folder in unseen]
    for item in figures:
        sys.stderr.write(
            "{folder:<24} {psnr:6.2f} dB  SSIM {ssim:.4f}  bits {fixed:.3f} {entropy:.3f}\n".format(**item)
        )
    return {
        "benchmark": "unseen_ct",
        "device": "cuda" if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": {key: trained.counts[key] for key in ("preset", "steps", "seconds", "codebook_use")},
        "unseen": figures,
    }


def register(root: Path, data: Path, folders: list[str]) -> list[str]:
    """Aliases of the folders, references left out."""
    home = Workspace.open(root, create=True)
    return [home.register_source(data / folder, exclude=["**/Ref/**"]) for folder in folders]


def unseen_series(root: Path, data: Path, left: list[str]) -> list[tuple[str, str]]:
    """CT series of the folders left out, with the folder's name."""
    home = Workspace.open(root)
    names = {home.alias_of(data / folder): Path(folder).name for folder in left}
    return [(row.series, names[row.source]) for row in home.catalog.series(group="ct") if row.source in names]


def figure(folder: str, certificate) -> dict:
    """One line of the table."""
    found = certificate.data
    return {
        "folder": folder,
        "psnr": round(found["psnr"], 2),
        "ssim": round(found["ssim"], 4),
        "fixed": round(found["bits_per_voxel"]["fixed"], 4),
        "entropy": round(found["bits_per_voxel"]["entropy"], 4),
        "disk": round(found["bits_per_voxel"]["disk"], 4),
        "jpeg2000_psnr": found["jpeg2000_psnr"],
        "codes_psnr_there": found["codes_psnr_there"],
    }


def run(flow, root: Path, settings: list[str], **parameters):
    """One stage, without Prefect."""
    return flow.fn(workspace=str(root), settings=settings, **parameters)


if __name__ == "__main__":
    main()

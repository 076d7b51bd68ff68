"""DICOM in, codes, a volume back: the Python functions alone, on one folder, without a workspace, catalog or Prefect.

python examples/without_a_workspace.py folder models
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from archive import read_series, scan
from archive.settings import TrainSettings
from model import decode_codes, encode_volume, load, train
from model.config import intensity_for, preset_for, resolve


def main(folder: Path, models: Path, seconds: float = 60.0, preset: str | None = None) -> float:
    """Train on all series of the largest group, encode and decode the first; returns its mean absolute error in units."""
    found = scan(folder)
    print(f"{len(found.plans)} series; refused: {sorted({finding.code for finding in found.findings})}")
    groups = {plan.group for plan in found.plans}
    group = max(sorted(groups), key=lambda name: sum(plan.voxels for plan in found.plans if plan.group == name))
    plans = {plan.series: plan for plan in found.plans if plan.group == group}
    volumes = {name: read_series(plan) for name, plan in plans.items()}

    first = next(iter(volumes.values()))
    mapping = intensity_for(first.modality, first.channels, first.units)
    chosen = preset or preset_for(first.modality, first.channels)
    config = resolve(chosen, TrainSettings(), channels=first.channels, intensity=mapping)
    patients = {name: plan.patient for name, plan in plans.items()}
    result = train(volumes, patients, config, TrainSettings(threads=1), models / "training", seconds, models=models)
    print(f"{result.preset}: {result.steps} steps, {result.psnr:.1f} dB at {result.bits_per_voxel:.3f} bits per voxel")

    model = load(models / result.model)
    codes = encode_volume(model, first, model_id=result.model)
    back = decode_codes(model, codes)
    error = float(np.abs(back.values() - first.values()).mean())
    print(f"{first.voxels.shape} -> codes {codes.array.shape} -> {back.voxels.shape}, off by {error:.1f} {first.units}")
    return error


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What a training reached, as its caller gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """What a training reached.

    model: id of the bundle written. psnr, worst_decile (mean of the worst tenth of the series), ssim, bits_per_voxel
    (zero-order entropy) and codebook_use are measured on patients held out, or on training patients where
    `held_out_patients` is 0. steps, seconds: over all runs of a resumed training. resumed_from: the step this run began
    at. ended_by: steps, time or patience. skipped: steps that were not finite; rollbacks: returns to a good state.
    input_shape, output_shape: of a test pass, [B, C, *patch].
    """

    model: str
    preset: str
    steps: int
    seconds: float
    psnr: float
    worst_decile: float
    ssim: float | None
    bits_per_voxel: float
    codebook_use: float
    held_out_patients: int
    resumed_from: int
    ended_by: str
    skipped: int
    rollbacks: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    folder: Path = field(repr=False)

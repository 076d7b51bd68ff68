"""Sizes by cross-validation: the grid of candidates, folds of patients, one training measured on its fold."""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from archive.errors import ConfigError
from archive.settings import TrainSettings
from model.bundle import load
from model.config import ModelConfig, Triple, resolve
from model.fidelity import sample_fidelity
from model.train import train

SAMPLE_PIECES = 24  # slices (blocks, for a 3D model) of each fold that are measured, the same ones for every candidate


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the grid; `width` stands for train.width, from which the widths of all layers follow.

    downsample: voxels per code along z, y, x.
    """

    width: int
    codebook_size: int
    levels: int
    downsample: Triple

    def settings(self) -> dict[str, Any]:
        """What it is called in voxbook.toml under [train] or [groups.NAME.train]."""
        return {
            "codebook_size": self.codebook_size,
            "width": self.width,
            "levels": self.levels,
            "downsample": list(self.downsample),
        }


@dataclass(frozen=True)
class Folds:
    """Test series of each fold. kind says what was kept together: all series of a patient, or of nobody."""

    kind: Literal["patients", "series"]
    tests: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What one training of a candidate reached on the test volumes of its fold; `code` where it came to nothing.

    seconds: given to the training. psnr in dB; bits_per_voxel by zero-order entropy, which is what an entropy coder
    needs; codebook_use: share of the codes that occur there.
    """

    candidate: Candidate
    fold: int
    seed: int = 0
    seconds: float = 0.0
    psnr: float = math.nan
    ssim: float | None = None
    bits_per_voxel: float = math.nan
    codebook_use: float = math.nan
    steps: int = 0
    code: str = ""


def grid(
    config: ModelConfig,
    sizes: Sequence[int] = (),
    widths: Sequence[int] = (),
    levels: Sequence[int] = (),
    downsamples: Sequence[Triple] = (),
) -> list[Candidate]:
    """Every combination of codebook size, width, levels and downsampling, narrow and small first.

    Without sizes: a quarter, half and the whole of the preset's; without widths: half and the whole; without levels or
    downsamples: the preset's alone. Raises ConfigError BAD_USAGE for a value that no model can have.
    """
    sizes = sizes or [max(2, config.codebook_size // part) for part in (4, 2, 1)]
    widths = widths or [max(8, config.width // part) for part in (2, 1)]
    levels = levels or [config.levels]
    downsamples = downsamples or [config.downsample]
    if not all(2 <= size <= 65535 for size in sizes):
        raise ConfigError("BAD_USAGE", "a codebook size lies between 2 and 65535", hint="--sizes 256,512,1024")
    if not all(width >= 8 for width in widths):
        raise ConfigError("BAD_USAGE", "a width is at least 8", hint="--widths 64,128")
    if not all(1 <= level <= 16 for level in levels):
        raise ConfigError("BAD_USAGE", "a model has 1 to 16 levels", hint="--levels 1,2")
    if not all(min(factors) >= 1 for factors in downsamples):
        raise ConfigError("BAD_USAGE", "a code stands for at least one voxel", hint="--downsamples 1x8x8,1x4x4")
    return sorted({Candidate(*point) for point in itertools.product(widths, sizes, levels, downsamples)})


def configured(candidate: Candidate, config: ModelConfig, settings: TrainSettings) -> ModelConfig:
    """The config that `voxbook train` makes when the candidate's settings stand in voxbook.toml.

    Raises ConfigError BAD_VALUE where they do not fit the preset.
    """
    chosen = TrainSettings.model_validate({**settings.model_dump(), **candidate.settings()})
    return resolve(config.preset, chosen, channels=config.channels, intensity=config.intensity)


def distinct(candidates: Sequence[Candidate], config: ModelConfig, settings: TrainSettings) -> list[Candidate]:
    """Candidates by what they come to: fsq has few codebook sizes, and several wished for may be one."""
    sizes = (configured(point, config, settings).codebook_size for point in candidates)
    return sorted({replace(point, codebook_size=size) for point, size in zip(candidates, sizes, strict=True)})


def folds(patients: Mapping[str, str], k: int, seed: int) -> Folds:
    """Cut series into k folds so that nobody is in two of them.

    patients: series = patient. By hash of the seed and the patient, so that a run and its repetition cut alike. Fewer
    patients than folds: by series, and `kind` says it; fewer series too: as many folds as series. Raises ConfigError
    BAD_USAGE for less than two series or folds.
    """
    if k < 2:
        raise ConfigError("BAD_USAGE", "cross-validation takes at least 2 folds", hint="--folds 3")
    if len(patients) < 2:
        raise ConfigError(
            "BAD_USAGE",
            f"cross-validation needs at least 2 series, and the group has {len(patients)}",
            hint="ingest more, or set train.codebook_size and train.width without it",
        )
    by_patient = len(set(patients.values())) >= k
    owner = dict(patients) if by_patient else {series: series for series in patients}
    ranked = sorted(set(owner.values()), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    k = min(k, len(ranked))
    place = {name: number % k for number, name in enumerate(ranked)}
    tests = [tuple(sorted(series for series in owner if place[owner[series]] == number)) for number in range(k)]
    return Folds("patients" if by_patient else "series", tuple(tests))


def evaluate(
    candidate: Candidate,
    training: Mapping[str, Any],
    testing: Mapping[str, Any],
    config: ModelConfig,
    settings: TrainSettings,
    seconds: float,
    fold: int = 0,
) -> Result:
    """Train a candidate for `seconds` in a folder that is gone afterwards, and measure it on volumes it never saw.

    training, testing: series = StoredVolume (or Volume). Measuring takes the same slices for every candidate and comes
    on top of the seconds. Raises what training raises: InputError NON_FINITE where the loss does not stay finite.
    """
    alone = settings.model_copy(update={"holdout": 0.0})  # the fold is the hold-out
    with tempfile.TemporaryDirectory(prefix="voxbook-select-") as folder:
        chosen = configured(candidate, config, settings)
        trained = train(training, {name: name for name in training}, chosen, alone, Path(folder), seconds)
        model = load(trained.folder, trained.model, device=settings.device)
        measured = sample_fidelity(model, testing, math.inf, most=SAMPLE_PIECES)
    return Result(
        candidate,
        fold,
        settings.seed,
        seconds,
        measured.psnr,
        measured.ssim,
        measured.bits_per_voxel,
        measured.codebook_use,
        trained.steps,
    )

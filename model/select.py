"""Codebook size and width by cross-validation: folds of patients, a grid of candidates, and the rule that chooses."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archive.errors import ConfigError
from archive.settings import TrainSettings
from model.bundle import load
from model.config import ModelConfig, resolve
from model.fidelity import sample_fidelity
from model.train import train

SAMPLE_PIECES = 24  # slices (blocks, for a 3D model) of each fold that are measured, the same ones for every candidate


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the grid; `width` stands for train.width, from which the widths of all layers follow."""

    width: int
    codebook_size: int

    def settings(self) -> dict[str, int]:
        """What it is called in voxbook.toml under [train]."""
        return {"codebook_size": self.codebook_size, "width": self.width}


@dataclass(frozen=True)
class Folds:
    """Test series of each fold. kind says what was kept together: all series of a patient, or of nobody."""

    kind: Literal["patients", "series"]
    tests: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What one candidate reached on the test volumes of one fold; `code` where its training came to nothing.

    psnr in dB; bits_per_voxel by zero-order entropy; codebook_use: share of the codes that occur there.
    """

    candidate: Candidate
    fold: int
    psnr: float = math.nan
    ssim: float | None = None
    bits_per_voxel: float = math.nan
    codebook_use: float = math.nan
    steps: int = 0
    code: str = ""


@dataclass(frozen=True)
class Score:
    """A candidate over all folds: means, and the standard error of the mean PSNR in dB. failed: folds without one.

    steps: of the shortest training; few of them rank how quickly a size starts to learn, not what it reaches.
    """

    candidate: Candidate
    folds: int
    failed: int
    psnr_mean: float
    psnr_se: float
    bits_per_voxel: float
    codebook_use: float
    steps: int


def grid(sizes: Sequence[int], widths: Sequence[int], config: ModelConfig) -> list[Candidate]:
    """Every pair of size and width, narrow and small first.

    Without sizes: a quarter, half and the whole of the preset's; without widths: half and the whole. Raises ConfigError
    BAD_USAGE for a value that no model can have.
    """
    sizes = sizes or [max(2, config.codebook_size // part) for part in (4, 2, 1)]
    widths = widths or [max(8, config.width // part) for part in (2, 1)]
    if not all(2 <= size <= 65535 for size in sizes):
        raise ConfigError("BAD_USAGE", "a codebook size lies between 2 and 65535", hint="--sizes 256,512,1024")
    if not all(width >= 8 for width in widths):
        raise ConfigError("BAD_USAGE", "a width is at least 8", hint="--widths 64,128")
    return sorted({Candidate(width, size) for width in widths for size in sizes})


def configured(candidate: Candidate, config: ModelConfig, settings: TrainSettings) -> ModelConfig:
    """The config that `voxbook train` makes when the candidate's settings stand in voxbook.toml."""
    chosen = settings.model_copy(update=candidate.settings())
    return resolve(config.preset, chosen, channels=config.channels, intensity=config.intensity)


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
        measured.psnr,
        measured.ssim,
        measured.bits_per_voxel,
        measured.codebook_use,
        trained.steps,
    )


def scores(results: Sequence[Result]) -> list[Score]:
    """Results by candidate, in the order of the grid; figures are NaN where every fold of a candidate failed."""
    found = []
    for candidate in sorted({result.candidate for result in results}):
        own = [result for result in results if result.candidate == candidate]
        good = [result for result in own if not result.code]
        psnrs = [result.psnr for result in good]
        error = float(np.std(psnrs, ddof=1)) / math.sqrt(len(psnrs)) if len(psnrs) > 1 else math.nan
        found.append(
            Score(
                candidate,
                len(own),
                len(own) - len(good),
                _mean(psnrs),
                error,
                _mean([result.bits_per_voxel for result in good]),
                _mean([result.codebook_use for result in good]),
                min((result.steps for result in good), default=0),
            )
        )
    return found


def choose(results: Sequence[Result]) -> Score | None:
    """The candidate with the fewest bits per voxel whose mean PSNR is within one standard error of the best mean.

    Bits by zero-order entropy. The one-standard-error rule of Breiman et al., Classification and Regression Trees
    (1984), 3.4.3; the error is the best candidate's. Candidates that failed in a fold are left out; None where all
    did. Of equal bits the narrower, then the smaller codebook.
    """
    whole = [score for score in scores(results) if not score.failed]
    if not whole:
        return None
    best = max(whole, key=lambda score: score.psnr_mean)
    allowed = best.psnr_mean - (best.psnr_se if math.isfinite(best.psnr_se) else 0.0)
    near = [score for score in whole if score.psnr_mean >= allowed]
    return min(near, key=lambda score: (score.bits_per_voxel, score.candidate))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan

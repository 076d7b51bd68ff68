"""PSNR and SSIM as every benchmark here states them, and what contestants are asked for on series they never saw."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from archive.volumes import StoredVolume
from model import intensity
from model.fidelity import Peak, peak_of
from model.metrics import WINDOW, entropy, perplexity, psnr, use
from model.source import as_source, channel_slab


@dataclass(frozen=True)
class Score:
    """psnr: dB, from the mean squared error over all pictures; ssim: mean over pictures, None where none is large
    enough for the window; pictures: how many; largest: error of any value, within the peak's range."""

    psnr: float
    ssim: float | None
    pictures: int
    largest: float = 0.0


class Scorer:
    """Adds up pictures of one series against their source, clipped to the series' peak where that says so (CT)."""

    def __init__(self, peak: Peak) -> None:
        self.peak = peak
        self._squares: list[float] = []
        self._similar: list[float] = []
        self._largest = 0.0

    def add(self, source: np.ndarray, decoded: np.ndarray) -> None:
        """One picture [y, x] (or [c, y, x]) in the series' units, and what became of it."""
        a, b = (self.peak.cut(values.reshape(-1, *values.shape[-2:])) for values in (source, decoded))
        self._squares.append(float(np.square(a - b).mean()))
        self._largest = max(self._largest, float(np.abs(a - b).max()))
        if min(a.shape[-2:]) >= WINDOW:
            self._similar += [similarity(x, y, self.peak.range) for x, y in zip(a, b, strict=True)]

    def score(self) -> Score:
        """The figures so far."""
        found = psnr(float(np.mean(self._squares)), self.peak.range)
        similar = float(np.mean(self._similar)) if self._similar else None
        return Score(found, similar, len(self._squares), self._largest)


def similarity(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """scikit-image's SSIM of two pictures [y, x], window 7."""
    return float(structural_similarity(a, b, data_range=data_range, win_size=WINDOW))


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` numbers of 0 to count - 1, evenly spread, in the middle of their shares; all for None."""
    if most is None or most >= count:
        return list(range(count))
    return [int((i + 0.5) / most * count) for i in range(most)]


class Contestant(Protocol):
    """What a trained model is asked for; everything in the model's range, float32."""

    cell: tuple[int, int]
    codebook_size: int

    def codes(self, x: Tensor) -> Tensor:
        """Indices int64 [B, L, h, w] of pictures [B, C, H, W], sizes multiples of `cell`."""
        ...

    def pictures(self, codes: Tensor) -> Tensor:
        """[B, C, H, W] of indices."""
        ...


@dataclass(frozen=True)
class Judged:
    """One series through a contestant. fixed, entropy: bits per voxel of the pictures judged, by the index and by the
    zero-order entropy of these codes. counts: int64 [L, K], how often each code occurs."""

    name: str
    score: Score
    fixed: float
    entropy: float
    counts: np.ndarray

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {
            "series": self.name,
            "psnr": round(self.score.psnr, 2),
            "ssim": None if self.score.ssim is None else round(self.score.ssim, 4),
            "pictures": self.score.pictures,
            "fixed": round(self.fixed, 4),
            "entropy": round(self.entropy, 4),
            "perplexity": [round(perplexity(level), 1) for level in self.counts],
            "use": [round(use(level), 4) for level in self.counts],
        }


@torch.inference_mode()
def judge(contestant: Contestant, volume: StoredVolume, mapping_kind: str, most: int | None, name: str = "") -> Judged:
    """Whole slices of a series, evenly spread, through a 2D contestant in float32.

    Padded by their edges to whole cells; decoded values are rounded to whole stored steps, as decoding does.
    """
    source = as_source(volume)
    mapping = intensity.fit(source, mapping_kind)
    scorer = Scorer(peak_of(source))
    counts: np.ndarray | None = None
    symbols, voxels = 0, 0
    for at in spread(source.slices, most):
        values = channel_slab(source, at, at + 1)[0]
        rows, columns = values.shape[-2:]
        pad = [(0, 0), (0, -rows % contestant.cell[0]), (0, -columns % contestant.cell[1])]
        x = torch.from_numpy(np.pad(mapping.to_model(values), pad, mode="edge"))[None]
        codes = contestant.codes(x)
        decoded = mapping.to_values(contestant.pictures(codes)[0, :, :rows, :columns].float().numpy())
        if source.dtype.kind in "iu" and len(source.attributes["slope"]) == 1:
            step, zero = source.attributes["slope"][0], source.attributes["intercept"][0]
            decoded = np.rint((decoded - zero) / step) * step + zero
        scorer.add(values, decoded)
        found = np.stack([np.bincount(level.ravel(), minlength=contestant.codebook_size)
                          for level in codes[0].numpy()])  # fmt: skip
        counts = found if counts is None else counts + found
        symbols += codes.numel()
        voxels += rows * columns
    assert counts is not None
    bits = (contestant.codebook_size - 1).bit_length()
    entropies = sum(entropy(level) * int(level.sum()) for level in counts)
    return Judged(name, scorer.score(), symbols * bits / voxels, entropies / voxels, counts)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def machine(*packages: str) -> dict:
    """Device and versions, for the JSON line."""
    versions = {"python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    device = f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return {"device": device, "versions": versions}


def table(rows: list[dict], columns: list[str]) -> str:
    """Markdown of the columns named."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_said(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _said(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 4 if abs(value) < 1 else 2
        return f"{value:.{digits}f}" if math.isfinite(value) else str(value)
    return ", ".join(map(_said, value)) if isinstance(value, list | tuple) else str(value)

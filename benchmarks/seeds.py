"""How much a seed decides: the same preset trained several times, and the spread of its fidelity on unseen series.

    python benchmarks/seeds.py ../shared/data --preset ct-2d --seeds 5 --seconds 120 --leave-out ct_lidc_chest

The goal is a spread (largest less smallest mean PSNR) under 0.5 dB, and codebooks used above 90 % on every level.
Use is told twice: on slices of what was trained on, which is what a codebook is for, and on the unseen series alone,
which are few. Prints a table on stderr and one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from configs import config_of
from held_out import DEFAULT_LEFT, Split, opened
from scores import Scorer, machine, mean, spread, table

from archive.settings import TrainSettings
from archive.volume import Volume
from model import bundle
from model.decode import decode_codes
from model.encode import encode_volume
from model.fidelity import peak_of
from model.metrics import histogram, use
from model.source import as_source, channel_slab
from model.train import train
from model.vqvae import VQVAE

GOAL_DB = 0.5


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="ct", choices=[*DEFAULT_LEFT])
    parser.add_argument("--preset", metavar="PRESET[,KEY=VALUE…]", help="none: the group's own")
    parser.add_argument("--leave-out", action="append", default=[], metavar="FOLDER[/PATIENTS]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each training, everything included")
    parser.add_argument("--steps", type=int, help="of each training, where it is to be the same for all")
    parser.add_argument("--series", type=int, default=12, help="judged at most, evenly spread")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workspace", type=Path, help="where the data stay ingested; none: a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, arguments.leave_out, arguments.workspace) as split:
        found = measure(split, arguments)
    sys.stderr.write(table(found["results"], ["seed", "steps", "psnr", "ssim", "use", "use_unseen"]) + "\n")
    print(json.dumps(found))


def measure(split: Split, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row per seed, and what they say together."""
    rows = [one_seed(split, seed, arguments) for seed in range(arguments.seeds)]
    psnrs = [row["psnr"] for row in rows]
    least = min(min(row["use"]) for row in rows)
    return {
        "benchmark": "seeds",
        **machine("scikit-image"),
        "group": split.group,
        "preset": rows[0]["preset"],
        "seconds": arguments.seconds,
        "unseen": sorted({split.names[name] for name in split.unseen}),
        "results": rows,
        "psnr_spread": round(max(psnrs) - min(psnrs), 3),
        "psnr_sd": round(statistics.stdev(psnrs), 3) if len(psnrs) > 1 else None,
        "goal_db": GOAL_DB,
        "least_use": least,
        "passed": bool(max(psnrs) - min(psnrs) < GOAL_DB and least > 0.9),
    }


def one_seed(split: Split, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with a seed and judge on the unseen series."""
    settings = TrainSettings(threads=arguments.threads, holdout=0.0, seed=seed, steps=arguments.steps)
    config = config_of(split, arguments.preset, settings)
    with TemporaryDirectory() as folder:
        result = train(split.learn, split.patients, config, settings, Path(folder), arguments.seconds)
        model = bundle.load(result.folder)
    unseen = [split.unseen[name] for name in _picked(list(split.unseen), arguments.series)]
    psnrs, ssims, counts = zip(*(judged(model, volume) for volume in unseen), strict=True)
    seen = [split.learn[name] for name in _picked(list(split.learn), arguments.series)]
    trained_on = np.sum([histogram(encode_volume(model, volume).array, config.codebook_size) for volume in seen], 0)
    return {
        "seed": seed,
        "preset": arguments.preset or config.preset,
        "steps": result.steps,
        "psnr": round(mean(list(psnrs)) or 0.0, 3),
        "ssim": mean(list(ssims)),
        "use": [round(use(level), 4) for level in trained_on],
        "use_unseen": [round(use(level), 4) for level in np.sum(counts, 0)],
        "psnr_by_series": [round(value, 2) for value in psnrs],
    }


def judged(model: VQVAE, volume: Any) -> tuple[float, float | None, np.ndarray]:
    """PSNR, SSIM and the codes' histogram [L, K] of a whole series, through the code that archives are made with."""
    source = as_source(volume)
    codes = encode_volume(model, source)
    decoded: Volume = decode_codes(model, codes)
    scorer, other = Scorer(peak_of(source)), as_source(decoded)
    for at in spread(source.slices, 24):
        scorer.add(channel_slab(source, at, at + 1)[0], channel_slab(other, at, at + 1)[0])
    score = scorer.score()
    return score.psnr, score.ssim, histogram(codes.array, codes.codebook_size)


def _picked(names: list[str], most: int) -> list[str]:
    return [names[at] for at in spread(len(names), most)]


if __name__ == "__main__":
    main()

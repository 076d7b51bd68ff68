"""What the loader costs: batches a second by itself, training with it, and training on one batch over and over.

    python benchmarks/loader.py ../shared/data --group ct --seconds 20

Training is bound by computing where it is as quick with the loader as without; the loader's own rate says how much
room there is. Prints one JSON line; samples are patches.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from held_out import DEFAULT_LEFT, opened
from scores import machine

from archive.volumes import StoredVolume
from model.config import ModelConfig, intensity_for, preset_for, resolve
from model.device import pick
from model.feed import on_device
from model.learner import Learner
from model.patches import PatchSampler

CACHE_BYTES = 2 * 2**30
WARM_STEPS = 5
BOUND = 0.9  # of the rate on one repeated batch: training is bound by computing


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="ct", choices=[*DEFAULT_LEFT])
    parser.add_argument("--preset", help="none: the group's own")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the three")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workspace", type=Path, help="where the data stay ingested; none: a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, [], arguments.workspace) as split:
        first = next(iter(split.learn.values()))
        modality, units = first.attributes["modality"], first.units
        preset = arguments.preset or preset_for(modality)
        config = resolve(preset, intensity=intensity_for(modality, units=units))
        found = measure(split.learn, config, arguments.seconds, pick(arguments.device), arguments.compile)
    print(json.dumps({"benchmark": "loader", "group": arguments.group, "preset": preset, **found, **machine()}))


def measure(
    volumes: dict[str, StoredVolume], config: ModelConfig, seconds: float, device: torch.device, compiled: bool = False
) -> dict[str, Any]:
    """Patches a second of sampler, of training with it, of training on one batch; and what training is bound by."""
    sampler = PatchSampler(volumes, config, config.seed, CACHE_BYTES)
    alone = _rate(lambda step: sampler.batch(step), config, seconds, device)
    learner = Learner(config, device, compiled)
    repeated = next(on_device(iter([sampler.batch(0)]), device, config.dims == 2))
    learner.start_codebooks([repeated], 0)
    same = _rate(lambda step: learner.advance([repeated], step, 1e-3, True), config, seconds, device)
    stop = threading.Event()
    # A sampler that has nothing in memory yet: reading the slabs is part of what training waits for.
    cold = PatchSampler(volumes, config, config.seed, CACHE_BYTES)
    coming = on_device(cold.batches(0, stop), device, config.dims == 2)
    loaded = _rate(lambda step: learner.advance([next(coming)], step, 1e-3, True), config, seconds, device)
    stop.set()
    ratio = loaded / same
    return {
        "sampler_samples_per_s": round(alone, 1),
        "training_samples_per_s": round(loaded, 2),
        "training_on_one_batch_samples_per_s": round(same, 2),
        "ratio": round(ratio, 3),
        "bound_by": "computing" if ratio >= BOUND else "loading",
    }


def _rate(work: Callable[[int], Any], config: ModelConfig, seconds: float, device: torch.device) -> float:
    """Samples a second of one batch after another, the first few not counted."""
    for step in range(WARM_STEPS):
        work(step)
    _wait(device)
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
        work(WARM_STEPS + steps)
        steps += 1
    _wait(device)
    return steps * config.batch_size / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

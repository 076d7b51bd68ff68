"""Train the model of one group in this process, where the GPU is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from archive.catalog_schema import ModelRow, SeriesRow
from archive.errors import TransientError
from archive.volumes import StoredVolume
from model.config import ModelConfig, intensity_for, preset_for, resolve
from model.train import train
from tasks.progress import advance
from tasks.stage import Stage


@task(name="train-group", task_run_name="train {group}", cache_policy=NO_CACHE, persist_result=False)
def train_group(stage: Stage, group: str, seconds: float) -> dict[str, Any]:
    """Train, publish and register one group's model; the same settings on the same volumes do nothing again.

    Returns model, group, preset, steps, seconds, psnr, ssim, bits_per_voxel, codebook_use and `unchanged`. A run that
    was killed goes on from its checkpoint.
    """
    rows = stage.catalog.series(group=group)
    config, preset = model_config(stage, group, rows)
    versions = {row.series: stage.catalog.version(row.volume_version) for row in rows}
    key = train_key(stage, config, sorted(version.content_digest for version in versions.values()))
    for model in stage.catalog.models(group):
        if model.train_key == key:
            return {**model.summary, "model": model.model, "group": group, "preset": preset, "unchanged": True}
    if not stage.leases.acquire([f"train:{group}"]):
        raise TransientError("LEASED", f"another run is training group {group!r}")

    volumes = {
        row.series: StoredVolume(stage.workspace.volumes / row.series / versions[row.series].version) for row in rows
    }
    folder = stage.workspace.training / f"{group}-{key[:16]}"
    result = train(
        volumes,
        {row.series: row.patient for row in rows},
        config,
        stage.settings.train,
        folder,
        seconds,
        progress=lambda step, steps, elapsed, metrics: advance(
            f"train {group}", min(elapsed, seconds), seconds, "s", f"step {step}, {metrics.get('psnr') or 0:.1f} dB"
        ),
        models=stage.workspace.models,
    )
    summary = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "psnr": result.psnr,
        "ssim": result.ssim,
        "bits_per_voxel": result.bits_per_voxel,
        "codebook_use": result.codebook_use,
        "held_out_patients": result.held_out_patients,
        "series": len(rows),
        "voxels": sum(row.voxels for row in rows),
    }
    stage.catalog.add_model(ModelRow(model=result.model, group=group, preset=preset, train_key=key, summary=summary))
    shutil.rmtree(folder)  # only now: until the catalog names the model, a killed run goes on from the checkpoint
    stage.leases.release([f"train:{group}"])
    return {"model": result.model, "group": group, "preset": preset, **summary, "unchanged": False}


def model_config(stage: Stage, group: str, rows: list[SeriesRow]) -> tuple[ModelConfig, str]:
    """The group's preset with the overrides of [train] applied, and the preset's name."""
    channels = rows[0].channels
    own = stage.settings.groups[group].preset if group in stage.settings.groups else None
    preset = stage.settings.train.preset or own or preset_for(rows[0].modality, channels)
    units = Counter[str]()
    for row in rows:
        units[row.units] += row.voxels
    mapping = intensity_for(rows[0].modality, channels, units.most_common(1)[0][0])
    return resolve(preset, stage.settings.train, channels=channels, intensity=mapping), preset


def train_key(stage: Stage, config: ModelConfig, digests: list[str]) -> str:
    """sha256 over everything that decides what a training gives: config, budget, seed, and the volumes' contents."""
    settings = stage.settings.train
    budget = {"max_seconds": settings.max_seconds, "steps": settings.steps, "seed": settings.seed}
    text = json.dumps([config.model_dump(mode="json"), budget, settings.holdout, digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def share_seconds(voxels: dict[str, int], total: float, floor: float) -> dict[str, float]:
    """Seconds per group: by voxels, none under the floor, together the total."""
    if not voxels:
        return {}
    floor = min(floor, total / len(voxels))
    spare = total - floor * len(voxels)
    everything = sum(voxels.values())
    return {group: floor + spare * count / everything for group, count in voxels.items()}

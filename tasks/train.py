"""Train the model of one group in this process, where the GPU is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.catalog_schema import ModelRow, SeriesRow
from archive.commit import fault_point
from archive.errors import TransientError
from archive.volumes import StoredVolume
from archive.workspace import Workspace
from model.bundle import check
from model.config import ModelConfig, intensity_for, preset_for, resolve
from model.outcome import TrainResult
from model.train import train
from tasks.progress import advance, logger, say
from tasks.stage import Stage, recorded


@dataclass(frozen=True)
class Plan:
    """One group's training: what it is made from, and the key that says whether it was made already."""

    group: str
    config: ModelConfig
    preset: str
    key: str
    rows: list[SeriesRow]
    volumes: dict[str, StoredVolume]
    folder: Path


def plan(stage: Stage | Workspace, group: str) -> Plan:
    """The training of a group as settings and catalog have it now."""
    home = stage.workspace if isinstance(stage, Stage) else stage
    rows = home.catalog.series(group=group)
    config, preset = model_config(stage, group, rows)
    versions = {row.series: home.catalog.version(row.volume_version) for row in rows}
    key = train_key(stage, config, sorted(version.content_digest for version in versions.values()))
    volumes = {row.series: StoredVolume(home.volumes / row.series / versions[row.series].version) for row in rows}
    return Plan(group, config, preset, key, rows, volumes, home.training / f"{group}-{key[:16]}")


@recorded("train-group", "train {group}")
def train_group(stage: Stage, group: str, seconds: float) -> dict[str, Any]:
    """Train, publish and register one group's model; the same settings on the same volumes do nothing again.

    Returns model, group, preset, steps, seconds, psnr, psnr_worst_decile, ssim, bits_per_voxel, codebook_use and
    `unchanged`; `replaces`: the group's current model where its files are gone or broken, so that this one took its
    place. A run that was killed goes on from its checkpoint.
    """
    planned = plan(stage, group)
    known = {"group": group, "preset": planned.preset}
    model = _trained_before(stage.workspace, planned)
    if model is not None:
        return {**model.summary, "model": model.model, **known, "unchanged": True, **_stand_in(stage, model)}
    if not stage.leases.acquire([f"train:{group}"]):
        raise TransientError("LEASED", f"another run is training group {group!r}")

    result = _trained(stage, planned, seconds)
    if planned.config.epochs:
        say(f"Input: {list(result.input_shape)}, Output: {list(result.output_shape)}")
        say(f"PSNR {result.psnr:.2f} dB, {result.codebook_use:.0%} of the codebook in use")
    summary = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "psnr": result.psnr,
        "psnr_worst_decile": result.worst_decile,
        "ssim": result.ssim,
        "bits_per_voxel": result.bits_per_voxel,
        "codebook_use": result.codebook_use,
        "held_out_patients": result.held_out_patients,
        "ended_by": result.ended_by,
        "steps_skipped": result.skipped,
        "rollbacks": result.rollbacks,
        "series": len(planned.rows),
        "voxels": sum(row.voxels for row in planned.rows),
    }
    fault_point("train.published")
    model = stage.catalog.add_model(
        ModelRow(model=result.model, group=group, preset=planned.preset, train_key=planned.key, summary=summary)
    )
    fault_point("train.named")
    replaced = _stand_in(stage, model)
    shutil.rmtree(planned.folder)  # only now: until the catalog names the model, a killed run goes on from it
    stage.leases.release([f"train:{group}"])
    return {"model": result.model, **known, **summary, "unchanged": False, **replaced}


def follow_group(home: Workspace, group: str, seconds: float) -> None:
    """A rank's part in what the first rank's `train_group` does; nothing where that model is there already."""
    planned = plan(home, group)
    if _trained_before(home, planned) is None:
        _trained(home, planned, seconds)


def _trained_before(home: Workspace, planned: Plan) -> ModelRow | None:
    """The model that this training gave before; none where its files are gone or broken: it is trained again."""
    known = (model for model in home.catalog.models(planned.group) if model.train_key == planned.key)
    return next((model for model in known if not check(home.models / model.model)), None)


def _stand_in(stage: Stage, model: ModelRow) -> dict[str, str]:
    """Make a model current where nothing can be encoded or decoded with the current one, and say which it replaces."""
    current = stage.catalog.current_model(model.group)
    if current is None or current.model == model.model or not check(stage.workspace.models / current.model):
        return {}
    stage.catalog.promote(model.model)
    return {"replaces": current.model}


def _trained(stage: Stage | Workspace, planned: Plan, seconds: float) -> TrainResult:
    def told(step: int, _: int | None, elapsed: float, metrics: dict[str, Any]) -> None:
        if "epoch" in metrics:
            say(f"Epoch [{metrics['epoch']}/{metrics['epochs']}], Loss: {metrics['loss']:.4f}")
            return
        if "then" in metrics:
            logger.info("train %s: %d steps in %.0f s; now it is %s", planned.group, step, elapsed, metrics["then"])
            return
        words = f"step {step}, {metrics.get('psnr') or 0:.1f} dB"
        advance(f"train {planned.group}", min(elapsed, seconds), seconds, "s", words)

    home = stage.workspace if isinstance(stage, Stage) else stage
    return train(
        planned.volumes,
        {row.series: row.patient for row in planned.rows},
        planned.config,
        stage.settings.train,
        planned.folder,
        seconds,
        progress=told,
        models=home.models,
    )


def model_config(stage: Stage | Workspace, group: str, rows: list[SeriesRow]) -> tuple[ModelConfig, str]:
    """The group's preset with the overrides of [train] applied, and the preset's name."""
    channels = rows[0].channels
    own = stage.settings.groups[group].preset if group in stage.settings.groups else None
    preset = stage.settings.train.preset or own or preset_for(rows[0].modality, channels)
    units = Counter[str]()
    for row in rows:
        units[row.units] += row.voxels
    mapping = intensity_for(rows[0].modality, channels, units.most_common(1)[0][0])
    return resolve(preset, stage.settings.train_of(group), channels=channels, intensity=mapping), preset


def train_key(stage: Stage | Workspace, config: ModelConfig, digests: list[str]) -> str:
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

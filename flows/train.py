"""Train: one model per group that has volumes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from archive.catalog_schema import SeriesRow
from archive.errors import StoreError
from archive.groups import regroup
from archive.settings import TrainSettings
from archive.workspace import Workspace
from flows.artifacts import publish_model
from flows.events import PROMOTED, TRAINED, tell
from flows.parameters import Group, Overrides, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from model.config import PRESETS
from tasks.stage import Outcome, call
from tasks.train import follow_group, share_seconds, train_group

Preset = Annotated[
    Literal["configured", *PRESETS],  # type: ignore[valid-type]
    Field(description="Kind and size of the model; configured: as voxbook.toml says, else by modality."),
]
Seconds = Annotated[
    float, Field(ge=0, description="Seconds for all groups together; 0: train.max_seconds of voxbook.toml.")
]


@stage_flow("train")
def train(
    workspace: WorkspacePath,
    group: Group = "",
    preset: Preset = "configured",
    max_seconds: Seconds = 0.0,
    settings: Overrides = [],
) -> Outcome:
    """Train a VQ-VAE for one group or for each; the first model of a group becomes its current one."""
    extra = [f'train.preset="{preset}"'] if preset != "configured" else []
    extra += [f"train.max_seconds={max_seconds}"] if max_seconds else []
    with staged("train", workspace, [*settings, *extra]) as stage:
        regroup(stage.workspace)
        rows = stage.catalog.series(group=group or None)
        if not rows:
            raise StoreError("NOTHING_FOUND", "no volumes to train on", hint="voxbook ingest first")
        models = [call(train_group, stage, name, seconds) for name, seconds in _shares(rows, stage.settings.train)]
        for model in models:
            publish_model(stage, model)
            if not model["unchanged"]:
                tell(TRAINED, "model", model["model"], group=model["group"], psnr=model["psnr"])
            if "replaces" in model:
                tell(PROMOTED, "model", model["model"], group=model["group"], previous=model["replaces"])
        trained = [model for model in models if not model["unchanged"]]
        words = ", ".join(f"{model['group']} {model['psnr']:.1f} dB" for model in models)
        replaced = [model["group"] for model in models if "replaces" in model]
        verb = (
            f"{len(trained)} {'model' if len(trained) == 1 else 'models'} trained"
            if trained
            else "nothing new, every model is up to date"
        )
        return finish(
            Outcome(
                verb="train",
                run=stage.run,
                counts={**models[0], "models": models, "seconds": stage.seconds},
                sentence=f"train: {verb} ({words})"
                + (
                    f"; now the model of {', '.join(replaced)}, for the files of the one before are gone or broken"
                    if replaced
                    else ""
                ),
            ),
            stage,
        )


def follow(workspace: str, group: str | None, settings: list[str]) -> None:
    """What ranks but the first do under torchrun: the same trainings, in step, and no writing.

    They read the same catalog, so they come to the same groups, and skip the same models that are there already.
    """
    home = Workspace.open(workspace, settings)
    regroup(home)  # as the first rank does, whoever comes first
    for name, seconds in _shares(home.catalog.series(group=group), home.settings.train):
        follow_group(home, name, seconds)


def _shares(rows: list[SeriesRow], settings: TrainSettings) -> list[tuple[str, float]]:
    """Groups and their seconds, the largest first: it is the one that is reported."""
    voxels: dict[str, int] = {}
    for row in rows:
        voxels[row.group] = voxels.get(row.group, 0) + row.voxels
    shares = share_seconds(voxels, settings.max_seconds, settings.floor_seconds)
    return sorted(shares.items(), key=lambda share: (-voxels[share[0]], share[0]))

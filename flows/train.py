"""Train: one model per group that has volumes."""

from __future__ import annotations

from prefect import flow

from archive.catalog_schema import SeriesRow
from archive.errors import StoreError
from archive.groups import regroup
from archive.settings import TrainSettings
from archive.workspace import Workspace
from flows.parameters import Group, Overrides, WorkspacePath, described
from flows.recording import finish
from tasks.stage import Outcome, call, open_stage
from tasks.train import follow_group, share_seconds, train_group


@flow(name="train", flow_run_name="train {workspace}", persist_result=False)
@described
def train(workspace: WorkspacePath, group: Group = None, settings: Overrides = []) -> Outcome:
    """Train a VQ-VAE for one group or for each; the first model of a group becomes its current one."""
    with open_stage("train", workspace, settings) as stage:
        regroup(stage.workspace)
        rows = stage.catalog.series(group=group)
        if not rows:
            raise StoreError("NOTHING_FOUND", "no volumes to train on", hint="voxbook ingest first")
        models = [call(train_group, stage, name, seconds) for name, seconds in _shares(rows, stage.settings.train)]
        trained = [model for model in models if not model["unchanged"]]
        words = ", ".join(f"{model['group']} {model['psnr']:.1f} dB" for model in models)
        verb = f"{len(trained)} models trained" if trained else "nothing new, every model is up to date"
        return finish(
            Outcome(
                verb="train",
                run=stage.run,
                counts={**models[0], "models": models, "seconds": stage.seconds},
                sentence=f"train: {verb} ({words})",
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

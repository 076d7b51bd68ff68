"""Train: one model per group that has volumes."""

from __future__ import annotations

from prefect import flow

from archive.errors import StoreError
from flows.parameters import Group, Overrides, WorkspacePath, described
from flows.recording import finish
from tasks.stage import Outcome, call, open_stage
from tasks.train import share_seconds, train_group


@flow(name="train", flow_run_name="train {workspace}", persist_result=False)
@described
def train(workspace: WorkspacePath, group: Group = None, settings: Overrides = []) -> Outcome:
    """Train a VQ-VAE for one group or for each; the first model of a group becomes its current one."""
    with open_stage("train", workspace, settings) as stage:
        rows = stage.catalog.series(group=group)
        if not rows:
            raise StoreError("NOTHING_FOUND", "no volumes to train on", hint="voxbook ingest first")
        voxels: dict[str, int] = {}
        for row in rows:
            voxels[row.group] = voxels.get(row.group, 0) + row.voxels
        shares = share_seconds(voxels, stage.settings.train.max_seconds, stage.settings.train.floor_seconds)
        order = sorted(shares, key=lambda name: -voxels[name])  # the largest first: it is the one that is reported
        models = [call(train_group, stage, name, shares[name]) for name in order]
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

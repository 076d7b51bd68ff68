"""Select: codebook size and width of a group by patient-grouped cross-validation."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from archive.errors import ConfigError, InputError, StoreError
from flows.console import table
from flows.parameters import Overrides, WorkspacePath, described
from flows.recording import finish
from model.select import Folds, Score, choose, folds, grid, scores
from tasks.select import Validated, cross_validate, plan_jobs
from tasks.stage import Outcome, Stage, call, open_stage
from tasks.train import model_config

GroupName = Annotated[str, Field(description="The group to select for (ct, mr, pt, ...).")]
Sizes = Annotated[list[int], Field(description="Codebook sizes to try; none: a quarter, half, all of the preset's.")]
Widths = Annotated[list[int], Field(description="Widths to try; none: half and all of the preset's.")]
FoldCount = Annotated[int, Field(ge=2, description="Folds; each is tested by a model that saw only the others.")]
Seconds = Annotated[float, Field(gt=0, description="Seconds of each training, candidates times folds of them.")]


@flow(name="select", flow_run_name="select {workspace}", persist_result=False)
@described
def select(
    workspace: WorkspacePath,
    group: GroupName,
    sizes: Sizes = [],
    widths: Widths = [],
    fold_count: FoldCount = 3,
    seconds_each: Seconds = 60.0,
    settings: Overrides = [],
) -> Outcome:
    """Train every candidate on every fold, measure it on the rest, and choose by the one-standard-error rule."""
    with open_stage("select", workspace, settings) as stage:
        rows = stage.catalog.series(group=group)
        if not rows:
            known = ", ".join(sorted({row.group for row in stage.catalog.series()})) or "none yet"
            raise StoreError("NOTHING_FOUND", f"no volumes in group {group!r}", hint=f"groups: {known}")
        if seconds_each <= 0:
            raise ConfigError("BAD_USAGE", "--seconds-each is more than 0")
        config, _ = model_config(stage, group, rows)
        candidates = grid(sizes, widths, config)
        cut = folds({row.series: row.patient for row in rows}, fold_count, stage.settings.train.seed)
        jobs = plan_jobs(stage, rows, cut, candidates, config, seconds_each)
        validated: Validated = call(cross_validate, stage, group, jobs)
        chosen = choose(validated.results)
        if chosen is None:
            raise InputError("NON_FINITE", "no candidate came through all folds", hint="a lower train.learning_rate")
        counts = _counts(group, cut, scores(validated.results), chosen, validated.trained, stage.seconds)
        write_record(stage, counts, config.preset, seconds_each, validated)
        publish_candidates(counts)
        return finish(
            Outcome(
                verb="select", run=stage.run, counts=counts, reasons=dict(stage.reasons), sentence=_sentence(counts)
            ),
            stage,
        )


def numbers(option: str, text: str | None) -> list[int]:
    """`256,512` as numbers; nothing as none. Raises ConfigError BAD_USAGE."""
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise ConfigError("BAD_USAGE", f"{option} takes numbers with commas between", hint=f"{option} 64,128") from None


def _counts(group: str, cut: Folds, found: list[Score], chosen: Score, trained: int, seconds: float) -> dict[str, Any]:
    return {
        "group": group,
        "folds": len(cut.tests),
        "folds_of": cut.kind,
        "candidates": [
            {
                **score.candidate.settings(),
                "psnr_mean": _number(score.psnr_mean),
                "psnr_se": _number(score.psnr_se),
                "bits_per_voxel": _number(score.bits_per_voxel),
                "codebook_use": _number(score.codebook_use),
                "steps": score.steps,
                "failed": score.failed,
            }
            for score in found
        ],
        "chosen": chosen.candidate.settings(),
        "settings": [f"train.{key} = {value}" for key, value in chosen.candidate.settings().items()],
        "trained": trained,
        "seconds": seconds,
    }


def write_record(stage: Stage, counts: dict[str, Any], preset: str, seconds_each: float, done: Validated) -> Path:
    """selections/<run>.json: the figures of every candidate and fold, and what they were made with."""
    data = {
        "run": stage.run,
        **counts,
        "preset": preset,
        "seconds_each": seconds_each,
        "rule": "fewest zero-order bits per voxel within one standard error of the best mean PSNR",
        "results": [
            {
                **result.candidate.settings(),
                "fold": result.fold,
                "psnr": _number(result.psnr),
                "ssim": result.ssim,
                "bits_per_voxel": _number(result.bits_per_voxel),
                "codebook_use": _number(result.codebook_use),
                "steps": result.steps,
                "code": result.code,
            }
            for result in done.results
        ],
        "train": stage.settings.train.model_dump(mode="json"),
    }
    path = stage.workspace.root / "selections" / f"{stage.run}.json"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, indent=1), encoding="utf-8")
    draft.rename(path)
    return path


def publish_candidates(counts: dict[str, Any]) -> None:
    """The same table on the run's page in Prefect; nothing where nothing is recorded."""
    from prefect.artifacts import create_table_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is not None:
        rows = [{"chosen": _is_chosen(entry, counts), **entry} for entry in counts["candidates"]]
        words = f"Candidates for {counts['group']} over {counts['folds']} folds of {counts['folds_of']}"
        create_table_artifact(rows, key="voxbook-select-candidates", description=words)


def show(counts: dict[str, Any]) -> None:
    """The candidates as a table for people, the chosen one marked, and the lines for voxbook.toml."""
    if counts["folds_of"] == "series":
        sys.stdout.write(
            "Folds are of series: the group has fewer patients than folds, so a model may have seen the patient\n"
            "it is tested on, and the figures flatter. Fewer --folds keep patients apart.\n\n"
        )
    columns = ("", "codebook_size", "width", "PSNR dB", "± s.e.", "bits/voxel", "codes used", "steps", "failed")
    keys = ("codebook_size", "width", "psnr_mean", "psnr_se", "bits_per_voxel", "codebook_use", "steps", "failed")
    rows = [
        ("*" if _is_chosen(entry, counts) else "", *(entry[key] if entry[key] is not None else "-" for key in keys))
        for entry in counts["candidates"]
    ]
    table(columns, rows)
    lines = "\n".join(line.removeprefix("train.") for line in counts["settings"])
    overrides = " ".join(f"--set {line.replace(' ', '')}" for line in counts["settings"])
    sys.stdout.write(
        f"\nFor voxbook.toml, where it holds for every group:\n\n[train]\n{lines}\n\n"
        f"For this group alone: voxbook train -w WS --group {counts['group']} {overrides}\n\n"
    )


def _is_chosen(entry: dict[str, Any], counts: dict[str, Any]) -> bool:
    return all(entry[key] == value for key, value in counts["chosen"].items())


def _sentence(counts: dict[str, Any]) -> str:
    chosen = counts["chosen"]
    trained = f"{counts['trained']} trainings" if counts["trained"] else "nothing new, every training had been done"
    return (
        f"select: {counts['group']} takes {chosen['codebook_size']} codes and width {chosen['width']}, out of "
        f"{len(counts['candidates'])} candidates over {counts['folds']} folds of {counts['folds_of']} ({trained})"
    )


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None

"""Select: the sizes of a group's model by patient-grouped cross-validation and successive halving."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from archive.errors import ConfigError, InputError, StoreError
from archive.settings_file import put
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from flows.select_report import as_counts, as_seeds, cells, draw, publish_candidates, write_record
from flows.staged import stage_flow, staged
from model.config import Triple
from model.halving import Rung, choose, rungs, scores, sensitivity, survivors, threshold
from model.select import Candidate, distinct, folds, grid
from tasks.cluster import Cluster, open_cluster
from tasks.select import Selection, Validated, cross_validate, training_cluster
from tasks.stage import Outcome, Stage, call
from tasks.train import model_config

GroupName = Annotated[str, Field(description="The group to select for (ct, mr, pt, ...).")]
Sizes = Annotated[list[int], Field(description="Codebook sizes to try; none: a quarter, half, all of the preset's.")]
Widths = Annotated[list[int], Field(description="Widths to try; none: half and all of the preset's.")]
Levels = Annotated[list[int], Field(description="Numbers of residual levels to try; none: the preset's.")]
Downsamples = Annotated[list[str], Field(description="Voxels per code to try, as 1x8x8; none: the preset's.")]
FoldCount = Annotated[int, Field(ge=2, description="Folds; each is tested by a model that saw only the others.")]
Seconds = Annotated[float, Field(gt=0, description="Seconds of a training of the last rung; earlier ones get less.")]
Eta = Annotated[int, Field(ge=1, description="1/eta of the candidates go on, with eta times the time; 1: all in full.")]
Seeds = Annotated[int, Field(ge=1, description="Seeds that the chosen one is trained with; 1: no spread is measured.")]
Write = Annotated[bool, Field(description="Write the chosen sizes to voxbook.toml, under [groups.NAME.train].")]


@stage_flow("select")
def select(
    workspace: WorkspacePath,
    group: GroupName,
    sizes: Sizes = [],
    widths: Widths = [],
    levels: Levels = [],
    downsamples: Downsamples = [],
    fold_count: FoldCount = 3,
    seconds_each: Seconds = 60.0,
    eta: Eta = 2,
    seeds: Seeds = 3,
    write: Write = False,
    settings: Overrides = [],
) -> Outcome:
    """Train candidates on every fold, the better ones longer, and choose by the one-standard-error rule."""
    with staged("select", workspace, settings) as stage:
        rows = stage.catalog.series(group=group)
        if not rows:
            known = ", ".join(sorted({row.group for row in stage.catalog.series()})) or "none yet"
            raise StoreError("NOTHING_FOUND", f"no volumes in group {group!r}", hint=f"groups: {known}")
        if seconds_each <= 0:
            raise ConfigError("BAD_USAGE", "--seconds-each is more than 0")
        config, _ = model_config(stage, group, rows)
        train = stage.settings.train_of(group)
        wished = grid(config, sizes, widths, levels, [triple(text) for text in downsamples])
        candidates = distinct(wished, config, train)
        plan = rungs(len(candidates), eta)
        cut = folds({row.series: row.patient for row in rows}, fold_count, train.seed)
        machine = training_cluster(
            stage.settings.cluster, train.device, plan[-1].candidates * len(cut.tests), torch.cuda.device_count()
        )
        selection = Selection(stage, machine, group, rows, cut, config, seconds_each)
        selection.jobs(candidates)  # what no model can have is refused before anything is trained

        with open_cluster(machine) as cluster:
            rounds = halve(stage, cluster, selection, group, candidates, plan)
            chosen = choose(rounds[-1].results)
            if chosen is None:
                raise _nothing_came_through(rounds)
            if seeds > 1:
                others = selection.jobs([chosen.candidate], 1.0, range(train.seed + 1, train.seed + seeds))
                reseeded = call(cross_validate, stage, cluster, selection.ledger, others, f"{group}, other seeds")
            else:
                reseeded = Validated([], 0)

        reached = {score.candidate: score for done in rounds for score in scores(done.results)}  # the last rung's wins
        finalists = [score for score in scores(rounds[-1].results) if not score.failed]
        counts = as_counts(group, cut, [reached[point] for point in candidates], chosen, threshold(finalists))
        of_chosen = [result for result in rounds[-1].results if result.candidate == chosen.candidate]
        everything = [result for done in (*rounds, reseeded) for result in done.results]
        spread = sensitivity([*of_chosen, *reseeded.results])
        counts["seeds"] = as_seeds(spread) if seeds > 1 else None
        counts["rungs"] = [{"candidates": rung.candidates, "seconds": seconds_each * rung.share} for rung in plan]
        counts["plot"] = f"reports/{stage.run}/select.png"
        counts["written"] = write
        counts["trained"] = sum(done.trained for done in (*rounds, reseeded))
        counts["seconds"] = stage.seconds
        draw(stage.workspace.root / counts["plot"], counts)
        write_record(stage, counts, everything, {"preset": config.preset, "seconds_each": seconds_each, "eta": eta})
        if write:
            put(stage.workspace.root, ("groups", group, "train"), chosen.candidate.settings())
        publish_candidates(counts)
        return finish(
            Outcome(
                verb="select", run=stage.run, counts=counts, reasons=dict(stage.reasons), sentence=_sentence(counts)
            ),
            stage,
        )


def halve(
    stage: Stage,
    cluster: Cluster,
    selection: Selection,
    group: str,
    candidates: Sequence[Candidate],
    plan: Sequence[Rung],
) -> list[Validated]:
    """Train the candidates rung by rung, the better ones longer; ends early where none came through."""
    rounds: list[Validated] = []
    left = list(candidates)
    for rung in plan:
        if rounds:
            left = survivors(rounds[-1].results, rung.candidates)
        if not left:
            break
        words = f"{group}, {len(left)} candidates, {selection.seconds * rung.share:g} s each"
        rounds.append(call(cross_validate, stage, cluster, selection.ledger, selection.jobs(left, rung.share), words))
    return rounds


def numbers(option: str, text: str | None) -> list[int]:
    """`256,512` as numbers; nothing as none. Raises ConfigError BAD_USAGE."""
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise ConfigError("BAD_USAGE", f"{option} takes numbers with commas between", hint=f"{option} 64,128") from None


def triple(text: str) -> Triple:
    """`4x8x8` as z, y, x; `8x8` has z = 1. Raises ConfigError BAD_USAGE."""
    if not re.fullmatch(r"\s*(\d+x)?\d+x\d+\s*", text):
        raise ConfigError(
            "BAD_USAGE", f"--downsamples takes voxels per code, not {text!r}", hint="--downsamples 1x8x8,1x4x4"
        )
    z, y, x = ([1] + [int(part) for part in text.split("x")])[-3:]
    return z, y, x


def _nothing_came_through(rounds: Sequence[Validated]) -> InputError:
    codes = collections.Counter(result.code for done in rounds for result in done.results if result.code)
    code = codes.most_common(1)[0][0]
    hint = "a lower train.learning_rate" if code == "NON_FINITE" else ""
    return InputError(code, "no candidate came through all folds", hint=hint)


def _sentence(counts: dict[str, Any]) -> str:
    chosen = counts["chosen"]
    trained = f"{counts['trained']} trainings" if counts["trained"] else "nothing new, every training had been done"
    levels = f"{chosen['levels']} levels" if chosen["levels"] > 1 else "1 level"
    spread = counts["seeds"] and counts["seeds"]["psnr_sd"]
    return (
        f"select: {counts['group']} takes {chosen['codebook_size']} codes, width {chosen['width']}, {levels} and cells "
        f"of {cells(chosen['downsample'])}, out of {len(counts['candidates'])} candidates over {counts['folds']} folds "
        f"of {counts['folds_of']} ({trained}{f', {spread:.2f} dB between seeds' if spread is not None else ''})"
    )

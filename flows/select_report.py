"""What a selection leaves behind: the record, the curve of PSNR against bits, the tables for people."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.console import table
from model.halving import Score, Sensitivity
from model.select import Folds, Result
from tasks.stage import Stage, recording

KEYS = ("codebook_size", "width", "levels", "downsample")
FIGURES = ("psnr_mean", "psnr_se", "bits_per_voxel", "codebook_use", "seconds", "steps", "failed")
FEW_STEPS = 100  # of a training, under which its rank says little
RULE = "fewest zero-order bits per voxel within one standard error of the best mean PSNR"


def as_counts(group: str, cut: Folds, found: Sequence[Score], chosen: Score, least: float) -> dict[str, Any]:
    """The counts of a selection. found: every candidate at its last rung; least: the PSNR that was good enough."""
    return {
        "group": group,
        "folds": len(cut.tests),
        "folds_of": cut.kind,
        "candidates": [
            {
                **score.candidate.settings(),
                "psnr_mean": number(score.psnr_mean),
                "psnr_se": number(score.psnr_se),
                "bits_per_voxel": number(score.bits_per_voxel),
                "codebook_use": number(score.codebook_use),
                "seconds": round(score.seconds, 3),
                "steps": score.steps,
                "failed": score.failed,
                "finalist": score.seconds == chosen.seconds,
            }
            for score in found
        ],
        "psnr_least": number(least),
        "chosen": chosen.candidate.settings(),
        "settings": [f"train.{key} = {value}" for key, value in chosen.candidate.settings().items()],
    }


def as_seeds(found: Sensitivity) -> dict[str, Any]:
    """How much the seed decides, for JSON."""
    return {
        "seeds": found.seeds,
        "psnr": [number(value) for value in found.psnr],
        "psnr_sd": number(found.psnr_sd),
        "codebook_use_least": number(found.use),
        "failed": found.failed,
    }


def write_record(stage: Stage, counts: dict[str, Any], results: Sequence[Result], about: dict[str, Any]) -> Path:
    """selections/<run>.json: the figures of every candidate, fold, rung and seed, and what they were made with."""
    data = {
        "run": stage.run,
        **counts,
        **about,
        "rule": RULE,
        "results": [
            {
                **result.candidate.settings(),
                "fold": result.fold,
                "seed": result.seed,
                "seconds": result.seconds,
                "psnr": number(result.psnr),
                "ssim": result.ssim,
                "bits_per_voxel": number(result.bits_per_voxel),
                "codebook_use": number(result.codebook_use),
                "steps": result.steps,
                "code": result.code,
            }
            for result in results
        ],
        "train": stage.settings.train_of(counts["group"]).model_dump(mode="json"),
    }
    path = stage.workspace.root / "selections" / f"{stage.run}.json"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, indent=1), encoding="utf-8")
    draft.rename(path)
    return path


def draw(path: Path, counts: dict[str, Any]) -> None:
    """PNG: mean PSNR with its standard error against entropy-coded bits per voxel, one point a candidate.

    Hollow: candidates that halving left behind, after fewer seconds. The line: what was good enough.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    shown = [entry for entry in counts["candidates"] if entry["psnr_mean"] is not None]
    finals = [entry for entry in shown if entry["finalist"] and not is_chosen(entry, counts)]
    early = [entry for entry in shown if not entry["finalist"]]
    chosen = [entry for entry in shown if is_chosen(entry, counts)]
    full = max((entry["seconds"] for entry in shown), default=0.0)
    for entries, label, style in (
        (early, "left behind, trained for less", {"color": "0.55", "marker": "o", "fillstyle": "none"}),
        (finals, f"trained for {full:g} s", {"color": "C0", "marker": "o"}),
        (chosen, "chosen", {"color": "C3", "marker": "*", "markersize": 14}),
    ):
        if entries:
            axis.errorbar(
                [entry["bits_per_voxel"] for entry in entries],
                [entry["psnr_mean"] for entry in entries],
                yerr=[entry["psnr_se"] or 0.0 for entry in entries],
                linestyle="none",
                capsize=3,
                label=label,
                **style,
            )
    if counts["psnr_least"] is not None:
        axis.axhline(counts["psnr_least"], color="C0", linestyle=":", linewidth=1, label="best less one standard error")
    differing = [key for key in KEYS if len({str(entry[key]) for entry in shown}) > 1] or KEYS
    for entry in shown:
        place = (entry["bits_per_voxel"], entry["psnr_mean"])
        axis.annotate(short(entry, differing), place, xytext=(6, 4), textcoords="offset points", fontsize=7)
    axis.margins(x=0.15, y=0.1)
    axis.set(
        xlabel="bits per voxel, zero-order entropy of the codes",
        ylabel=f"PSNR in dB, mean over {counts['folds']} folds of {counts['folds_of']} (bars: standard error)",
        title=f"select {counts['group']}: {' / '.join(key.replace('_', ' ') for key in differing)}",
    )
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    canvas.print_png(draft)
    draft.rename(path)


def short(entry: dict[str, Any], differing: Sequence[str]) -> str:
    """A candidate in a few characters: 512 / 64 / 1x8x8."""
    return " / ".join(cells(entry[key]) if key == "downsample" else str(entry[key]) for key in differing)


def cells(downsample: Sequence[int]) -> str:
    """Voxels per code as `--downsamples` takes them: 1x8x8."""
    return "x".join(map(str, downsample))


def publish_candidates(counts: dict[str, Any]) -> None:
    """The same table on the run's page in Prefect; nothing where nothing is recorded."""
    if recording():
        from prefect.artifacts import create_table_artifact

        rows = [
            {"chosen": is_chosen(entry, counts), **entry, "downsample": cells(entry["downsample"])}
            for entry in counts["candidates"]
        ]
        words = f"Candidates for {counts['group']} over {counts['folds']} folds of {counts['folds_of']}"
        create_table_artifact(rows, key="voxbook-select-candidates", description=words)


def show(counts: dict[str, Any]) -> None:
    """The candidates as a table for people, the chosen one marked, its seeds, and the lines for voxbook.toml."""
    if counts["folds_of"] == "series":
        sys.stdout.write(
            "Folds are of series: the group has fewer patients than folds, so a model may have seen the patient\n"
            "it is tested on, and the figures flatter. Fewer --folds keep patients apart.\n\n"
        )
    titles = (
        "codes",
        "width",
        "levels",
        "cell",
        "PSNR dB",
        "± s.e.",
        "bits/voxel",
        "codes used",
        "s",
        "steps",
        "failed",
    )
    rows = [
        (
            "*" if is_chosen(entry, counts) else "",
            *(entry[key] for key in KEYS[:3]),
            cells(entry["downsample"]),
            *(entry[key] if entry[key] is not None else "-" for key in FIGURES),
        )
        for entry in counts["candidates"]
    ]
    table(("", *titles), rows)
    fewest = min((entry["steps"] for entry in counts["candidates"] if entry["psnr_mean"] is not None), default=0)
    if fewest < FEW_STEPS:
        sys.stdout.write(
            f"\nSome trainings took only {fewest} steps: that ranks how soon a size starts to learn, not what it\n"
            "reaches. A longer --seconds-each, fewer candidates or --eta 1 give the first rung more.\n"
        )
    if counts["seeds"]:
        sys.stdout.write(f"\n{seed_words(counts['seeds'])}\n")
    lines = "\n".join(line.removeprefix("train.") for line in counts["settings"])
    overrides = " ".join(f"--set {line.replace(' ', '')}" for line in counts["settings"])
    heading = f"[groups.{counts['group']}.train]"
    done = "Written to voxbook.toml:" if counts["written"] else "For voxbook.toml (--write puts it there):"
    sys.stdout.write(
        f"\n{done}\n\n{heading}\n{lines}\n\n"
        f"For one training alone: voxbook train -w WS --group {counts['group']} {overrides}\n"
        f"The curve: {counts['plot']} in the workspace.\n\n"
    )


def seed_words(seeds: dict[str, Any]) -> str:
    """Seed sensitivity in a sentence."""
    failed = f"; {seeds['failed']} trainings came to nothing" if seeds["failed"] else ""
    if seeds["psnr_sd"] is None:
        return f"The chosen one over {seeds['seeds']} seeds: too few came through to tell a spread{failed}."
    values = ", ".join(f"{value:.2f}" for value in seeds["psnr"])
    return (
        f"The chosen one over {seeds['seeds']} seeds: {values} dB, standard deviation {seeds['psnr_sd']:.2f} dB; "
        f"at least {seeds['codebook_use_least']:.1%} of the codes in use{failed}."
    )


def is_chosen(entry: dict[str, Any], counts: dict[str, Any]) -> bool:
    """Whether a candidate's entry is that of the chosen one."""
    return all(entry[key] == value for key, value in counts["chosen"].items())


def number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None

"""The record of a training: metrics.jsonl and TensorBoard events as it goes, and progress.png drawn at its end."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

from model.fidelity import Fidelity

log = logging.getLogger(__name__)

METRICS, PICTURE, EVENTS = "metrics.jsonl", "progress.png", "events"


class Record:
    """Appends one JSON object a line; a resumed training cuts what lies beyond its checkpoint and goes on.

    The same numbers go to TensorBoard event files in `events/`, with no image in them: those would be of patients.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.path, self.events = folder / METRICS, folder / EVENTS
        self.lines = [line for line in read(self.path) if line["step"] <= step] if step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        if not step:
            shutil.rmtree(self.events, ignore_errors=True)
        self.board = SummaryWriter(str(self.events), purge_step=step + 1 if step else None)

    def add(self, counts: np.ndarray, **metrics: Any) -> None:
        """Take in one line.

        metrics: step, seconds, loss, l_rec, l_quant, psnr, rate, skipped, rollbacks, perplexity and use per level,
        held_out_psnr where there was a look, and adversary (its loss, its judgements) where there is one. counts: int64
        [L, K], how often each code was chosen.
        """
        self.lines.append(metrics)
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        step = metrics["step"]
        for name, value in metrics.items():
            if isinstance(value, list):
                for level, one in enumerate(value, 1):
                    self.board.add_scalar(f"{name}/level_{level}", one, step)
            elif name != "step":
                self.board.add_scalar(name, value, step)
        for level, chosen in enumerate(counts, 1):
            if chosen.any():  # the histogram of the codes themselves, K bins
                edges = np.linspace(0, len(chosen), min(len(chosen), 64) + 1)
                bins = np.add.reduceat(chosen, edges[:-1].astype(int))
                codes = np.arange(len(chosen))
                self.board.add_histogram_raw(
                    f"codes/level_{level}",
                    min=0.0,
                    max=float(len(chosen)),
                    num=int(chosen.sum()),
                    sum=float((codes * chosen).sum()),
                    sum_squares=float((codes**2 * chosen).sum()),
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=bins.tolist(),
                    global_step=step,
                )

    def close(self) -> None:
        """The event file is whole on disk."""
        self.board.close()

    def files(self) -> dict[str, Path]:
        """What belongs into a bundle, by the name there; the host's name in those of event files stays out."""
        files = {METRICS: self.path, PICTURE: self.path.parent / PICTURE}
        for number, path in enumerate(sorted(self.events.glob("*tfevents*"))):
            files[f"events.out.tfevents.{number}"] = path
        return files


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a killed run left half written is dropped."""
    found: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def warm() -> threading.Thread:
    """Import matplotlib in the background: the first time on a machine it takes seconds to list the fonts."""

    def load() -> None:
        from matplotlib.backends import backend_agg
        from matplotlib.figure import Figure

        log.debug("figures by %s and %s", backend_agg.__name__, Figure.__name__)

    thread = threading.Thread(target=load, name="warm-matplotlib", daemon=True)
    thread.start()
    return thread


def draw(path: Path, lines: list[dict[str, Any]], found: Fidelity) -> None:
    """Write progress.png.

    Over the steps: loss, PSNR, perplexity and use of each level, learning rate. At the end: how often each code of each
    level is used, PSNR of the series measured, and samples before, after and their difference. Agg only, so that it
    works in a thread and without a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sample = found.sample
    rows = 2 + len(sample)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    steps = [line["step"] for line in lines]
    loss, quality, codes = axes[0]
    for name in ("loss", "l_rec", "l_quant"):
        loss.plot(steps, [max(line[name], 1e-12) for line in lines], label=name, linewidth=1)
    judged = [(line["step"], max(line["adversary"], 1e-12)) for line in lines if "adversary" in line]
    if judged:
        loss.plot(*zip(*judged, strict=True), label="adversary", linewidth=1)
    loss.set(title="loss", xlabel="step", yscale="log")
    loss.legend(fontsize=7)
    quality.plot(steps, [line["psnr"] for line in lines], linewidth=1)
    looked = [(line["step"], line["held_out_psnr"]) for line in lines if "held_out_psnr" in line]
    if looked:
        quality.plot(*zip(*looked, strict=True), marker=".", linewidth=1, label="patients held out")
        quality.legend(fontsize=7)
    quality.set(title="PSNR of the training patches, dB (range 2)", xlabel="step")
    levels = max((len(line["perplexity"]) for line in lines), default=0)
    other = codes.twinx()
    for level in range(levels):
        codes.plot(steps, [_at(line["perplexity"], level) for line in lines], label=f"level {level + 1}", linewidth=1)
        other.plot(steps, [_at(line["use"], level) for line in lines], linestyle=":", linewidth=1)
    codes.set(title="perplexity (lines) and share in use (dots)", xlabel="step")
    other.set_ylim(0, 1.02)
    rate, spread, series = axes[1]
    rate.plot(steps, [line["rate"] for line in lines], linewidth=1)
    rate.set(title="learning rate", xlabel="step")
    for level, chosen in enumerate(found.counts[: max(1, levels)], 1):
        spread.plot(np.sort(chosen)[::-1] / max(1, chosen.sum()), label=f"level {level}", linewidth=1)
    spread.set(title="use of the codes, most frequent first", xlabel="rank of the code", yscale="log")
    if levels > 1:
        spread.legend(fontsize=7)
    series.plot(sorted(found.by_series), marker=".", linewidth=1)
    series.axhline(found.psnr, linestyle=":", linewidth=1)
    series.set(
        title=f"PSNR of the series: mean {found.psnr:.1f}, worst tenth {found.worst_decile:.1f} dB", xlabel="rank"
    )
    for row, (before, after) in enumerate(sample, 2):
        low, high = np.percentile(before, (0.5, 99.5))
        difference = after - before
        far = max(float(np.percentile(np.abs(difference), 99.5)), 1e-6)
        pictures = ((before, "source", "gray", low, high), (after, "decoded", "gray", low, high))
        for axis, (image, title, colours, least, most) in zip(
            axes[row], (*pictures, (difference, f"difference, ±{far:.3g}", "RdBu", -far, far)), strict=True
        ):
            axis.imshow(image, cmap=colours, vmin=least, vmax=most)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    for axis in figure.axes:  # the default size lets titles run into each other
        axis.title.set_fontsize(9)
    canvas.print_png(path)


def _at(values: list[float], level: int) -> float:
    return values[level] if level < len(values) else float("nan")

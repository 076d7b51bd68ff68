"""The record of a training: metrics.jsonl line by line, and progress.png drawn from it."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

METRICS, PICTURE = "metrics.jsonl", "progress.png"


class Record:
    """Appends one JSON object a line; a resumed training cuts what lies beyond its checkpoint and goes on."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        self.lines = [line for line in read(self.path) if line["step"] < step] if step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, **metrics: Any) -> None:
        """step, seconds, loss, l_rec, l_quant, psnr, and perplexity and use per level."""
        self.lines.append(metrics)
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


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


def draw(path: Path, lines: list[dict[str, Any]], sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write progress.png: loss, PSNR, perplexity and use over the steps; samples before, after, difference.

    sample: pairs of images [y, x] in one unit each. Agg only, so that it works in a thread and without a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 1 + len(sample)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    steps = [line["step"] for line in lines]
    loss, quality, codes = axes[0]
    for name in ("loss", "l_rec", "l_quant"):
        loss.plot(steps, [max(line[name], 1e-12) for line in lines], label=name, linewidth=1)
    loss.set(title="loss", xlabel="step", yscale="log")
    loss.legend(fontsize=7)
    quality.plot(steps, [line["psnr"] for line in lines], linewidth=1)
    quality.set(title="PSNR of the training patches, dB (range 2)", xlabel="step")
    levels = max((len(line["perplexity"]) for line in lines), default=0)
    other = codes.twinx()
    for level in range(levels):
        codes.plot(steps, [_at(line["perplexity"], level) for line in lines], label=f"level {level + 1}", linewidth=1)
        other.plot(steps, [_at(line["use"], level) for line in lines], linestyle=":", linewidth=1)
    codes.set(title="perplexity (lines) and share in use (dots)", xlabel="step")
    other.set_ylim(0, 1.02)
    for row, (before, after) in enumerate(sample, 1):
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
    canvas.print_png(path)


def _at(values: list[float], level: int) -> float:
    return values[level] if level < len(values) else float("nan")

"""The plots of a report, laid out in numbers: strips of every series by group, and fidelity over rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, ROW, LEFT, RIGHT, TOP = 720, 46, 96, 24, 12
NAMED = (
    12  # dots of a strip that are links of their own, the worst; the others are one path, found by the page's script
)
METRICS = (
    ("psnr", "PSNR", "dB", "min_psnr", False),
    ("ssim", "SSIM", "", "min_ssim", False),
    ("max_error", "Largest error", "", "max_error", True),
    ("bits_per_voxel_disk", "Bits per voxel on disk", "", None, True),
    ("unlike", "Unlike the training data", "bits", None, True),
)
NOTES = {
    "unlike": "How far the series' codes are from those of the model's training (Jensen-Shannon divergence). 0: its codes "
    "occur as often as in the training, 1: it shares none with it. A series far right is of a kind that the model has "
    "not seen: look at its pictures before you trust its figures, and train with such series.",
}


@dataclass(frozen=True)
class Dot:
    """One series in a plot that can be reached by keyboard: where, which, and what is read out."""

    x: float
    y: float
    series: str
    title: str
    kind: str = ""


@dataclass(frozen=True)
class Strip:
    """One group's line: its worst series as dots, all others as paths of points, and the gate where one is set."""

    group: str
    y: float
    dots: tuple[Dot, ...]
    paths: dict[str, str]
    median_x: float | None
    gate_x: float | None


@dataclass(frozen=True)
class Plot:
    """A plot ready to draw. key: of the metric in a series' entry; note: what a reader should know of it.

    scale: low, high and the pixels that they are at; of x, and where there is one of y.
    """

    title: str
    height: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...] = ()
    strips: tuple[Strip, ...] = ()
    paths: dict[str, str] = field(default_factory=dict)
    unit: str = ""
    key: str = ""
    note: str = ""
    scale: tuple[float, ...] = (0.0, 1.0, 0.0, 1.0)


def strip_plots(series: Sequence[Mapping], groups: Sequence[Mapping], settings: Mapping[str, Any]) -> tuple[Plot, ...]:
    """One plot per metric, one line per group, one point per series; metrics that nobody measured are left out."""
    names = sorted({str(entry["group"]) for entry in series})
    gates = {str(group["group"]): group.get("gate") or settings.get("gate") or {} for group in groups}
    plots = []
    for key, label, unit, gate_key, high_is_bad in METRICS:
        measured = {
            name: [entry for entry in series if entry["group"] == name and finite(entry.get(key))] for name in names
        }
        measured = {name: entries for name, entries in measured.items() if entries}
        if not measured:
            continue
        limits = {name: gates.get(name, {}).get(gate_key) if gate_key else None for name in measured}
        values: list[float] = [entry[key] for entries in measured.values() for entry in entries]
        scale = Scale([*values, *(limit for limit in limits.values() if limit is not None)], LEFT, WIDTH - RIGHT)
        strips = tuple(
            _strip(name, entries, key, unit, TOP + ROW * (row + 0.5), scale, limits[name], high_is_bad)
            for row, (name, entries) in enumerate(measured.items())
        )
        height = TOP + ROW * len(strips) + 34
        note = NOTES.get(key, "")
        plots.append(Plot(label, height, scale.ticks(), strips=strips, unit=unit, key=key, note=note, scale=scale.ends))
    return tuple(plots)


def _strip(
    name: str,
    entries: Sequence[Mapping],
    key: str,
    unit: str,
    y: float,
    scale: Scale,
    limit: float | None,
    high_is_bad: bool,
) -> Strip:
    places = [(scale(entry[key]), round(y + spread(index), 1)) for index, entry in enumerate(entries)]
    order = sorted(range(len(entries)), key=lambda at: entries[at][key], reverse=high_is_bad)
    named = set(order[:NAMED])
    dots = tuple(
        Dot(
            *places[at],
            series=entries[at]["series"],
            title=f"{entries[at]['series'][:8]}, {name}: {entries[at][key]:.4g} {unit}".rstrip(),
            kind=_kind(entries[at]),
        )
        for at in order[:NAMED]
    )
    paths: dict[str, list[str]] = {}
    for at, (x, height) in enumerate(places):
        if at not in named:
            paths.setdefault(_kind(entries[at]), []).append(f"M{x:g} {height:g}h0")
    middle = statistics.median(entry[key] for entry in entries)
    joined = {kind: "".join(points) for kind, points in paths.items()}
    return Strip(name, y, dots, joined, scale(middle), None if limit is None else scale(limit))


def rate_plot(rate: Sequence[Mapping]) -> Plot | None:
    """PSNR over bits per voxel: ours, and JPEG 2000 at the same bytes joined to it; None where nothing is measured."""
    ours = [entry for entry in rate if finite(entry.get("psnr")) and finite(entry.get("bits_per_voxel"))]
    if not ours:
        return None
    height = 380.0
    peers = [entry["jpeg2000_psnr"] for entry in ours if finite(entry.get("jpeg2000_psnr"))]
    x_scale = Scale([entry["bits_per_voxel"] for entry in ours], 56, WIDTH - RIGHT)
    y_scale = Scale([*(entry["psnr"] for entry in ours), *peers], height - 48, TOP)
    own, other, links = [], [], []
    for entry in ours:
        x, y = x_scale(entry["bits_per_voxel"]), y_scale(entry["psnr"])
        own.append(f"M{x:g} {y:g}h0")
        if finite(entry.get("jpeg2000_psnr")):
            peer = y_scale(entry["jpeg2000_psnr"])
            other.append(f"M{x:g} {peer:g}h0")
            links.append(f"M{x:g} {y:g}V{peer:g}")
    paths = {"link": "".join(links), "peer": "".join(other), "ours": "".join(own)}
    ends = (*x_scale.ends, *y_scale.ends)
    ticks = x_scale.ticks(), y_scale.ticks()
    return Plot("PSNR over rate", height, *ticks, paths=paths, unit="dB", key="rate", scale=ends)


class Scale:
    """Values to pixels, linear, over a range with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        span = (high - low) or abs(high) or 1.0
        low, high = low - 0.06 * span, high + 0.06 * span
        rough = (high - low) / 5
        power = 10 ** math.floor(math.log10(rough))
        self.step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough)
        self.ends = (low, high, start, end)

    def __call__(self, value: float) -> float:
        low, high, start, end = self.ends
        return round(start + (value - low) / (high - low) * (end - start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Positions and labels of round values within the range."""
        low, high, _, _ = self.ends
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        first, last = math.ceil(low / self.step), math.floor(high / self.step)
        return tuple((self(n * self.step), f"{n * self.step:.{digits}f}") for n in range(first, last + 1))


def spread(index: int) -> float:
    """A fixed vertical scatter, so that equal values do not hide each other; the page's script knows it too."""
    return round(((index * 0.618) % 1 - 0.5) * ROW * 0.56, 1)


def finite(value: Any) -> bool:
    """Whether a figure can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def _kind(entry: Mapping[str, Any]) -> str:
    return "below" if entry["state"] == "quality_failed" else "ours"

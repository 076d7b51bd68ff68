"""report.html: one self-contained page from report.json's content; inline SVG, no script, no network."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

WIDTH, ROW, LEFT, RIGHT, TOP = 720, 46, 96, 24, 12
METRICS = (
    ("psnr", "PSNR", "dB", "min_psnr"),
    ("ssim", "SSIM", "", "min_ssim"),
    ("bits_per_voxel_disk", "Bits per voxel on disk", "", None),
)
STATE_WORDS = {"encoded": "encoded", "quality_failed": "below the gate", "ingested": "not encoded", "stale": "stale"}


@dataclass(frozen=True)
class Verdict:
    """The headline for the person on call: good, watch or bad, one sentence, and one line of detail."""

    tone: str
    headline: str
    detail: str


@dataclass(frozen=True)
class Dot:
    """One series in a plot: where, which, and what its tooltip says."""

    x: float
    y: float
    series: str
    title: str
    kind: str = ""


@dataclass(frozen=True)
class Strip:
    """One group's line in a strip plot, with the gate where one is set."""

    group: str
    y: float
    dots: tuple[Dot, ...]
    median_x: float | None
    gate_x: float | None


@dataclass(frozen=True)
class Plot:
    """A plot ready to draw: its title, size, axis ticks (position, label) and contents."""

    title: str
    height: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...] = ()
    strips: tuple[Strip, ...] = ()
    dots: tuple[Dot, ...] = ()
    links: tuple[tuple[Dot, Dot], ...] = ()
    unit: str = ""


def render(report: Mapping[str, Any]) -> str:
    """The page as one HTML document; everything of the report is escaped.

    report: report.json's content; `worst` beside it holds series with `figure`, PNG bytes as base64. Missing sections
    are left out, and figures that are None show as a dash.
    """
    environment = Environment(
        loader=PackageLoader("flows", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, count=count, duration=duration, short=short, pretty=pretty, state=state_word
    )
    series = sorted(report.get("series", []), key=_worst_first)
    return environment.get_template("report.html.j2").render(
        title=report.get("title", "voxbook report"),
        workspace=report.get("workspace", ""),
        created=report.get("created", ""),
        run=report.get("run", ""),
        verdict=verdict(report.get("summary", {})),
        summary=report.get("summary", {}),
        stages=report.get("stages", []),
        groups=report.get("groups", []),
        series=series,
        worst=report.get("worst", []),
        quarantine=report.get("quarantine", []),
        models=report.get("models", []),
        strips=strip_plots(series, report.get("groups", []), report.get("settings", {})),
        rate=rate_plot(report.get("rate", [])),
        settings=report.get("settings", {}),
        versions=report.get("versions", {}),
        width=WIDTH,
        left=LEFT,
        right=RIGHT,
        top=TOP,
    )


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """Did the night go well: worst news first."""
    total, encoded = summary.get("series", 0), summary.get("encoded", 0)
    below, refused = summary.get("quality_failed", 0), summary.get("quarantined", 0)
    waiting = summary.get("ingested", 0) + summary.get("stale", 0)
    damaged = summary.get("damaged", 0) + summary.get("missing", 0)
    parts = [f"{count(encoded)} of {count(total)} series encoded"]
    parts += [f"{count(damaged)} stored versions damaged or missing"] * bool(damaged)
    parts += [f"{count(below)} below the gate"] * bool(below)
    parts += [f"{count(waiting)} not encoded or stale"] * bool(waiting)
    parts += [f"{count(refused)} quarantined"] * bool(refused)
    detail = ", ".join(parts) + "."
    if damaged:
        return Verdict("bad", "The store needs repair.", detail)
    if not total:
        return Verdict("bad", "Nothing was found.", detail)
    if below:
        return Verdict("bad", f"{count(below)} {'series misses' if below == 1 else 'series miss'} the gate.", detail)
    if waiting:
        return Verdict("watch", f"{count(waiting)} series {'waits' if waiting == 1 else 'wait'} for encoding.", detail)
    if refused:
        return Verdict("watch", "All series encoded; some input was refused.", detail)
    return Verdict("good", "All series encoded.", detail)


def strip_plots(series: Sequence[Mapping], groups: Sequence[Mapping], settings: Mapping[str, Any]) -> tuple[Plot, ...]:
    """One plot per metric, one line per group, one dot per series; metrics that nobody measured are left out."""
    names = sorted({str(entry["group"]) for entry in series})
    gates = {str(group["group"]): group.get("gate") or settings.get("gate") or {} for group in groups}
    plots = []
    for key, label, unit, gate_key in METRICS:
        measured = {
            name: [entry for entry in series if entry["group"] == name and _finite(entry.get(key))] for name in names
        }
        measured = {name: entries for name, entries in measured.items() if entries}
        if not measured:
            continue
        limits = [gates.get(name, {}).get(gate_key) for name in measured] if gate_key else []
        values: list[float] = [entry[key] for entries in measured.values() for entry in entries]
        values += [limit for limit in limits if limit is not None]
        scale = _Scale(values, LEFT, WIDTH - RIGHT)
        strips = []
        for row, (name, entries) in enumerate(measured.items()):
            y = TOP + ROW * (row + 0.5)
            limit = gates.get(name, {}).get(gate_key) if gate_key else None
            middle = statistics.median(entry[key] for entry in entries)
            dots = tuple(
                Dot(
                    x=scale(entry[key]),
                    y=y + _spread(index),
                    series=entry["series"],
                    title=f"{entry['series'][:8]}, {name}: {number(entry[key])} {unit}".rstrip(),
                    kind="below" if entry["state"] == "quality_failed" else "",
                )
                for index, entry in enumerate(entries)
            )
            strips.append(Strip(name, y, dots, scale(middle), None if limit is None else scale(limit)))
        plots.append(Plot(label, TOP + ROW * len(strips) + 34, scale.ticks(), strips=tuple(strips), unit=unit))
    return tuple(plots)


def rate_plot(rate: Sequence[Mapping]) -> Plot | None:
    """PSNR over bits per voxel: ours, and JPEG 2000 at the same bytes joined to it; None where nothing is measured."""
    ours = [entry for entry in rate if _finite(entry.get("psnr")) and _finite(entry.get("bits_per_voxel"))]
    if not ours:
        return None
    height = 380.0
    peers = [entry["jpeg2000_psnr"] for entry in ours if _finite(entry.get("jpeg2000_psnr"))]
    x_scale = _Scale([entry["bits_per_voxel"] for entry in ours], 56, WIDTH - RIGHT)
    y_scale = _Scale([*(entry["psnr"] for entry in ours), *peers], height - 48, TOP)
    dots, links = [], []
    for entry in ours:
        x, name = x_scale(entry["bits_per_voxel"]), f"{entry['series'][:8]}, {entry['group']}"
        where = f"at {number(entry['bits_per_voxel'])} bits per voxel"
        own = Dot(x, y_scale(entry["psnr"]), entry["series"], f"{name}: {number(entry['psnr'])} dB {where}", "ours")
        dots.append(own)
        if _finite(entry.get("jpeg2000_psnr")):
            peer_title = f"{name}, JPEG 2000: {number(entry['jpeg2000_psnr'])} dB {where}"
            peer = Dot(x, y_scale(entry["jpeg2000_psnr"]), entry["series"], peer_title, "peer")
            dots.append(peer)
            links.append((own, peer))
    return Plot(
        "PSNR over rate", height, x_scale.ticks(), y_scale.ticks(), dots=tuple(dots), links=tuple(links), unit="dB"
    )


class _Scale:
    """Values to pixels, linear, over a range with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        span = (high - low) or abs(high) or 1.0
        low, high = low - 0.06 * span, high + 0.06 * span
        rough = (high - low) / 5
        power = 10 ** math.floor(math.log10(rough))
        self.step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough)
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Positions and labels of round values within the range."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return tuple((self(n * self.step), f"{n * self.step:.{digits}f}") for n in range(first, last + 1))


def _spread(index: int) -> float:
    """A fixed vertical scatter, so that equal values do not hide each other."""
    return round(((index * 0.618) % 1 - 0.5) * ROW * 0.56, 1)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _worst_first(entry: Mapping[str, Any]) -> tuple:
    order = {"quality_failed": 0, "stale": 1, "ingested": 2}
    psnr = entry.get("psnr")
    return order.get(entry["state"], 3), psnr if _finite(psnr) else math.inf, entry["series"]


def number(value: Any, digits: int = 3) -> str:
    """A figure with about three significant digits; a dash for None."""
    if value is None:
        return "–"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0 or abs(value) >= 1000:
        return count(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def count(value: Any) -> str:
    """A whole number with narrow spaces between thousands; a dash for None."""
    return "–" if value is None else f"{round(value):,}".replace(",", "\u202f")


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def short(name: Any) -> str:
    """The first characters of a pseudonym or a model id; a dash for none."""
    return str(name)[:8] if name else "–"


def state_word(state: str) -> str:
    """What a state means to a reader."""
    return STATE_WORDS.get(state, state)


def pretty(value: Any) -> str:
    """A nested setting as indented JSON."""
    return json.dumps(value, indent=1, default=str, ensure_ascii=False)

"""report.html: one self-contained page from report.json's content; inline SVG, a little script, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.report_plots import LEFT, RIGHT, ROW, TOP, WIDTH, finite, rate_plot, strip_plots

COLUMNS = (
    "series",
    "group",
    "state",
    "psnr",
    "ssim",
    "bits_per_voxel_disk",
    "jpeg2000_psnr",
    "max_error",
    "units",
    "rung",
    "unlike",
)
ROWS = 200  # of the table that are in the page as it is; the script shows the others
STATE_WORDS = {"encoded": "encoded", "quality_failed": "below the gate", "ingested": "not encoded", "stale": "stale"}


@dataclass(frozen=True)
class Verdict:
    """The headline for the person on call: good, watch or bad, one sentence, and one line of detail."""

    tone: str
    headline: str
    detail: str


def render(report: Mapping[str, Any]) -> str:
    """The page as one HTML document; everything of the report is escaped.

    report: report.json's content; `worst` beside it holds series with `figures` (tasks.figures.figures). Missing
    sections are left out, and figures that are None show as a dash.
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
        verdict=verdict(report.get("summary", {}), report.get("last", []), report.get("groups", [])),
        summary=report.get("summary", {}),
        stages=report.get("stages", []),
        groups=report.get("groups", []),
        series=series[:ROWS],
        total=len(series),
        data=_for_script(series),
        changes=report.get("changes"),
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
        row=ROW,
    )


def _for_script(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every series in the order of the table, as columns and rows: half the bytes of an object each."""
    columns = (*COLUMNS, "shape", "reasons")
    rows = [
        [*(_short_number(entry.get(name)) for name in COLUMNS), "×".join(map(str, entry["shape"])), entry["reasons"]]
        for entry in series
    ]
    return {"columns": columns, "rows": rows}


def _short_number(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None  # JSON has no infinity
    return value


def verdict(
    summary: Mapping[str, Any], last: Sequence[Mapping[str, Any]] = (), groups: Sequence[Mapping[str, Any]] = ()
) -> Verdict:
    """Did the night go well: worst news first. last: how each stage's latest run ended (tasks.report.last_outcomes).

    groups: of each its `waiting` series and `current_model`: where there is none, encoding again does not help.
    """
    total, encoded = summary.get("series", 0), summary.get("encoded", 0)
    below, refused = summary.get("quality_failed", 0), summary.get("quarantined", 0)
    waiting = summary.get("ingested", 0) + summary.get("stale", 0)
    damaged = summary.get("damaged", 0) + summary.get("missing", 0)
    parts = [f"{count(encoded)} of {count(total)} series encoded"]
    parts += [f"{count(damaged)} stored versions damaged or missing"] * bool(damaged)
    parts += [f"{count(below)} below the gate"] * bool(below)
    parts += [f"{count(waiting)} not encoded or stale"] * bool(waiting)
    parts += [f"{count(refused)} quarantined"] * bool(refused)
    failed = [entry for entry in last if entry["state"] not in ("completed", "running", "damaged")]
    running = [entry for entry in last if entry["state"] == "running"]
    parts += [f"{_ended(entry)}" for entry in failed]
    parts += [f"{entry['stage']} has not ended (run {entry['run']})" for entry in running]
    bare = {group["group"]: group["waiting"] for group in groups if group.get("waiting") and not group["current_model"]}
    modelless = sum(bare.values())
    detail = ", ".join(parts) + "." + _without_model(bare, waiting)
    if damaged:
        return Verdict("bad", "The store needs repair.", detail)
    if failed:
        names = " and ".join(entry["stage"] for entry in failed)
        return Verdict("bad", f"The last {names} did not succeed.", detail)
    if not total:
        return Verdict("bad", "Nothing was found.", detail)
    if below:
        return Verdict("bad", f"{count(below)} {'series misses' if below == 1 else 'series miss'} the gate.", detail)
    if waiting:
        what = f": no model for {_some(bare)}" if modelless >= waiting else " for encoding"
        return Verdict("watch", f"{count(waiting)} series {'waits' if waiting == 1 else 'wait'}{what}.", detail)
    if running:
        names = " and ".join(entry["stage"] for entry in running)
        return Verdict("watch", f"The last {names} has not ended, or was killed.", detail)
    if any(entry["state"] == "damaged" for entry in last):
        return Verdict("watch", "The last run met damage that is mended since; voxbook verify tells whether.", detail)
    if refused:
        return Verdict("watch", "All series encoded; some input was refused.", detail)
    return Verdict("good", "All series encoded.", detail)


def _without_model(bare: Mapping[str, int], waiting: int) -> str:
    """What to do about groups without a model; bare: waiting series of each."""
    modelless = sum(bare.values())
    if not modelless:
        return ""
    if modelless >= waiting:
        return f" voxbook train makes the missing model{'s' if len(bare) > 1 else ''}, then voxbook encode."
    has, it = ("has", "it") if modelless == 1 else ("have", "them" if len(bare) > 1 else "it")
    return f" {count(modelless)} of them {has} no model ({_some(bare)}): voxbook train makes {it}, then voxbook encode."


def _some(names: Iterable[str], most: int = 5) -> str:
    first = sorted(names)
    return ", ".join(first[:most]) + (f" and {len(first) - most} more" if len(first) > most else "")


def _ended(entry: Mapping[str, Any]) -> str:
    why = f": {entry['why']}" if entry.get("why") else ""
    return f"{entry['stage']} {entry['state']}{why} (run {entry['run']})"


def _worst_first(entry: Mapping[str, Any]) -> tuple:
    order = {"quality_failed": 0, "stale": 1, "ingested": 2}
    psnr = entry.get("psnr")
    return order.get(entry["state"], 3), psnr if finite(psnr) else math.inf, entry["series"]


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

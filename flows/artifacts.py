"""What a run leaves in the Prefect UI: counts, the worst series, what was refused and why, a training's pictures."""

from __future__ import annotations

import base64
import functools
import io
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archive.catalog_schema import CertificateRow, SeriesRow
from archive.errors import REASONS
from archive.workspace import Workspace
from tasks.stage import Outcome, Stage, recording

logger = logging.getLogger("voxbook")

WORST = 20
PICTURE_WIDTH = 900
PICTURE_BYTES = 150_000  # each artifact is a row of the server's database, and of every answer that lists it
REPORTS_URL = "VOXBOOK_REPORTS_URL"  # where a web server of the site serves the workspace's reports folder
LABELS = {
    "bytes_in": "bytes read",
    "bytes_out": "bytes of codes written",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "bits_per_voxel": "bits per voxel",
    "codebook_use": "share of the codebook in use",
}


def published(function: Callable[..., None]) -> Callable[..., None]:
    """Run only inside a flow run, and never end one: a server that is away must not cost a night's work."""

    @functools.wraps(function)
    def safely(*args: Any, **kwargs: Any) -> None:
        if not recording():
            return
        try:
            function(*args, **kwargs)
        except Exception as error:
            logger.warning("not shown in Prefect (%s): %s; the work goes on", function.__name__, type(error).__name__)

    return safely


def key(*parts: str) -> str:
    """Parts as the key of an artifact: lower case, digits and dashes. Versions of one key form its history."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(("voxbook", *parts)).lower()).strip("-")


@published
def publish_outcome(outcome: Outcome, workspace: str) -> None:
    """The sentence and the counts of a finished stage, and every reason with what to do about it."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    create_markdown_artifact(
        f"{outcome.sentence}\n\n{counts_table(outcome.counts)}\n\nResearch use; not for diagnosis.",
        key=key(workspace, outcome.verb),
        description=outcome.sentence,
    )
    if outcome.reasons:
        create_table_artifact(
            [
                {"reason": code, "count": count, "what": REASONS[code].text, "what to do": REASONS[code].hint}
                for code, count in sorted(outcome.reasons.items(), key=lambda item: (-item[1], item[0]))
            ],
            key=key(workspace, outcome.verb, "reasons"),
            description="What was refused or is below its gate, and what to do about it",
        )


def counts_table(counts: Mapping[str, Any]) -> str:
    """Counts as a table of markdown; those of a night as one column for each stage."""
    stages = {name: value for name, value in counts.items() if isinstance(value, Mapping)}
    if stages and len(stages) == len(counts):
        parts = [f"**{name}**\n\n{counts_table(value)}" for name, value in stages.items()]
        return "\n\n".join(parts)
    rows = [
        f"| {LABELS.get(name, name.replace('_', ' '))} | {_cell(value)} |"
        for name, value in counts.items()
        if not isinstance(value, list | Mapping)
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


@published
def publish_worst(home: Workspace) -> None:
    """The worst series of the workspace, those below their gate first; nothing where none is measured."""
    from prefect.artifacts import create_table_artifact

    worst = home.catalog.worst_certificates(WORST)
    if not worst:
        return
    rows = {row.series: row for row in home.catalog.series([entry.series for entry in worst])}
    create_table_artifact(
        [worst_row(rows[entry.series], entry) for entry in worst if entry.series in rows],
        key=key(home.root.name, "worst"),
        description=f"The {len(worst)} worst series: those below their gate first, then by PSNR",
    )


def worst_row(row: SeriesRow, certificate: CertificateRow) -> dict[str, Any]:
    """One line of the table of the worst, for people."""
    data = certificate.data
    return {
        "series": row.series[:12],
        "group": row.group,
        "gate": "passed" if certificate.passed else ", ".join(data.get("reasons", [])) or "missed",
        "PSNR, dB": _cell(certificate.psnr),
        "SSIM": _cell(certificate.ssim),
        "largest error": f"{_cell(data.get('max_error'))} {row.units}",
        "bits per voxel": _cell(data.get("bits_per_voxel", {}).get("disk")),
        "shape": "x".join(map(str, row.shape)),
    }


@published
def publish_model(stage: Stage, summary: Mapping[str, Any]) -> None:
    """What a training reached, its loss curve, and held-out slices before and after: inline, as one picture."""
    from prefect.artifacts import create_markdown_artifact

    from model.progress import METRICS, PICTURE, read

    group, model = summary["group"], summary["model"]
    whose = "on patients held out" if summary["held_out_patients"] else "on the patients it learned from"
    shown = {name: summary[name] for name in ("psnr", "ssim", "bits_per_voxel", "codebook_use", "steps", "seconds")}
    text = f"Model `{model[:12]}` of group **{group}**, preset {summary['preset']}.\n\n{counts_table(shown)}\n\n"
    folder = stage.workspace.models / model
    if stage.settings.prefect.pictures and (folder / PICTURE).exists():
        text += (
            f"![loss, codes and reconstructions]({data_uri((folder / PICTURE).read_bytes())})\n\n"
            "The slices are **patient data**: whoever reads this server sees them (`prefect.pictures = false` "
            "leaves them out). "
        )
    elif lines := read(folder / METRICS):
        text += f"![loss]({data_uri(loss_curve(lines))})\n\n"
    create_markdown_artifact(
        f"{text}Research use; not for diagnosis.",
        key=key(stage.workspace.root.name, "train", group),
        description=f"{group}: {summary['psnr']:.1f} dB {whose}",
    )


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of the loss over the steps of a training; no pixel of an image is in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "l_rec", "l_quant"):
        axes.plot([line["step"] for line in lines], [line[name] or math.nan for line in lines], label=name)
    axes.set(xlabel="step", yscale="log")
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def data_uri(picture: bytes, limit: int = PICTURE_BYTES) -> str:
    """A picture as a data: URI of JPEG, smaller and smaller until it takes at most `limit` bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    width = min(PICTURE_WIDTH, image.width)
    while True:
        part = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=80, optimize=True)
        if buffer.tell() <= limit or width <= 200:
            return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        width = int(width * 0.85)


@published
def publish_report(home: Workspace, report: Path) -> None:
    """Where the report is: a link that the browser follows where somebody serves the folder, else its place."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    name, base = home.root.name, os.environ.get(REPORTS_URL, "")
    about = "The report of this run; its pictures are patient data"
    if base:
        link = f"{base.rstrip('/')}/{report.parent.name}/{report.name}"
        create_link_artifact(link, link_text=f"report {report.parent.name}", key=key(name, "report"), description=about)
        return
    create_markdown_artifact(
        f"{about}. On the machine that made it:\n\n    {report}\n\nBrowsers follow no link from here to a file; "
        f"`voxbook up` serves it, or set `{REPORTS_URL}` (docs/prefect.md).",
        key=key(name, "report"),
        description=about,
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

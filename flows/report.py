"""Report: one self-contained page that shows the worst first, and the same as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flows.artifacts import publish_report, publish_worst
from flows.events import REPORTED, tell
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from flows.report_page import render
from flows.staged import stage_flow, staged
from tasks.report import gather, gather_figures
from tasks.stage import Outcome, Stage, call


@stage_flow("report")
def report(workspace: WorkspacePath, settings: Overrides = []) -> Outcome:
    """Write report.html, report.json and run.json under reports/<run>/."""
    with staged("report", workspace, settings) as stage:
        data = call(gather, stage)
        folder = stage.workspace.reports / stage.run
        folder.mkdir(parents=True, mode=0o700)
        _write(folder / "report.json", json.dumps(data, indent=1))
        _write(folder / "report.html", render({**data, "worst": call(gather_figures, stage, data)}))
        _write(folder / "run.json", json.dumps(run_record(stage, data["versions"]), indent=1))
        publish_worst(stage.workspace)
        publish_report(stage.workspace, folder / "report.html")
        tell(REPORTED, "workspace", stage.workspace.root.name, report=stage.run)
        summary = data["summary"]
        return finish(
            Outcome(
                verb="report",
                run=stage.run,
                counts={
                    "series": summary["series"],
                    "encoded": summary["encoded"],
                    "quality_failed": summary["quality_failed"],
                    "quarantined": summary["quarantined"],
                    "report": str(folder / "report.html"),
                    "seconds": stage.seconds,
                },
                sentence=f"report: {summary['series']} series, {summary['encoded']} encoded, "
                f"{summary['quality_failed']} below the gate, {summary['quarantined']} quarantined",
            ),
            stage,
        )


def run_record(stage: Stage, versions: dict[str, str]) -> dict[str, Any]:
    """What a later reader needs to repeat the run: resolved settings (sources by alias only) and versions."""
    settings = stage.settings.model_dump(mode="json", exclude={"sources", "database", "linkage"})
    return {"run": stage.run, "settings": {**settings, "sources": sorted(stage.settings.sources)}, "versions": versions}


def _write(path: Path, text: str) -> None:
    """All or nothing: a reader never opens half a report."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)

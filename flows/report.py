"""Report: one self-contained page that shows the worst first, and the same as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prefect import flow

from flows.parameters import Overrides, WorkspacePath, described
from flows.recording import finish
from flows.report_page import render
from tasks.report import gather, gather_figures
from tasks.stage import Outcome, Stage, call, open_stage


@flow(name="report", flow_run_name="report {workspace}", persist_result=False)
@described
def report(workspace: WorkspacePath, settings: Overrides = []) -> Outcome:
    """Write report.html, report.json and run.json under reports/<run>/."""
    with open_stage("report", workspace, settings) as stage:
        data = call(gather, stage)
        folder = stage.workspace.reports / stage.run
        folder.mkdir(parents=True, mode=0o700)
        _write(folder / "report.json", json.dumps(data, indent=1))
        _write(folder / "report.html", render({**data, "worst": call(gather_figures, stage, data)}))
        _write(folder / "run.json", json.dumps(run_record(stage, data["versions"]), indent=1))
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

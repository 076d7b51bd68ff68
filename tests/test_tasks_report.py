"""tasks/report.py: what a report says of a workspace, and that one bad series never ends it."""

import json
from pathlib import Path

import pytest

from archive.workspace import Workspace
from flows.report import report
from tasks import report as reporting


@pytest.fixture
def written(workspace):
    def write() -> tuple[dict, str]:
        done = report.fn(workspace=str(workspace), settings=["cluster=inline"])
        page = Path(done.counts["report"])
        return json.loads(page.with_name("report.json").read_text()), page.read_text()

    return write


def test_codebook_use_is_told_by_group_modality_and_level(written):
    data, page = written()
    for group in data["groups"]:
        assert [found["modality"] for found in group["codebook"]] == group["modalities"]
        for found in group["codebook"]:
            assert found["series"] == group["series"] and 0 < found["use"] <= 1
            assert found["perplexity"] and all(value >= 1 for value in found["perplexity"])
    assert "Perplexity by level" in page
    assert all(entry["state"] == "completed" for entry in data["last"]) and len(data["last"]) == 3


def test_a_series_that_is_gone_or_breaks_a_library_has_no_picture_and_the_others_have(written, monkeypatch, caplog):
    figures, calls = reporting.figures, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("/secret/path of a library")
        return figures(*arguments)

    monkeypatch.setattr(reporting, "figures", breaks)
    _, page = written()
    assert page.count("No picture: its stored bytes") == 1 and page.count("<figure id=") == 4
    assert "RuntimeError" in caplog.text and "/secret" not in caplog.text and "/secret" not in page


def test_a_series_erased_while_the_report_is_written_does_not_end_it(written, workspace, monkeypatch):
    gone = Workspace.open(workspace).catalog.series()[0].series
    worst = reporting._figures

    def erased(stage, series):
        return worst(stage, "f" * 32 if series == gone else series)

    monkeypatch.setattr(reporting, "_figures", erased)
    _, page = written()
    assert page.count("No picture: its stored bytes") == 1

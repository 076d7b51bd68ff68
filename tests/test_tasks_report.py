"""tasks/report.py: what a report says of a workspace, and that one bad series never ends it."""

import json
from pathlib import Path
from types import SimpleNamespace

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


def test_the_worst_tenth_is_that_of_the_model_card_the_mean_of_the_lowest():
    rows = [SimpleNamespace(series=str(n), state="encoded", voxels=1, modality="CT") for n in range(20)]
    bits = {"fixed": 1.0, "entropy": 1.0, "disk": 1.0}
    rest = {"model": "m", "ssim": 0.9, "bits_per_voxel": bits, "ratio": 9.0, "passed": True}
    rest |= {"perplexity": [], "codebook_use": 0.5}
    found = {str(n): SimpleNamespace(data={**rest, "psnr": 30.0 + n}) for n in range(20)}
    assert (
        reporting._group(rows, found, "ct", {}, "m")["psnr_worst_decile"] == 30.5
    )  # of 30 and 31; percentile 10: 31.9


def test_groups_tell_how_many_series_wait_and_by_which_model():
    rows = [
        SimpleNamespace(series=state, state=state, voxels=1, modality="MR")
        for state in ("ingested", "stale", "encoded", "quality_failed")
    ]
    assert reporting._group(rows, {}, "mr", {}, None)["waiting"] == 2
    assert reporting._group(rows, {}, "mr", {}, "m")["current_model"] == "m"


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

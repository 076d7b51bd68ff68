"""Artifacts without a server: keys, tables, pictures of a bounded size; and reports served to those who have the token."""

from __future__ import annotations

import base64
import io
import urllib.error
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from archive.workspace import Workspace
from flows import artifacts
from flows.report_server import TOKEN, serve_reports


def test_keys_are_what_prefect_takes():
    assert artifacts.key("Ward 7/ü", "encode ct", "progress") == "voxbook-ward-7-encode-ct-progress"


def test_counts_are_a_table_for_people_and_a_night_one_for_each_stage():
    table = artifacts.counts_table(
        {"bytes_out": 1234567, "psnr": 41.23456, "models": [1], "dry_run": True, "left": None}
    )
    assert "| bytes of codes written | 1,234,567 |" in table and "| PSNR, dB | 41.23 |" in table
    assert "| dry run | yes |" in table and "models" not in table
    assert "**verify**" in artifacts.counts_table({"ingest": {"found": 1}, "verify": {"checked": 2}})


def test_the_worst_series_come_first(finished):
    home = Workspace.open(finished)
    worst = home.catalog.worst_certificates(3)
    every = sorted(row.psnr for row in home.catalog.certificates())
    assert [row.psnr for row in worst] == every[:3]
    rows = {row.series: row for row in home.catalog.series()}
    shown = artifacts.worst_row(rows[worst[0].series], worst[0])
    assert shown["gate"] == "passed" and shown["series"] == worst[0].series[:12] and shown["largest error"]


def test_a_picture_is_never_larger_than_its_limit():
    noise = np.random.default_rng(1).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    uri = artifacts.data_uri(buffer.getvalue(), limit=60_000)
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert len(data) <= 60_000
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_a_loss_that_is_zero_does_not_flatten_the_curve():
    lines = [{"step": step, "loss": 1 / step, "l_rec": 1 / step, "l_quant": 0.0} for step in range(1, 9)]
    assert Image.open(io.BytesIO(artifacts.loss_curve(lines))).format == "PNG"


@pytest.fixture
def served(tmp_path):
    reports = tmp_path / "reports"
    (reports / "20261123T000000-ab").mkdir(parents=True)
    (reports / "20261123T000000-ab" / "report.html").write_text("<p>the report</p>")
    (reports / "20261123T000000-ab" / "report.json").write_text("{}")
    (tmp_path / "report.html").write_text("outside")
    return reports, serve_reports(reports, 0)


def test_a_report_opens_with_the_token(served):
    reports, base = served
    with urlopen(f"{base}/20261123T000000-ab/report.html") as answer:
        assert answer.read() == b"<p>the report</p>"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert (reports / TOKEN).stat().st_mode & 0o777 == 0o600
    assert serve_reports(reports, 0).rsplit("/", 1)[1] == base.rsplit("/", 1)[1], "links of earlier nights still open"


@pytest.mark.parametrize(
    "path", ["/20261123T000000-ab/report.json", "/../report.html", "/%2e%2e/report.html", "/", "/.token"]
)
def test_nothing_else_does(served, path):
    _, base = served
    with pytest.raises(urllib.error.HTTPError) as caught:
        urlopen(f"{base}{path}")
    assert caught.value.code == 404


def test_neither_without_the_token_nor_under_another_name(served):
    _, base = served
    address = base.rsplit("/", 1)[0]
    asked = [Request(f"{address}/0000/20261123T000000-ab/report.html")]
    asked.append(Request(f"{base}/20261123T000000-ab/report.html", headers={"Host": "evil.example"}))
    for request in asked:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urlopen(request)
        assert caught.value.code == 404

"""The scale benchmark runs, at a size that proves nothing but that."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.filterwarnings("ignore")
def test_every_series_is_encoded_and_every_process_watched(monkeypatch, tmp_path):
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale = importlib.import_module("scale")
    monkeypatch.setattr(importlib.import_module("scale_archive"), "DISTINCT", 4)
    found = scale.run([6], 1, False, None, tmp_path)
    (row,) = found["rows"]
    assert row["series"] == 6 and row["flow_s"] > 0
    assert set(row["rss_mib"]) == {"scheduler", "worker0", "driver"} and min(row["rss_mib"].values()) > 10
    assert row["files_per_series"] >= 4 and row["database_bytes"] > row["database_bytes_per_10000_ingested"] * 6e-4
    assert [item["series"] for item in found["projection"]] == [10**6, 10**7]
    assert "6" in scale.table(found["rows"])

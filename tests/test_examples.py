"""The examples run as they stand."""

from __future__ import annotations

import io
import runpy
import shutil
from pathlib import Path

import pytest

from archive.workspace import Workspace

HOME = Path(__file__).resolve().parent.parent
MOST_BYTES = 200_000  # of a picture in the documents


def example(name: str) -> dict:
    return runpy.run_path(str(HOME / "examples" / name))


def test_every_example_is_tested():
    text = Path(__file__).read_text()
    assert [path.name for path in (HOME / "examples").glob("*.py") if f'example("{path.name}")' not in text] == []


def test_tokens_reach_a_dataloader(finished, capsys):
    embedded = example("tokens_in_a_dataloader.py")["main"](finished, "ct", width=8)
    assert embedded.shape[:3] == (1, 8, 1)
    assert embedded.isfinite().all()
    assert "of 2 series" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["ct", "pt"])
def test_a_region_is_read_from_both_tiers(finished, group, capsys):
    row = Workspace.open(finished).catalog.series(group=group)[0]
    difference = example("read_a_region.py")["main"](finished, row.series[:8])
    assert difference > 0
    said = capsys.readouterr().out
    assert row.series[:12] in said
    assert row.units in said


def test_the_table_of_certificates_has_a_row_for_every_encoded_series(finished):
    out = io.StringIO()
    rows = example("quality_table.py")["main"](finished, out)
    encoded = [row.series for row in Workspace.open(finished).catalog.series(states=["encoded"])]
    assert sorted(row["series"] for row in rows) == sorted(encoded)
    assert [row["psnr"] for row in rows] == sorted(row["psnr"] for row in rows)
    assert len(out.getvalue().splitlines()) == 1 + len(encoded)


def test_dicom_to_codes_and_back_without_a_workspace(archive_folder, tmp_path, capsys):
    folder = shutil.copytree(archive_folder / "a", tmp_path / "in")
    error = example("without_a_workspace.py")["main"](folder, tmp_path / "models", seconds=6, preset="tiny")
    assert 0 < error < 2000
    assert "off by" in capsys.readouterr().out


def test_what_codes_keep_draws_its_pictures(finished, tmp_path):
    figures = example("what_codes_keep.py")["main"](finished, tmp_path)
    for name in ("keeps", "loses", "bits", "bounds"):
        assert 5_000 < (tmp_path / f"{name}.png").stat().st_size < MOST_BYTES
    assert all(item["largest_hu"] <= item["bound_hu"] for item in figures["bounds"])
    rates = [item["bits_per_voxel"] for item in figures["bounds"]]
    assert rates == sorted(rates)

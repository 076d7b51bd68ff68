"""Runs after the first: what did not change is not opened, what is gone is noted, what was refused stays refused."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_archive_containers import pack
from tiny import SERIES, save, save_all, tiny

from archive import dicom
from archive.collect import collect
from archive.errors import InputError
from archive.workspace import Workspace
from flows.ingest import ingest

INLINE = ["cluster=inline"]


@pytest.fixture
def home(tmp_path):
    """A workspace with one source of a CT series of four slices."""
    save_all([tiny(index) for index in range(4)], tmp_path / "in" / "a")
    home = Workspace.open(tmp_path / "ws", create=True)
    home.register_source(tmp_path / "in", "src")
    return home


def run(home, *settings):
    outcome = ingest.fn(workspace=str(home.root), sources=["src"], settings=[*INLINE, *settings])
    names = ("found", "ingested", "unchanged", "quarantined")
    return tuple(outcome.counts[name] for name in names)


def test_an_unchanged_source_is_neither_opened_nor_planned(home, tmp_path, monkeypatch):
    pack(save_all([tiny(0, SeriesInstanceUID=SERIES + ".2")], tmp_path / "b"), tmp_path / "in" / "b.zip", "")
    (tmp_path / "in" / "junk.dcm").write_bytes(b"junk")
    assert run(home) == (3, 2, 0, 1)
    monkeypatch.setattr("archive.batches.look", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr("tasks.ingest.plan", lambda *_: pytest.fail("planned"))
    assert run(home) == (3, 0, 2, 1)


def test_a_touched_file_makes_no_new_version_and_a_new_slice_does(home, tmp_path):
    assert run(home) == (1, 1, 0, 0)
    version = home.catalog.series()[0].volume_version
    os.utime(tmp_path / "in" / "a" / "001.dcm")
    assert run(home) == (1, 0, 1, 0)
    assert home.catalog.series()[0].volume_version == version
    save(tiny(4), tmp_path / "in" / "a" / "004.dcm")
    assert run(home) == (1, 1, 0, 0)
    assert home.catalog.series()[0].shape == (5, 6, 5)


def test_a_file_replaced_under_its_size_and_time_is_noticed(home, tmp_path, monkeypatch):
    path = tmp_path / "in" / "a" / "001.dcm"

    def replaced(content):
        status, fresh = path.stat(), tmp_path / "fresh"
        fresh.write_bytes(content)
        os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
        fresh.replace(path)

    assert run(home) == (1, 1, 0, 0)
    version = home.catalog.series()[0].volume_version
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    replaced(bytes(changed))
    assert run(home) == (1, 1, 0, 0)
    corrected = home.catalog.series()[0].volume_version
    assert corrected != version
    replaced(bytes(changed))  # another inode, the same content
    assert run(home) == (1, 0, 1, 0)
    assert home.catalog.series()[0].volume_version == corrected
    monkeypatch.setattr("archive.ingest.read_slices", lambda *_: pytest.fail("read again"))
    assert run(home) == (1, 0, 1, 0)


def test_a_source_that_is_gone_is_noted_and_the_volume_stays(home, tmp_path):
    run(home)
    (tmp_path / "in" / "a").rename(tmp_path / "away")
    assert run(home) == (0, 0, 0, 0)
    row = home.catalog.series()[0]
    assert (row.state, row.reason) == ("ingested", "SOURCE_GONE")
    assert (home.volumes / row.series / row.volume_version).is_dir()
    shutil.move(tmp_path / "away", tmp_path / "in" / "a")
    assert run(home) == (1, 0, 1, 0)
    assert home.catalog.series()[0].reason == ""


@pytest.mark.parametrize(("code", "again"), [("DECODE_FAILED", 0), ("UNREADABLE", 1)])
def test_a_series_that_cannot_be_read_is_tried_again_only_where_that_may_help(home, monkeypatch, code, again):
    tried = []

    def refuse(*_):
        tried.append(1)
        raise InputError(code)
        yield

    monkeypatch.setattr("archive.ingest.read_slices", refuse)
    assert run(home) == (1, 0, 0, 1)
    assert run(home) == (1, 0, 0, 1)
    assert len(tried) == 1 + again
    assert [row.code for row in home.catalog.quarantine("src")] == [code]
    run(home, "ingest.decode_seconds=60")  # other limits: worth another try
    assert len(tried) == 2 + again


def test_planning_keeps_what_it_computed(home, tmp_path, monkeypatch):
    save(tiny(1), tmp_path / "in" / "a" / "copy.dcm")
    run(home)
    (tmp_path / "in" / "a" / "new.dcm").write_bytes((tmp_path / "in" / "a" / "003.dcm").read_bytes())
    calls = []
    honest = dicom.pixel_digest
    monkeypatch.setattr(dicom, "pixel_digest", lambda *args: calls.append(1) or honest(*args))
    run(home)
    assert len(calls) == 2  # of the new copy and what it copies; not of those compared before


def test_a_folder_under_a_new_alias_does_not_come_in_twice(home, tmp_path):
    """Pictures carry no identifiers: what names them must not change with what the folder is called."""
    Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).save(tmp_path / "in" / "a.png")
    assert run(home) == (2, 2, 0, 0)
    before = {row.series for row in home.catalog.series()}
    home.register_source(tmp_path / "in", "renamed")
    counts = ingest.fn(workspace=str(home.root), sources=["renamed"], settings=INLINE).counts
    assert (counts["found"], counts["ingested"], counts["unchanged"]) == (2, 0, 2)
    assert {row.series for row in home.catalog.series()} == before


def test_a_series_that_moves_to_another_source_is_not_gone(home, tmp_path):
    assert run(home) == (1, 1, 0, 0)
    (tmp_path / "other").mkdir()
    home.register_source(tmp_path / "other", "other")
    shutil.move(tmp_path / "in" / "a", tmp_path / "other" / "a")
    run(home)
    assert [row.reason for row in home.catalog.series()] == ["SOURCE_GONE"]
    ingest.fn(workspace=str(home.root), sources=["other"], settings=INLINE)
    assert [(row.reason, row.source) for row in home.catalog.series()] == [("", "other")]


@pytest.mark.parametrize("order", [["src", "other"], ["other", "src"]])
def test_a_series_in_two_sources_stays_when_one_of_them_loses_it(home, tmp_path, order):
    shutil.copytree(tmp_path / "in", tmp_path / "other")
    home.register_source(tmp_path / "other", "other")
    both = ["src", "other"]
    ingest.fn(workspace=str(home.root), sources=both, settings=INLINE)
    shutil.rmtree(tmp_path / "other" / "a")
    for _ in range(2):
        ingest.fn(workspace=str(home.root), sources=order, settings=INLINE)
        assert [row.reason for row in home.catalog.series()] == [""]
    shutil.rmtree(tmp_path / "in" / "a")
    ingest.fn(workspace=str(home.root), sources=order, settings=INLINE)
    assert [row.reason for row in home.catalog.series()] == ["SOURCE_GONE"]


def test_two_sources_that_differ_do_not_rewrite_a_series_every_night(home, tmp_path):
    run(home)
    shutil.copytree(tmp_path / "in", tmp_path / "other")
    max((tmp_path / "other" / "a").iterdir()).unlink()  # the last slice
    home.register_source(tmp_path / "other", "other")
    both = ["src", "other"]
    ingest.fn(workspace=str(home.root), sources=both, settings=INLINE)
    version = home.catalog.series()[0].volume_version
    collect(home)
    again = ingest.fn(workspace=str(home.root), sources=both, settings=INLINE)
    assert again.counts["ingested"] == 0 and home.catalog.series()[0].volume_version == version

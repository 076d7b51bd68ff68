"""Verify: superseded versions, versions that go meanwhile, models, and a time that was too short."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import QUICK
from test_flows_again import another
from test_flows_repair import THOROUGH, flip

import tasks.verify
from archive.workspace import Workspace
from flows.console import DAMAGE, OK, exit_code
from flows.encode import encode
from flows.verify import verify
from model.bundle import load


def test_damaged_superseded_codes_are_named_and_never_become_current_again(workspace):
    home = Workspace.open(workspace)
    row = home.catalog.series(group="ct")[0]
    old = row.codes_version
    encode.fn(workspace=str(workspace), series=[row.series], profile="fast", settings=QUICK)
    flip(home.codes / row.series / old)
    found = verify.fn(workspace=str(workspace), settings=THOROUGH)
    assert [(one["version"], one["code"], one["current"]) for one in found.problems] == [(old, "DAMAGED", False)]
    assert (found.counts["damaged"], found.counts["superseded_damaged"], exit_code(found)) == (0, 1, OK)
    assert "all whole" not in found.sentence and "voxbook gc" in found.sentence
    back = encode.fn(workspace=str(workspace), series=[row.series], profile="exact", settings=QUICK)
    assert (back.counts["encoded"], back.counts["adopted"]) == (1, 0)
    assert home.catalog.one(row.series).codes_version != old
    after = verify.fn(workspace=str(workspace), settings=THOROUGH)
    assert after.problems == () and "all whole" in after.sentence


def test_encode_says_what_it_pointed_at_codes_that_exist(workspace):
    name = Workspace.open(workspace).catalog.series(group="ct")[0].series
    encode.fn(workspace=str(workspace), series=[name], profile="fast", settings=QUICK)
    back = encode.fn(workspace=str(workspace), series=[name], profile="exact", settings=QUICK)
    assert (back.counts["encoded"], back.counts["unchanged"], back.counts["adopted"]) == (0, 1, 1)
    assert "1 pointed at codes that exist" in back.sentence and "nothing new" not in back.sentence
    again = encode.fn(workspace=str(workspace), series=[name], profile="exact", settings=QUICK)
    assert again.counts["adopted"] == 0 and "1 unchanged; nothing new" in again.sentence


def test_a_version_that_goes_while_verify_runs_is_not_missing(workspace, monkeypatch):
    home = Workspace.open(workspace)
    gone, lost = (row.series for row in home.catalog.series(group="ct"))
    real = tasks.verify.verify_batch

    def late(checks, **options):  # another process forgets one series and a disk loses the other
        for root in (home.volumes, home.codes):
            for name in (gone, lost):
                shutil.rmtree(root / name, ignore_errors=True)
        home.catalog.remove_series(gone)
        return real(checks, **options)

    monkeypatch.setattr(tasks.verify, "verify_batch", late)
    found = verify.fn(workspace=str(workspace), settings=QUICK)
    assert {one["series"] for one in found.problems} == {lost}
    assert (found.counts["missing"], found.counts["left"], exit_code(found)) == (2, 0, DAMAGE)


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_model_that_was_loaded_before_is_read_anew(workspace):
    home = Workspace.open(workspace)
    model = home.catalog.current_model("ct").model
    load(home.models / model)
    series = {row.series for row in home.catalog.series(group="ct")}
    change(home.models / model / "model.safetensors")
    assert verify.fn(workspace=str(workspace), settings=QUICK).problems == (), "files and sizes are as they were"
    found = verify.fn(workspace=str(workspace), settings=THOROUGH)
    assert {one["series"] for one in found.problems} == series
    assert {(one["tier"], one["version"], one["code"]) for one in found.problems} == {("model", model, "DAMAGED")}
    assert exit_code(found) == DAMAGE and found.counts["damaged"] == len(series)


def test_a_lost_model_is_missed_without_reading_and_has_a_hint_of_its_own(workspace):
    home = Workspace.open(workspace)
    model = home.catalog.current_model("mr").model
    shutil.rmtree(home.models / model)
    found = verify.fn(workspace=str(workspace), settings=QUICK)
    assert [(one["tier"], one["code"]) for one in found.problems] == [("model", "MISSING")]
    assert "voxbook train" in found.problems[0]["hint"] and "voxbook train" in found.sentence
    assert (found.counts["missing"], exit_code(found)) == (1, DAMAGE)


def test_a_broken_model_that_nothing_current_needs_is_named_and_fails_nothing(workspace):
    home = Workspace.open(workspace)
    second = another(workspace)
    change(home.models / second / "model.safetensors")
    found = verify.fn(workspace=str(workspace), settings=THOROUGH)
    assert [(one["tier"], one["version"], one["current"]) for one in found.problems] == [("model", second, False)]
    assert exit_code(found) == OK and second[:12] in found.sentence and "all whole" not in found.sentence


def test_a_current_model_without_codes_is_needed(workspace):
    home = Workspace.open(workspace)
    model = home.catalog.current_model("pt").model
    for row in home.catalog.series(group="pt"):
        home.catalog.remove_series(row.series)
    shutil.rmtree(home.models / model)
    found = verify.fn(workspace=str(workspace), settings=QUICK)
    assert [(one["group"], one["version"]) for one in found.problems] == [("pt", model)]
    assert exit_code(found) == DAMAGE


def test_a_short_run_says_what_is_left_and_the_next_ones_go_on(workspace, monkeypatch):
    none = verify.fn(workspace=str(workspace), settings=[*THOROUGH, "verify.max_seconds=1e-9"])
    assert (none.counts["checked"], none.counts["left"]) == (0, 8)
    assert "0 of 8" in none.sentence and "8 left for the next run" in none.sentence and "whole" not in none.sentence
    assert none.counts["models_left"] == 3
    real = tasks.verify.verify_batch
    room = 0

    def few(checks, **options):  # as if the time were over after three
        nonlocal room
        taken, room = checks[:room], max(0, room - len(checks))
        return real(taken, **options)

    monkeypatch.setattr(tasks.verify, "verify_batch", few)
    for left in (5, 5, 5, 5):  # in turn: two of the codes and one volume each
        room = 3
        done = verify.fn(workspace=str(workspace), settings=THOROUGH)
        assert (done.counts["checked"], done.counts["left"], done.counts["models_left"]) == (3, left, 0)
    rows = [*Workspace.open(workspace).catalog.volumes_stored(), *Workspace.open(workspace).catalog.codes_stored()]
    assert all(row.checked_at for row in rows), "four volumes, one a run"

"""What people read while a stage runs, its turn on a workspace, and what suspending it leaves, without a server."""

from __future__ import annotations

import types

import pytest
from conftest import QUICK

from archive.errors import TransientError
from archive.leases import holders
from archive.workspace import Workspace
from flows import live
from flows.staged import run_name, tags_of
from tasks.progress import Step, advance, listening
from tasks.stage import open_stage


@pytest.mark.parametrize(
    "step, elapsed, gained, words",
    [
        (Step("encode ct", 0, 4e6, "voxels", "0 of 9 series"), 0, 0, "encode ct: 0 of 4 M voxels, 0 of 9 series"),
        (
            Step("encode ct", 1e6, 4e6, "voxels"),
            10,
            1e6,
            "encode ct: 1 M of 4 M voxels, 100 k voxels/s, about 30 s left",
        ),
        (Step("verify", 9, 9, "versions"), 3, 9, "verify: 9 of 9 versions, 3 versions/s"),
        (Step("train mr", 60, 3660, "s", "step 7"), 60, 60, "train mr: 60 of 3.66 k s, step 7, 60 min left"),
        (Step("scan", 10, 1000010, "files"), 1, 10, "scan: 10 of 1 M files, 10 files/s, about 27.8 h left"),
    ],
)
def test_a_step_in_words(step, elapsed, gained, words):
    assert live.described(step, elapsed, gained) == words


@pytest.mark.parametrize(
    "parameters, name, tags",
    [
        ({"workspace": "/data/a b"}, "encode a b", {"workspace:a b"}),
        (
            {"workspace": "ws", "group": "ct", "model": "0123456789abcdef"},
            "encode ws, ct, model 0123456789ab",
            {"group:ct"},
        ),
        ({"workspace": "ws", "series": ["f", "e"], "dry_run": True}, "encode ws, 2 series, dry run", {"workspace:ws"}),
    ],
)
def test_a_run_is_named_and_tagged_by_what_it_works_on(parameters, name, tags):
    assert run_name("encode", parameters) == name
    assert tags | {"voxbook", "encode"} <= set(tags_of("encode", parameters))


def test_the_second_run_of_a_stage_waits_for_the_first(workspace, monkeypatch):
    waited = []
    monkeypatch.setattr(live, "obey", lambda: None)
    with open_stage("verify", workspace, QUICK) as first, open_stage("verify", workspace, QUICK) as second:
        live.take_turn(first)
        with pytest.raises(TransientError) as caught:
            monkeypatch.setattr(live.time, "sleep", lambda seconds: waited.append(seconds))
            live.take_turn(second, wait_s=0.0)
        assert caught.value.code == "LEASED"
        monkeypatch.setattr(live.time, "sleep", lambda seconds: first.leases.release(["stage:verify"]))
        live.take_turn(second)
        assert [lease.run for lease in holders(second.catalog)] == [second.run]
    with open_stage("verify", workspace, QUICK) as third, open_stage("report", workspace, QUICK) as other:
        live.take_turn(third)
        live.take_turn(other)  # another stage has a turn of its own


def test_a_suspended_run_gives_back_what_it_holds_and_the_catalog_says_so(workspace, monkeypatch):
    from prefect.exceptions import Pause

    state = types.SimpleNamespace(state_details=types.SimpleNamespace(pause_reschedule=True))
    monkeypatch.setattr(live, "_paused", lambda: state)
    monkeypatch.setattr(live.Live, "_show", lambda *_: None)
    with pytest.raises(Pause), open_stage("encode", workspace, QUICK) as stage:
        live.take_turn(stage)
        stage.leases.acquire(["series:feed"])
        with listening(live.Live("ws")):
            advance("encode ct", 1, 2, "voxels")
    catalog = Workspace.open(workspace).catalog
    assert catalog.runs()[-1].state == "suspended"
    assert holders(catalog) == []


def test_a_server_that_is_away_does_not_stop_a_stage(monkeypatch):
    def gone(*_):
        raise ConnectionError("no server")

    monkeypatch.setattr(live.Live, "_show", gone)
    monkeypatch.setattr("prefect.client.orchestration.get_client", gone)
    with listening(live.Live("ws")):
        advance("encode ct", 1, 2, "voxels")

"""Groups: which one a series belongs to, and stored series that follow when that changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import store_samples

from archive.catalog import ModelRow
from archive.catalog_conditions import Wanted
from archive.groups import matching, moves, regroup
from archive.settings import GroupSettings
from archive.settings_file import parse
from archive.workspace import Workspace

SERIES = store_samples.SERIES
HEAD = {
    "head": GroupSettings(match={"modality": "CT", "body_part": "HEAD"}),
    "all": GroupSettings(match={"modality": "CT"}),
}


@pytest.mark.parametrize(
    ("known", "group"),
    [
        ({"modality": "CT", "body_part": "HEAD"}, "head"),
        ({"modality": "CT", "body_part": "CHEST"}, "all"),
        ({"modality": "CT"}, "all"),
        ({"modality": "MR", "body_part": "HEAD"}, "default"),
    ],
)
def test_the_first_group_whose_every_match_holds(known, group):
    assert matching(known, "default", HEAD) == group


def test_a_group_without_a_match_takes_nothing():
    assert matching({"modality": "CT"}, "ct", {"ct-fine": GroupSettings(preset="tiny")}) == "ct"


def with_groups(workspace: Workspace, groups: dict) -> Workspace:
    return Workspace(workspace.root, parse({"groups": groups}))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """One encoded series, and one without codes, whose acquisition says 120 kV."""
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    item = replace(store_samples.volume(seed=3), acquisition={"kvp": 120})
    workspace.catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, item, "b" * 32)])
    regroup(workspace)
    return workspace


def test_nothing_moves_while_the_settings_stay(workspace, monkeypatch):
    assert moves(workspace) == regroup(workspace) == {}
    monkeypatch.setattr(type(workspace.catalog), "series", lambda *_: pytest.fail("looked at every series"))
    assert regroup(workspace) == {}


def test_series_move_and_come_back_with_the_codes_that_they_had(workspace):
    before = workspace.catalog.one(SERIES)
    chest = with_groups(workspace, {"chest": {"match": {"modality": "CT"}}})
    assert moves(chest) == {SERIES: "chest", "b" * 32: "chest"}
    assert workspace.catalog.one(SERIES) == before
    assert set(regroup(chest)) == {SERIES, "b" * 32}
    moved = chest.catalog.one(SERIES)
    assert (moved.group, moved.state, moved.codes_version) == ("chest", "stale", before.codes_version)
    assert chest.catalog.certificates()[0].expired
    assert chest.catalog.one("b" * 32).state == "ingested"
    assert regroup(chest) == {}
    # A run under the old settings that ends now enters codes by a model of the old group: they do not count here.
    codes = store_samples.codes(store_samples.volume(), moved.volume_version)
    chest.catalog.commit_encodings([store_samples.encoding_commit(chest.codes, codes, settings="other")])
    chest.catalog.add_model(ModelRow("2" * 64, "chest", "tiny"))
    left = chest.catalog.to_encode(Wanted("chest", "2" * 64, "other", any_model=True))
    assert {row.series for row in left} == {SERIES, "b" * 32}
    assert set(regroup(workspace)) == {SERIES, "b" * 32}
    assert workspace.catalog.adopt_encodings("ct", store_samples.MODEL, store_samples.SETTINGS) == [SERIES]
    assert workspace.catalog.one(SERIES) == before


def test_what_only_the_store_knows_is_read_there_and_what_is_damaged_stays(workspace):
    by_voltage = with_groups(workspace, {"kv120": {"match": {"kvp": 120}}})
    row = workspace.catalog.one(SERIES)
    metadata = workspace.volumes / SERIES / row.volume_version / "zarr.json"
    whole = metadata.read_text()
    metadata.write_text("{")
    assert moves(by_voltage) == {"b" * 32: "kv120"}
    metadata.write_text(whole)
    assert regroup(by_voltage) == {"b" * 32: "kv120"}
    assert by_voltage.catalog.one("b" * 32).group == "kv120"

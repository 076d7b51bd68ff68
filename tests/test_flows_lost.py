"""Models whose files are gone: what encode, repair and promote do without them, and that other groups go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import QUICK
from test_flows_again import another, model_of, rows_of

from archive.errors import ConfigError, MismatchError, StoreError
from archive.workspace import Workspace
from flows.console import DAMAGE, OK, USAGE, exit_code, exit_code_of
from flows.encode import encode
from flows.promote import promote
from flows.train import train


def lose(root: Path, group: str = "ct", model: str | None = None) -> str:
    """Remove the folder of a group's current model, or of the one named; its id."""
    home = Workspace.open(root)
    model = model or home.catalog.current_model(group).model
    shutil.rmtree(home.models / model)
    home.close()
    return model


def test_encode_says_that_a_model_is_gone_and_goes_on_with_the_other_groups(workspace):
    lost = lose(workspace)
    fast = {"profile": "fast", "settings": QUICK}
    dry = encode.fn(workspace=str(workspace), dry_run=True, **fast)
    done = encode.fn(workspace=str(workspace), **fast)
    for outcome in (dry, done):
        assert exit_code(outcome) == DAMAGE and outcome.reasons == {"MISSING": 1}
        (problem,) = outcome.problems
        assert (problem["tier"], problem["group"], problem["version"]) == ("model", "ct", lost)
        assert "ct" in outcome.sentence and "voxbook train" in outcome.sentence and "voxbook train" in problem["hint"]
    assert (dry.counts["planned"], done.counts["encoded"], done.counts["series"]) == (2, 2, 4)
    again = encode.fn(workspace=str(workspace), settings=QUICK)
    assert exit_code(again) == DAMAGE, "not 'nothing new', as long as nobody can read the codes"
    train.fn(workspace=str(workspace), group="ct", settings=[*QUICK, "train.seed=9"])
    mended = encode.fn(workspace=str(workspace), settings=QUICK)
    assert (mended.counts["encoded"], exit_code(mended)) == (2, OK)


def test_series_whose_codes_only_a_lost_model_reads_are_encoded_with_the_current_one(workspace):
    second = another(workspace)
    first = Workspace.open(workspace).catalog.current_model("ct").model
    one, other = (row.series for row in rows_of(workspace))
    encode.fn(workspace=str(workspace), series=[one], model=second, profile="fast", settings=QUICK)
    lose(workspace, model=second)
    fast = {"profile": "fast", "settings": QUICK}
    assert encode.fn(workspace=str(workspace), group="ct", dry_run=True, **fast).counts["planned"] == 2
    done = encode.fn(workspace=str(workspace), group="ct", **fast)
    assert (done.counts["series"], done.counts["encoded"]) == (2, 2)
    assert {model_of(workspace, name) for name in (one, other)} == {first}
    assert encode.fn(workspace=str(workspace), group="ct", **fast).counts["unchanged"] == 2


def test_what_stops_one_group_does_not_stop_the_others(workspace):
    home = Workspace.open(workspace)
    model = home.catalog.current_model("ct").model
    weights = home.models / model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    done = encode.fn(workspace=str(workspace), profile="fast", settings=QUICK)
    assert (done.counts["encoded"], exit_code(done)) == (2, DAMAGE)
    assert [(one["group"], one["code"]) for one in done.problems] == [("ct", "WRONG_MODEL")]
    assert home.catalog.runs()[-1].state == "damaged"


def test_a_model_of_another_group_is_refused_before_anything_is_encoded(workspace):
    ct = Workspace.open(workspace).catalog.current_model("ct").model
    names = [row.series for group in ("mr", "ct") for row in rows_of(workspace, group)]
    with pytest.raises(MismatchError):
        encode.fn(workspace=str(workspace), series=names, model=ct, profile="fast", settings=QUICK)
    catalog = Workspace.open(workspace).catalog
    assert {row.profile for row in catalog.encodings()} == {"exact"}


def test_more_levels_than_a_groups_model_has_are_all_that_it_has(workspace):
    home = Workspace.open(workspace)
    before = {row.series: row.codes_version for row in home.catalog.series()}
    done = encode.fn(workspace=str(workspace), settings=[*QUICK, "encode.levels=7"])
    assert (done.counts["encoded"], exit_code(done)) == (4, OK)
    manifests = [
        {home.catalog.encoding(version).manifest_digest for version in (old, home.catalog.one(series).codes_version)}
        for series, old in before.items()
    ]
    assert [len(pair) for pair in manifests] == [1] * 4, "byte for byte what it was with all levels"
    for wrong in ("0", "-1"):
        with pytest.raises(ConfigError) as caught:
            encode.fn(workspace=str(workspace), settings=[*QUICK, f"encode.levels={wrong}"])
        assert exit_code_of(caught.value) == USAGE


def test_a_model_without_files_is_not_promoted_and_one_takes_the_place_of_a_lost_one(workspace):
    second = another(workspace)
    home = Workspace.open(workspace)
    first = home.catalog.current_model("ct").model
    kept = shutil.copytree(home.models / second, workspace / "kept")
    lose(workspace, model=second)
    for force in (False, True):
        with pytest.raises(StoreError, match="MISSING") as caught:
            promote.fn(workspace=str(workspace), model=second, force=force, settings=QUICK)
        assert "voxbook train" in caught.value.hint
        assert home.catalog.current_model("ct").model == first
    shutil.move(kept, home.models / second)
    lose(workspace, model=first)
    done = promote.fn(workspace=str(workspace), model=second, settings=QUICK)  # worse, but the other one is gone
    assert done.counts["promoted"] and done.counts["comparison"] is None and first[:12] in done.sentence
    assert encode.fn(workspace=str(workspace), group="ct", settings=QUICK).counts["encoded"] == 2

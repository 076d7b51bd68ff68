"""The select verb on a small archive: its figures, its record, that it goes on, and what stops it."""

from __future__ import annotations

import json

import pytest
from conftest import QUICK

from archive.errors import ConfigError, StoreError
from archive.workspace import Workspace
from flows.select import numbers, select, show


def run(workspace, **given):
    return select.fn(**{"workspace": str(workspace), "group": "ct", "fold_count": 2, "settings": QUICK, **given})


def test_it_chooses_writes_its_record_and_trains_nothing_twice(workspace, capsys):
    outcome = run(workspace, sizes=[4, 32], widths=[8])
    counts = outcome.as_dict()
    assert (counts["group"], counts["folds"], counts["folds_of"], counts["trained"]) == ("ct", 2, "patients", 4)
    assert [(entry["codebook_size"], entry["width"]) for entry in counts["candidates"]] == [(4, 8), (32, 8)]
    for entry in counts["candidates"]:
        assert entry["psnr_mean"] > 5 and entry["psnr_se"] >= 0 and entry["failed"] == 0
        assert entry["bits_per_voxel"] >= 0 and 0 < entry["codebook_use"] <= 1
    assert counts["chosen"] in [{"codebook_size": size, "width": 8} for size in (4, 32)]
    assert counts["settings"] == [f"train.codebook_size = {counts['chosen']['codebook_size']}", "train.width = 8"]
    home = Workspace.open(workspace)
    record = json.loads((home.root / "selections" / f"{outcome.run}.json").read_text())
    assert record["chosen"] == counts["chosen"] and len(record["results"]) == 4
    assert {result["fold"] for result in record["results"]} == {0, 1}
    assert all(row.series not in json.dumps(record) and row.patient not in json.dumps(record) for row in
               home.catalog.series()), "forget would have to find it here"  # fmt: skip
    show(outcome.counts)
    printed = capsys.readouterr().out
    assert "[train]\ncodebook_size = " in printed and "--set train.width=8" in printed

    again = run(workspace, sizes=[4, 32], widths=[8])
    assert again.counts["trained"] == 0 and "nothing new" in again.sentence
    assert again.counts["candidates"] == counts["candidates"]
    # A wider grid trains only what is new, and a result that does not read is made again.
    stored = sorted((home.root / "selections" / "trainings").iterdir())
    stored[0].write_text('{"psnr": ')
    assert run(workspace, sizes=[4, 32, 8], widths=[8]).counts["trained"] == 3


def test_a_fold_that_diverges_takes_its_candidate_out(workspace, monkeypatch):
    from archive.errors import InputError
    from model import select as rooms

    original = rooms.train

    def train(volumes, patients, config, *rest, **more):
        if config.codebook_size == 4:
            raise InputError("NON_FINITE")
        return original(volumes, patients, config, *rest, **more)

    monkeypatch.setattr(rooms, "train", train)
    outcome = run(workspace, sizes=[4, 16], widths=[8])
    assert outcome.reasons == {"NON_FINITE": 2}
    assert outcome.counts["chosen"]["codebook_size"] == 16
    assert [(entry["failed"], entry["psnr_mean"] is None) for entry in outcome.counts["candidates"]] == [
        (2, True),
        (0, False),
    ]
    with pytest.raises(InputError, match="NON_FINITE"):
        run(workspace, sizes=[4], widths=[8])


def test_fewer_patients_than_folds_are_cut_by_series_and_it_is_said(workspace, capsys):
    outcome = run(workspace, sizes=[4], widths=[8], fold_count=3)
    assert (outcome.counts["folds"], outcome.counts["folds_of"]) == (2, "series")
    show(outcome.counts)
    assert "Folds are of series" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"group": "xa"}, StoreError, "NOTHING_FOUND"),
        ({"group": "mr"}, ConfigError, "at least 2 series"),
        ({"sizes": [1]}, ConfigError, "codebook size"),
        ({"fold_count": 1}, ConfigError, "at least 2 folds"),
        ({"seconds_each": 0.0}, ConfigError, "seconds-each"),
    ],
)
def test_what_cannot_be_selected_is_refused_with_a_hint(finished, given, error, words):
    with pytest.raises(error, match=words) as caught:
        run(finished, **given)
    assert caught.value.hint


def test_numbers_of_an_option():
    assert (numbers("--sizes", "256, 512"), numbers("--sizes", None)) == ([256, 512], [])
    with pytest.raises(ConfigError, match="BAD_USAGE"):
        numbers("--sizes", "big")

"""The select verb on a small archive: its figures, its record and plot, that it goes on, and what stops it."""

from __future__ import annotations

import json

import pytest
from conftest import QUICK

from archive.errors import ConfigError, InputError, StoreError
from archive.settings_file import FILENAME, load
from archive.workspace import Workspace
from flows.select import numbers, select, triple
from flows.select_report import seed_words, show
from model.config import PRESETS, resolve
from model.select import Candidate, Result

CELL = resolve("tiny").downsample
LEVELS = resolve("tiny").levels


def run(workspace, **given):
    plain = {"workspace": str(workspace), "group": "ct", "fold_count": 2, "seeds": 1, "settings": QUICK}
    return select.fn(**{**plain, **given})


def point(size: int, width: int = 8) -> dict:
    return Candidate(width, size, LEVELS, CELL).settings()


@pytest.fixture
def made_up(monkeypatch):
    """Trainings that take no time: PSNR grows with width and seconds, bits with the codebook; what ran is listed."""
    import tasks.select as room

    ran: list[tuple[Candidate, int, int, float]] = []

    def evaluate(candidate, training, testing, config, settings, seconds, fold=0):
        assert training and testing and not set(training) & set(testing)
        ran.append((candidate, fold, settings.seed, seconds))
        if candidate.codebook_size == 13:
            raise InputError("NON_FINITE")
        if candidate.codebook_size == 14:
            raise MemoryError
        psnr = 20 + candidate.width / 8 + seconds / 10 + fold + settings.seed / 10
        bits = candidate.codebook_size / 1000 * candidate.levels
        return Result(candidate, fold, settings.seed, seconds, psnr, 0.9, bits, 0.75, 30)

    monkeypatch.setattr(room, "evaluate", evaluate)
    return ran


def test_it_chooses_writes_its_record_and_trains_nothing_twice(workspace, capsys):
    outcome = run(workspace, sizes=[4, 32], widths=[8])
    counts = outcome.as_dict()
    assert (counts["group"], counts["folds"], counts["folds_of"], counts["trained"]) == ("ct", 2, "patients", 4)
    assert [(entry["codebook_size"], entry["width"]) for entry in counts["candidates"]] == [(4, 8), (32, 8)]
    for entry in counts["candidates"]:
        assert entry["psnr_mean"] > 5 and entry["psnr_se"] >= 0 and entry["failed"] == 0 and entry["finalist"]
        assert entry["bits_per_voxel"] >= 0 and 0 < entry["codebook_use"] <= 1
    assert counts["chosen"] in [point(4), point(32)] and counts["seeds"] is None
    assert counts["settings"][:2] == [f"train.codebook_size = {counts['chosen']['codebook_size']}", "train.width = 8"]
    home = Workspace.open(workspace)
    record = json.loads((home.root / "selections" / f"{outcome.run}.json").read_text())
    assert record["chosen"] == counts["chosen"] and len(record["results"]) == 4
    assert {result["fold"] for result in record["results"]} == {0, 1}
    stored = home.root / "selections" / "trainings.jsonl"
    for text in (json.dumps(record), stored.read_text()):
        assert all(row.series not in text and row.patient not in text for row in home.catalog.series()), (
            "forget would have to find it here"
        )
    assert (home.root / counts["plot"]).read_bytes().startswith(b"\x89PNG")
    show(outcome.counts)
    printed = capsys.readouterr().out
    assert "took only 30 steps" in printed
    assert "[groups.ct.train]\ncodebook_size = " in printed and "--set train.width=8" in printed

    again = run(workspace, sizes=[4, 32], widths=[8])
    assert again.counts["trained"] == 0 and "nothing new" in again.sentence
    assert again.counts["candidates"] == counts["candidates"]


def test_the_better_half_goes_on_for_longer_and_the_chosen_one_meets_other_seeds(workspace, made_up, capsys):
    outcome = run(workspace, sizes=[16, 32], widths=[8, 16, 24], seconds_each=40.0, seeds=3)
    rungs = [(10.0, 6), (20.0, 3), (40.0, 2)]
    asked = [(candidate, seconds) for candidate, fold, seed, seconds in made_up if (fold, seed) == (0, 0)]
    assert [(s, sum(seconds == s for _, seconds in asked)) for s, _ in rungs] == rungs
    assert {candidate.width for candidate, seconds in asked if seconds == 40.0} == {24}
    counts = outcome.counts
    # Both finalists are equal in PSNR: the one with fewer bits.
    assert counts["chosen"] == point(16, 24)
    assert [entry["seconds"] for entry in counts["candidates"] if entry["finalist"]] == [40.0, 40.0]
    assert sorted(entry["seconds"] for entry in counts["candidates"] if not entry["finalist"]) == [10, 10, 10, 20]
    reseeded = [(candidate, seed) for candidate, _, seed, _ in made_up if seed]
    assert sorted({seed for _, seed in reseeded}) == [1, 2] and len(reseeded) == 4
    assert {candidate.settings()["codebook_size"] for candidate, _ in reseeded} == {16}
    assert counts["seeds"]["psnr_sd"] == pytest.approx(0.1) and counts["seeds"]["codebook_use_least"] == 0.75
    assert counts["trained"] == len(made_up) == 2 * (6 + 3 + 2) + 4
    show(counts)
    assert "over 3 seeds: 27.50, 27.60, 27.70 dB, standard deviation 0.10 dB" in capsys.readouterr().out
    record = json.loads((workspace / "selections" / f"{outcome.run}.json").read_text())
    assert len(record["results"]) == len(made_up) and {entry["seed"] for entry in record["results"]} == {0, 1, 2}


def test_without_halving_every_candidate_is_trained_in_full(workspace, made_up):
    run(workspace, sizes=[16], widths=[8, 16, 24], eta=1)
    assert {seconds for *_, seconds in made_up} == {60.0} and len(made_up) == 6


def test_levels_and_cells_are_part_of_the_grid(workspace, made_up):
    counts = run(workspace, sizes=[16], widths=[8], levels=[1, 2], downsamples=["8x8", "1x4x4"], eta=1).counts
    found = [(entry["levels"], entry["downsample"]) for entry in counts["candidates"]]
    assert found == [(1, [1, 4, 4]), (1, [1, 8, 8]), (2, [1, 4, 4]), (2, [1, 8, 8])]
    assert counts["chosen"]["levels"] == 1


def test_a_killed_selection_goes_on_where_it_was(workspace, made_up, monkeypatch):
    import tasks.select as room

    original, keep = room.Ledger.add, 5

    def add(ledger, key, result):
        if len(ledger.read()) == keep:
            with ledger.path.open("a") as file:
                file.write('{"key": "torn')  # as a kill in the middle of a write would leave it
            raise KeyboardInterrupt
        original(ledger, key, result)

    monkeypatch.setattr(room.Ledger, "add", add)
    given = {"sizes": [16, 32], "widths": [8, 16]}
    with pytest.raises(KeyboardInterrupt):
        run(workspace, **given)
    monkeypatch.setattr(room.Ledger, "add", original)
    before = len(made_up)
    outcome = run(workspace, **given)
    assert outcome.counts["trained"] == len(made_up) - before == 2 * (4 + 2) - keep
    assert run(workspace, **given).counts["trained"] == 0
    # A wider grid trains only what is new: in the first rung two more, in the last what was not there before.
    before = len(made_up)
    run(workspace, **{**given, "sizes": [8, 16, 32], "eta": 1})
    assert {candidate.codebook_size for candidate, *_, seconds in made_up[before:]} == {8, 16, 32}
    assert {seconds for *_, seconds in made_up[before:]} == {60.0}
    assert not any(candidate.width == 16 and candidate.codebook_size != 8 for candidate, *_ in made_up[before:])


def test_the_choice_is_written_only_when_asked_for_and_training_takes_it(workspace, made_up, capsys):
    from tasks.stage import open_stage
    from tasks.train import model_config

    (workspace / FILENAME).write_text("# ours\n[train]\nwidth = 128  # wide\n")
    before = (workspace / FILENAME).read_text()
    run(workspace, sizes=[16, 32], widths=[24])
    assert (workspace / FILENAME).read_text() == before
    counts = run(workspace, sizes=[16, 32], widths=[24], write=True).counts
    show(counts)
    assert "Written to voxbook.toml" in capsys.readouterr().out
    assert (workspace / FILENAME).read_text().startswith(before)
    assert load(workspace).groups["ct"].train.model_dump(mode="json") == point(16, 24)
    with open_stage("train", workspace, ["train.preset=tiny", "cluster=inline"]) as stage:
        config, _ = model_config(stage, "ct", stage.catalog.series(group="ct"))
        other, _ = model_config(stage, "mr", stage.catalog.series(group="mr"))
    assert (config.codebook_size, config.width, config.downsample) == (16, 24, CELL)
    assert (other.codebook_size, other.width) == (PRESETS["tiny"]["codebook_size"], 128)


def test_candidates_that_fail_are_counted_and_left_out(workspace, made_up):
    outcome = run(workspace, sizes=[13, 14, 16], widths=[8])
    assert outcome.reasons == {"NON_FINITE": 2, "NO_MEMORY": 2}
    assert outcome.counts["chosen"]["codebook_size"] == 16
    found = {entry["codebook_size"]: (entry["failed"], entry["psnr_mean"]) for entry in outcome.counts["candidates"]}
    assert found[13] == found[14] == (2, None) and found[16][0] == 0
    for size, code in ((13, "NON_FINITE"), (14, "NO_MEMORY")):
        with pytest.raises(InputError, match=code):
            run(workspace, sizes=[size], widths=[8])


def test_a_candidate_that_kills_its_worker_is_counted_and_left_out(workspace, made_up, monkeypatch):
    from tasks.cluster import Cluster, Done

    original = Cluster.run

    def killing(cluster, function, batches):
        for batch in batches:
            dead = batch[0].candidate.codebook_size == 32
            yield Done(batch, None) if dead else next(original(cluster, function, [batch]))

    monkeypatch.setattr(Cluster, "run", killing)
    outcome = run(workspace, sizes=[16, 32], widths=[8])
    assert outcome.reasons == {"WORKER_KILLED": 2} and outcome.counts["chosen"]["codebook_size"] == 16


def test_fewer_patients_than_folds_are_cut_by_series_and_it_is_said(workspace, made_up, capsys):
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
        ({"levels": [17]}, ConfigError, "levels"),
        ({"downsamples": ["big"]}, ConfigError, "voxels per code"),
        ({"downsamples": ["2x8x8"]}, ConfigError, "BAD_VALUE"),
        ({"fold_count": 1}, ConfigError, "at least 2 folds"),
        ({"seconds_each": 0.0}, ConfigError, "seconds-each"),
        ({"eta": 0}, ConfigError, "--eta"),
    ],
)
def test_what_cannot_be_selected_is_refused_with_a_hint(finished, made_up, given, error, words):
    with pytest.raises(error, match=words) as caught:
        run(finished, **given)
    assert caught.value.hint and not made_up


def test_what_options_take():
    assert (numbers("--sizes", "256, 512"), numbers("--sizes", None)) == ([256, 512], [])
    with pytest.raises(ConfigError, match="BAD_USAGE"):
        numbers("--sizes", "big")
    assert (triple("4x8x8"), triple("8x8")) == ((4, 8, 8), (1, 8, 8))
    for text in ("8", "8x", "1x2x3x4", "-1x8x8"):
        with pytest.raises(ConfigError, match="BAD_USAGE"):
            triple(text)


def test_too_few_seeds_that_came_through_are_said():
    found = {"seeds": 3, "psnr": [27.5], "psnr_sd": None, "codebook_use_least": 0.5, "failed": 4}
    assert "too few" in seed_words(found) and "4 trainings came to nothing" in seed_words(found)

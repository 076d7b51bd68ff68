"""Exports of a folder: what is voxbook's, what is not, and what a kill at any line leaves of both."""

from __future__ import annotations

import os
import signal

import pytest
import store_samples

from archive.commit import FAULT
from archive.erase import erase, finish
from archive.errors import ConfigError, TransientError
from archive.exported import LEDGER, STAGED, Ledger, forget_exports

SERIES = "a" * 32


def put(ledger: Ledger, name: str, text: str, key: str = "k", series: str = SERIES):
    """Publish a file, or a folder of one file where the name has no suffix."""
    target = ledger.root / name
    staged = ledger.staged(target)
    if "." in name:
        staged.write_text(text)
    else:
        staged.mkdir()
        (staged / "one").write_text(text)
    ledger.publish(target, series, key)
    return target


def content(target) -> str:
    return (target / "one").read_text() if target.is_dir() else target.read_text()


@pytest.mark.parametrize("name", ["x.nii.gz", "x", "sub-1/ct/x.nii.gz"])
def test_an_export_is_known_again_and_gives_way_to_a_newer_one(tmp_path, name):
    with Ledger(tmp_path) as ledger:
        assert ledger.state(tmp_path / name, "k") == "absent"
        target = put(ledger, name, "old")
    with Ledger(tmp_path) as ledger:
        assert (ledger.state(target, "k"), ledger.state(target, "other")) == ("done", "ours")
        put(ledger, name, "newer", "other")
        assert (content(target), ledger.state(target, "other")) == ("newer", "done")
        assert not list((tmp_path / STAGED).iterdir())


@pytest.mark.parametrize("name", ["x.nii.gz", "x"])
def test_what_somebody_put_there_or_changed_is_never_touched(tmp_path, name):
    foreign, changed = tmp_path / name, tmp_path / f"y{name[1:]}"
    foreign.write_text("not voxbook's")
    with Ledger(tmp_path) as ledger:
        assert ledger.state(foreign, "k") == "foreign"
        put(ledger, changed.name, "ours")
        (changed / "note" if changed.is_dir() else changed).write_text("changed by hand")
        assert ledger.state(changed, "k") == "foreign"
        for target in (foreign, changed):
            with pytest.raises(ConfigError, match="not as voxbook wrote it"):
                put(ledger, target.name, "again")
    assert foreign.read_text() == "not voxbook's"
    assert (changed / "note" if changed.is_dir() else changed).read_text() == "changed by hand"


def test_a_name_whose_writing_failed_is_not_taken_for_ours(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.staged(tmp_path / "x.nii").write_text("half")  # and no more: the writer failed
    (tmp_path / "x.nii").write_text("the user's own")
    with Ledger(tmp_path) as ledger:
        assert ledger.state(tmp_path / "x.nii", "k") == "foreign"
    assert not (tmp_path / STAGED).exists()


def test_two_runs_in_one_folder_take_turns(tmp_path):
    with Ledger(tmp_path), pytest.raises(TransientError) as caught, Ledger(tmp_path):
        pass
    assert caught.value.code == "LEASED"
    with Ledger(tmp_path):
        pass


def test_a_line_that_a_power_cut_tore_takes_no_other_with_it(tmp_path):
    with Ledger(tmp_path) as ledger:
        first = put(ledger, "a.nii", "1")
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"target": "b.n')
    with Ledger(tmp_path) as ledger:
        second = put(ledger, "c.nii", "2")
    with Ledger(tmp_path) as ledger:
        assert ledger.state(first, "k") == ledger.state(second, "k") == "done"


# A file gives way in one step, so there is nothing between.
@pytest.mark.parametrize(
    ("point", "name"), [("export.announced", "x.nii"), ("export.announced", "x"), ("export.between", "x")]
)
def test_a_kill_leaves_the_old_or_the_new_and_the_next_run_goes_on(tmp_path, point, name):
    with Ledger(tmp_path) as ledger:
        target = put(ledger, name, "old")
    child = os.fork()
    if child == 0:
        os.environ[FAULT] = f"{point}:kill"
        with Ledger(tmp_path) as ledger:
            put(ledger, name, "newer", "other")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with Ledger(tmp_path) as ledger:
        assert (content(target), ledger.state(target, "k")) == ("old", "done")
        put(ledger, name, "newer", "other")
        assert ledger.state(target, "other") == "done"


def test_forget_removes_a_series_and_every_word_of_it(tmp_path):
    folder = tmp_path / "deep" / "cohort"
    folder.mkdir(parents=True)
    with Ledger(folder) as ledger:
        mine, other = put(ledger, "a", "1"), put(ledger, "b.nii", "2", series="b" * 32)
        (mine / "added").write_text("by hand")  # still the patient's
    assert forget_exports(tmp_path, {SERIES}) == 1
    assert not mine.exists() and other.read_text() == "2"
    assert SERIES not in (folder / LEDGER).read_text()
    with Ledger(folder) as ledger:
        assert ledger.state(other, "k") == "done"
    assert forget_exports(tmp_path, {SERIES}) == 0


def test_forget_leaves_no_folder_that_names_the_patient(tmp_path):
    with Ledger(tmp_path) as ledger:
        put(ledger, "sub-1/ct/a.nii", "1")
        put(ledger, "sub-2/ct/b.nii", "2", series="b" * 32)
        put(ledger, "sub-2/mr/c.nii", "3")
    assert forget_exports(tmp_path, {SERIES}) == 2
    assert {path.name for path in tmp_path.rglob("*") if not path.name.startswith(".")} == {"sub-2", "ct", "b.nii"}


def test_erasing_waits_for_an_export_and_is_ended_by_the_next(tmp_path):
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    workspace.exports.mkdir()
    with Ledger(workspace.exports) as ledger:
        mine = put(ledger, "a.nii", "1", series=store_samples.SERIES)
        with pytest.raises(TransientError):
            erase(workspace, series=store_samples.SERIES)
    assert workspace.catalog.series(states=["removed"])  # out of sight at once
    assert (workspace.catalog.runs()[-1].verb, workspace.catalog.runs()[-1].state) == ("forget", "failed")
    finish(workspace)
    assert not mine.exists() and not workspace.catalog.series(states=["removed"])


def test_erasing_a_series_reaches_the_exports_of_its_workspace(tmp_path):
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    folder = workspace.exports / "cohort"
    folder.mkdir(parents=True)
    with Ledger(folder) as ledger:
        mine = put(ledger, "a.nii", "1", series=store_samples.SERIES)
        other = put(ledger, "b.nii", "2", series="b" * 32)
    assert erase(workspace, series=store_samples.SERIES).exports == 1
    assert not mine.exists() and other.exists()

"""`voxbook init`: what it says of an archive, what it expects of this machine, and the voxbook.toml that it writes."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import pytest

from archive.errors import ConfigError
from archive.settings import Settings
from archive.settings_file import parse
from flows.probe import cost_of
from flows.setup import duration, initialise, nothing_found, size, summary
from flows.survey import look_at


@pytest.fixture(scope="module")
def survey(archive_folder):
    return look_at({"source1": archive_folder})


@pytest.fixture(scope="module")
def ct(survey):
    return next(found for found in survey.groups if found.group == "ct")


def test_a_look_counts_series_patients_and_what_is_refused(survey, ct):
    assert [found.group for found in survey.groups] == ["ct", "mr", "pt"]
    assert (ct.series, ct.patients, ct.modality, ct.preset) == (2, 2, "CT", "ct-2d")
    assert ct.voxels == sum(plan.voxels for plan in ct.plans)
    assert survey.refused == {"NOT_DICOM": 1}


def test_one_series_in_two_sources_is_one_series(archive_folder, survey):
    twice = look_at({"one": archive_folder, "two": archive_folder})
    assert sum(found.series for found in twice.groups) == sum(found.series for found in survey.groups)
    assert sum(found.voxels for found in twice.groups) == sum(found.voxels for found in survey.groups)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"depth": 300.0, "spacing_ratio": 1.2, "patients": 9}, 'preset = "ct-3d"'),
        ({"depth": 300.0, "spacing_ratio": 6.0, "patients": 9}, None),
        ({"depth": 20.0, "spacing_ratio": 1.0, "patients": 9}, None),
        ({"depth": None, "spacing_ratio": None, "patients": 9}, None),
        ({"series": 10, "single": 2, "patients": 9}, "2 of 10 series are single slices"),
        ({"series": 10, "single": 10, "patients": 9}, None),
        ({"manufacturers": {"A": 1, "B": 2}, "patients": 9}, "2 makers"),
        ({"patients": 1}, "1 patient:"),
    ],
)
def test_suggestions_say_what_suits_the_group(ct, changed, said):
    plain = {"depth": 10.0, "spacing_ratio": 5.0, "single": 0, "manufacturers": {"A": 2}}
    found = dataclasses.replace(ct, **{**plain, **changed}).suggestions()
    assert (len(found), said in found[0]) == (1, True) if said else found == []


def test_costs_are_measured_on_a_series_and_leave_nothing_behind(ct, tmp_path):
    cost = cost_of(ct, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert 0 < cost.volume_bytes < 4 * ct.voxels and cost.ingest_seconds > 0 and cost.encode_seconds > 0
    assert cost.code_bytes == int(ct.voxels * 11 / 64 / 8)  # ct-2d: 11 bits for 8 x 8 voxels
    assert "million voxels timed here" in cost.basis


def test_a_group_that_cannot_be_timed_says_why(ct, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.probe.MOST_VOXELS", 10)
    cost = cost_of(ct, tmp_path)
    assert (cost.volume_bytes, cost.encode_seconds) == (None, None)
    assert cost.code_bytes > 0 and "too large for a short look" in cost.basis


def test_init_writes_settings_that_are_the_defaults_and_reads_them_back(archive_folder, tmp_path):
    done = initialise(tmp_path / "ws", [archive_folder], timed=False)
    text = (tmp_path / "ws" / "voxbook.toml").read_text()
    settings = parse(tomllib.loads(text))
    assert settings == Settings(sources={"source1": str(archive_folder)})
    assert "#   ct: 2 series of 2 patients" in text and "#   refused: NOT_DICOM 1" in text
    assert '# [groups.ct]   # 2 series\n# preset = "ct-2d"' in text
    assert [file.name for file in (tmp_path / "ws").iterdir()] == ["voxbook.toml"]
    assert "volume_bytes" not in done["groups"][0]


def test_every_line_that_init_comments_out_is_legal_once_its_sign_is_gone(tmp_path):
    initialise(tmp_path / "ws", [])
    table, tried = "", 0
    for line in (tmp_path / "ws" / "voxbook.toml").read_text().splitlines():
        bare = line.removeprefix("# ")
        if re.match(r"\[[\w.]+\]", bare):
            table = bare
        elif line.startswith("# ") and re.match(r"\w+ = ", bare):
            tried += 1
            parse(tomllib.loads(f"{table}\n{bare}"))  # raises where the value is none that it may have
    assert tried > 80


def test_an_empty_folder_is_said_to_be_empty_and_nothing_else(tmp_path):
    (tmp_path / "empty").mkdir()
    done = initialise(tmp_path / "ws", [tmp_path / "empty"], timed=False)
    text = (tmp_path / "ws" / "voxbook.toml").read_text()
    assert "No source was looked at" not in text and "No file was found in the sources below" in text
    assert "reasons" not in nothing_found(done) and "no file" in nothing_found(done)
    assert not any("reasons" in said for said in summary(done)[2])
    initialise(tmp_path / "bare", [])
    assert "No source was looked at" in (tmp_path / "bare" / "voxbook.toml").read_text()


@pytest.mark.parametrize(("files", "reasons", "said"), [(3, {}, "none of its 3 files"), (3, {"NOT_DICOM": 3}, "above")])
def test_a_folder_without_images_says_why(files, reasons, said):
    assert said in nothing_found({"files": files, "reasons": reasons})


def test_what_is_said_counts_the_disk_and_names_what_was_not_timed(archive_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.setup.free_bytes", lambda _: 5)
    monkeypatch.setattr("flows.probe.MOST_VOXELS", 10)
    done = initialise(tmp_path / "ws", [archive_folder])
    columns, rows, said = summary(done)
    assert [len(row) for row in rows] == [len(columns)] * 3
    assert any(text.startswith("DISK:") for text in said) and any("ct: not timed" in text for text in said)
    monkeypatch.undo()
    none = {**done, "groups": [], "suggestions": [], "reasons": {"NOT_DICOM": 1}}
    assert any("No series was found" in text for text in summary(none)[2])


def test_init_refuses_what_is_there_and_what_is_not(archive_folder, tmp_path):
    with pytest.raises(ConfigError, match="SOURCE number 2 does not exist") as error:
        initialise(tmp_path / "ws", [archive_folder, tmp_path / "nowhere"])
    assert "mounted" in error.value.hint and not (tmp_path / "ws").exists()
    initialise(tmp_path / "ws", [])
    before = (tmp_path / "ws" / "voxbook.toml").read_text()
    with pytest.raises(ConfigError, match="OCCUPIED"):
        initialise(tmp_path / "ws", [])
    assert (tmp_path / "ws" / "voxbook.toml").read_text() == before


def test_two_inits_at_once_leave_one_whole_file(tmp_path):
    from flows.setup import _write_new

    _write_new(tmp_path / "voxbook.toml", "first")
    with pytest.raises(ConfigError, match="OCCUPIED"):
        _write_new(tmp_path / "voxbook.toml", "second")
    assert (tmp_path / "voxbook.toml").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("count", "text"), [(None, "?"), (5, "5 B"), (1536, "1.5 KiB"), (20 * 2**30, "20 GiB")])
def test_sizes_for_people(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (0.2, "1 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text

"""Words planted in every corner of a source are nowhere in what is made of it, and forgetting leaves nothing."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import logging
import os
import re
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import QUICK
from numcodecs import zstd
from planted import Words, leaks, leaks_below, plant_archive
from test_flows_cli import SET, voxbook

from archive.erase import erase
from archive.errors import InputError, StoreError, VoxbookError
from archive.keys import Pseudonyms
from archive.scan import scan
from archive.series import read_series
from archive.volume import Volume
from archive.workspace import Workspace, open_volumes

PRIVATE = ("linkage.sqlite",)  # with its -wal and -shm
GOOD = {"ct": 5, "nifti": 2, "picture": 6}
REFUSED = {"BAD_HEADER", "MISSING_SLICE", "NOT_DICOM", "TRUNCATED", "UNKNOWN_FORMAT"}


@dataclass
class Made:
    """A planted source, the workspace made of it, and all that was said on the way."""

    words: Words
    source: Path
    root: Path
    said: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Ingested by the command line, then trained, encoded, verified and reported with everything logged."""
    from flows.encode import encode
    from flows.report import report
    from flows.train import train
    from flows.verify import verify

    base = tmp_path_factory.mktemp("privacy")
    source, root = base / "in", base / "ws"
    source.mkdir()
    words = plant_archive(source)
    done = voxbook("ingest", source, "-w", root, "--json", *SET)
    said = {"ingest": done.stdout + done.stderr}
    assert done.returncode == 4, done.stderr
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    levels = {name: logging.getLogger(name).level for name in ("", "voxbook", "archive")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.DEBUG)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            outcomes = [
                train.fn(workspace=str(root), settings=QUICK),
                encode.fn(workspace=str(root), settings=QUICK),
                verify.fn(workspace=str(root), settings=[*QUICK, "verify.read_data=true"]),
                report.fn(workspace=str(root), settings=QUICK),
            ]
    finally:
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    said["stages"] = log.getvalue()
    said["outcomes"] = "\n".join(json.dumps(outcome.as_dict()) + outcome.sentence for outcome in outcomes)
    for words_of_command in (("inspect", "-w", root, "--json"), ("inspect", "-w", root)):
        shown = voxbook(*words_of_command)
        assert shown.returncode == 0, shown.stderr
        said[" ".join(map(str, words_of_command))] = (shown.stdout + shown.stderr).replace(str(base), "")
    return Made(words, source, root, said)


@pytest.fixture
def home(made, tmp_path) -> Workspace:
    """A copy of the workspace, to forget in."""
    return Workspace.open(shutil.copytree(made.root, tmp_path / "ws"))


def test_the_words_were_planted_and_the_search_finds_every_one(made):
    assert len(made.words.planted) >= 120
    found = set().union(*leaks_below(made.words.pattern, made.source).values())
    missed = {word: where for word, where in made.words.planted.items() if word.lower().encode() not in found}
    # What lies behind a cut was never written; all else is found, packed, compressed or in UTF-16.
    assert {where.split()[0] for where in missed.values()} <= {"cut", "head", "early", "mr", "icon", "jpeg"}
    assert not [where for where in missed.values() if where.startswith(("ct ", "NIfTI", "PNG", "TIFF", "EXIF", "zip"))]


def test_what_is_good_came_in_and_what_is_not_was_refused(made):
    """Or the search would look at nothing."""
    home = Workspace.open(made.root)
    groups = [row.group for row in home.catalog.series()]
    assert {group: groups.count(group) for group in set(groups)} == GOOD
    assert {row.code for row in home.catalog.quarantine()} == REFUSED
    assert len(open_volumes(home)) == sum(GOOD.values())
    assert leaks_below(made.words.pattern, made.root).keys() == {"linkage.sqlite"}, "the linkage, and it alone, knows"


def test_no_word_is_in_any_byte_of_the_workspace(made):
    assert leaks_below(made.words.pattern, made.root, PRIVATE) == {}


def test_no_word_was_said(made):
    for where, text in made.said.items():
        assert len(text) > 40, where
        assert leaks(made.words.pattern, text.encode()) == set(), where


def test_no_age_and_no_clock_is_kept(made):
    for name, stored in open_volumes(made.root).items():
        attributes = json.dumps(stored.volume().attributes() if hasattr(stored, "volume") else stored.attributes)
        assert "age" not in attributes.lower().replace("image", "").replace("voltage", "").replace("average", ""), name
        # Days since the year 1 as seconds: a clock that says when somebody lay in a scanner.
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", attributes)]
        assert not [number for number in numbers if 5.9e10 < number < 7e10], name


def test_identifiers_that_are_paths_lead_nowhere(made):
    assert list(Path("/tmp").glob("[Qq]zv*")) == []
    beside = {path.name for path in made.root.parent.iterdir()}
    assert beside == {"in", "ws"}
    names = {path.name for path in made.root.rglob("*")}
    assert not any(".." in name or len(name) > 80 for name in names)


def test_errors_say_nothing_of_the_source(made, tmp_path):
    copied = Path(shutil.copytree(made.source, tmp_path / "in"))
    result = scan(copied)
    told = [
        repr(result),
        str(result),
        *map(repr, result.plans),
        *map(repr, result.findings),
        *map(repr, result.entries),
    ]
    for path in copied.rglob("*"):
        if path.is_file():
            path.unlink()
    for plan in result.plans:
        with pytest.raises(InputError) as caught:
            read_series(plan)
        told += [str(caught.value), repr(caught.value), repr(caught.value.context), caught.value.hint]
    with pytest.raises(VoxbookError) as caught:
        scan(copied / made.words.text("a source that is not there"))
    told += [str(caught.value), repr(caught.value.context), str(caught.value.__cause__)]
    assert leaks(made.words.pattern, "\n".join(told).encode()) == set()


def test_the_source_is_as_it_was(made):
    assert sum(1 for path in made.source.rglob("*") if path.is_file()) > 40
    assert not any(path.name.startswith((".", "__")) for path in made.source.rglob("*"))


# -- forgetting


def _pseudonym(made: Made, name: str) -> str:
    return Pseudonyms.load().patient(*made.words.patients[name])


@pytest.mark.parametrize("name, stored, refused", [("ct", 1, 0), ("zipped", 1, 0), ("paths", 1, 0)])
def test_a_forgotten_patient_is_nowhere(made, home, name, stored, refused):
    who = _pseudonym(made, name)
    series = [row.series for row in home.catalog.series() if row.patient == who]
    assert leaks_below(made.words.of(name), home.root)
    erased = erase(home, patient=who[:20])
    assert (erased.series, erased.refused) == (stored, refused)
    pattern = re.compile("|".join([who, *series]).encode())
    assert leaks_below(made.words.of(name), home.root) == {}
    assert leaks_below(pattern, home.root) == {}
    others = Workspace.open(home.root)
    assert len(others.catalog.series()) == sum(GOOD.values()) - stored
    assert len(open_volumes(others)) == sum(GOOD.values()) - stored
    for row in others.catalog.series():
        assert isinstance(others.linkage.reveal(row.series), dict)
    with pytest.raises(StoreError):
        erase(others, patient=who)


@pytest.mark.parametrize("name, code", [("mr", "MISSING_SLICE"), ("cut", "TRUNCATED"), ("head", "TRUNCATED")])
def test_so_is_one_of_whom_everything_was_refused(made, home, name, code):
    who, before = _pseudonym(made, name), len(home.catalog.quarantine())
    assert not [row for row in home.catalog.series() if row.patient == who]
    assert leaks_below(made.words.of(name), home.root).keys() == {"linkage.sqlite"}
    gone = {row.key for row in home.catalog.quarantine()}
    erased = erase(home, patient=who)
    assert (erased.series, erased.refused) == (0, 1)
    left = home.catalog.quarantine()
    assert len(left) == before - 1
    gone -= {row.key for row in left}
    home.close()
    assert leaks_below(made.words.of(name), home.root) == {}
    assert leaks_below(re.compile("|".join([who, *gone]).encode()), home.root) == {}


def test_a_refused_file_of_nobody_known_is_forgotten_by_its_key(made, home):
    (alias,) = [source.alias for source in home.catalog.sources()]
    path = next(path for path in home.linkage.entries(alias) if path.startswith("early/"))
    key = home.pseudonyms.file(alias, path)
    assert {row.code for row in home.catalog.quarantine() if row.key == key} == {"TRUNCATED"}
    assert erase(home, series=key[:16]).refused == 1
    assert leaks_below(made.words.of("early"), home.root) == {}


def test_one_series_is_forgotten_by_its_pseudonym_and_a_refused_one_by_its_key(made, home):
    stored = home.catalog.series(group="ct")[0]
    refused = next(row for row in home.catalog.quarantine() if row.code == "MISSING_SLICE")
    assert erase(home, series=stored.series).series == 1
    assert erase(home, series=refused.key).refused == 1
    home.close()
    assert leaks_below(re.compile(f"{stored.series}|{refused.key}".encode()), home.root) == {}
    assert leaks_below(made.words.of("mr"), home.root) == {}


def test_what_was_forgotten_comes_back_only_with_its_source(made, home, tmp_path):
    from flows.ingest import ingest

    (alias,) = [source.alias for source in home.catalog.sources()]
    source = Path(shutil.copytree(made.source, tmp_path / "in", copy_function=shutil.copy2))
    home.linkage.register(alias, str(source))
    who = _pseudonym(made, "zipped")
    erase(home, patient=who)
    packed = max(source.rglob("*.zip"), key=lambda path: path.stat().st_size)
    packed.unlink()
    outcome = ingest.fn(workspace=str(home.root), sources=[alias], settings=QUICK)
    assert outcome.counts["ingested"] == 0
    assert not [row for row in Workspace.open(home.root).catalog.series() if row.patient == who]
    assert leaks_below(made.words.of("zipped"), home.root) == {}


# -- the search itself


@pytest.mark.parametrize(
    "hide",
    [
        lambda word: b"x" * 100 + word + b"y",
        lambda word: word.upper(),
        lambda word: word.decode().encode("utf-16-le"),
        lambda word: word.decode().encode("utf-16-be"),
        lambda word: base64.b64encode(b"ab" + word + b"c"),
        lambda word: word.hex().encode(),
        lambda word: b"head" + gzip.compress(b"z" * 99 + word) + b"tail",
        lambda word: b"shard" + bytes(zstd.compress(b"z" * 99 + word)) + b"\x12\x34\x56\x78" * 9,
        lambda word: b"\0" + bytes(zstd.compress(gzip.compress(base64.b64encode(word * 2)))) + b"end",
    ],
)
def test_a_hidden_word_is_found(hide):
    words = Words()
    word = words.text("here").encode()
    assert leaks(words.pattern, hide(word)) == {word.lower()}


def test_a_day_is_found_as_dicom_and_people_write_it_and_not_inside_other_numbers():
    words = Words()
    day = words.day("here").encode()
    for text in (b"born " + day, b"<" + day + b">", b"on " + b"-".join((day[:4], day[4:6], day[6:])) + b"."):
        assert leaks(words.pattern, text) == {day}
    for chance in (b"0." + day + b"17", b"59" + day, day + b"c0ffee"):
        assert leaks(words.pattern, chance) == set()


def test_a_word_in_a_deleted_row_is_found(tmp_path):
    words = Words()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.execute("PRAGMA secure_delete=OFF")
        database.execute("CREATE TABLE t (x TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (words.text("row") * 9,))
        database.commit()
        database.execute("DELETE FROM t")
        database.commit()
    assert leaks_below(words.pattern, tmp_path).keys() == {"a.sqlite"}


# -- on a server


@pytest.mark.server
def test_a_prefect_server_learns_nothing(made, prefect_api, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    from flows.ingest import ingest
    from flows.recording import run_stage

    root = tmp_path / "ws"
    alias = Workspace.open(root, create=True).register_source(made.source)
    outcome = run_stage(ingest, lambda text: None, workspace=str(root), sources=[alias], settings=QUICK)
    assert outcome.counts["ingested"] == sum(GOOD.values())
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.parameters["workspace"] == str(root)]
        said = [run.model_dump_json() for run in runs]
        said += [
            json.dumps(client.request("POST", f"/{kind}/filter", json={}).json()) for kind in ("artifacts", "logs")
        ]
    assert runs and leaks(made.words.pattern, "\n".join(said).encode()) == set()
    url = get_current_settings().server.database.connection_url.get_secret_value()
    database = Path(url.split("///", 1)[1])
    assert database.stat().st_size > 0 and os.fspath(root).encode() in database.read_bytes() + _log_of(database)
    # Bytes of a page hold values without borders: part of a time and the year after it make a date now and then. So
    # days count where rows are text; all else, in every byte.
    found = set().union(set(), *leaks_below(made.words.pattern, database.parent).values())
    assert {word for word in found if not word.isdigit()} == set()
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        rows = "\n".join(opened.iterdump())
    assert len(rows) > 10_000 and leaks(made.words.pattern, rows.encode()) == set()
    assert leaks_below(made.words.pattern, Path(get_current_settings().home), ("memo_store",)) == {}


def _log_of(database: Path) -> bytes:
    log = database.with_name(database.name + "-wal")
    return log.read_bytes() if log.exists() else b""


def test_a_volume_has_no_place_for_free_text():
    """Whoever adds a field of free text to Volume meets this first."""
    from archive.acquisition import ALLOWED

    free = [
        key for key, allowed in ALLOWED.items() if not allowed.terms and (allowed.low, allowed.high) == (None, None)
    ]
    assert free == []
    assert {"name", "description", "comment", "label", "date", "age"} & set(Volume.__dataclass_fields__) == set()

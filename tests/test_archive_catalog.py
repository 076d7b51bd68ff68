"""The catalog: durable settings of SQLite, one writer at a time, versions, states, races."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import postgres
import pytest
import store_samples
from sqlalchemy import insert, update

from archive import catalog_engine, catalog_tables, superseded
from archive.catalog import Catalog, ModelRow, QuarantineRow
from archive.catalog_conditions import Wanted
from archive.catalog_engine import open_database, reading, writing
from archive.catalog_tables import encodings, meta
from archive.errors import ConfigError, MismatchError, StoreError, TransientError
from archive.mounts import on_network
from archive.workspace import Workspace

SERIES, MODEL, SETTINGS = store_samples.SERIES, store_samples.MODEL, store_samples.SETTINGS
HERE = Path(__file__).resolve().parent


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    return postgres.create(request.getfixturevalue("postgres"))


@pytest.fixture
def workspace(tmp_path, database):
    found = store_samples.encoded_workspace(tmp_path / "ws", database=database)
    yield found
    found.close()


@pytest.fixture
def catalog(database):
    found = Catalog(database)
    yield found
    found.close()


@pytest.fixture
def sqlite(tmp_path):
    found = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    yield found
    found.close()


def run_together(script: str, arguments: list[list[str]]) -> list[str]:
    """Run a script in several processes at once; returns what each printed."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    running = [
        subprocess.Popen([sys.executable, "-c", script, *words], env=environment, stdout=subprocess.PIPE, text=True)
        for words in arguments
    ]
    printed = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return printed


# -- the database


def test_sqlite_keeps_what_it_acknowledges(sqlite, tmp_path):
    with reading(sqlite.engine) as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    sqlite.start_run("test")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("catalog.sqlite*")} == {0o600}


def test_a_writing_transaction_holds_the_lock_from_its_beginning(sqlite, tmp_path):
    other = sqlite3.connect(tmp_path / "catalog.sqlite", timeout=0, isolation_level=None)
    with writing(sqlite.engine), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")  # although nothing has been written yet
    other.execute("BEGIN IMMEDIATE")
    with reading(sqlite.engine):
        pass  # readers do not wait for a writer
    other.execute("ROLLBACK")
    with reading(sqlite.engine):
        other.execute("BEGIN IMMEDIATE")  # nor a writer for readers


def test_a_failing_transaction_leaves_nothing(catalog):
    with pytest.raises(ZeroDivisionError), writing(catalog.engine) as connection:
        connection.execute(insert(meta).values(key="half", value="done"))
        raise ZeroDivisionError
    with reading(catalog.engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM meta WHERE key = 'half'").scalar_one() == 0


def test_a_locked_database_is_worth_another_try(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_engine, "BUSY_SECONDS", 0.05)
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError):
        catalog.start_run("test")


COUNT = """
import sys
from sqlalchemy import select, update
from archive.catalog import Catalog
from archive.catalog_engine import writing
from archive.catalog_tables import meta
catalog = Catalog(sys.argv[1])
for _ in range(100):
    with writing(catalog.engine) as connection:
        value = int(connection.execute(select(meta.c.value).where(meta.c.key == "count")).scalar_one())
        connection.execute(update(meta).where(meta.c.key == "count").values(value=str(value + 1)))
"""


def test_no_update_of_two_processes_is_lost(catalog, tmp_path):
    with writing(catalog.engine) as connection:
        connection.execute(insert(meta).values(key="count", value="0"))
    run_together(COUNT, [[str(catalog.engine.url)]] * 2)
    with reading(catalog.engine) as connection:
        assert connection.exec_driver_sql("SELECT value FROM meta WHERE key = 'count'").scalar_one() == "200"


OPEN = """
import sys
from archive.catalog import Catalog
Catalog(sys.argv[1]).bind_key(sys.argv[2])
"""


def test_processes_that_make_the_catalog_at_once_make_one(database):
    run_together(OPEN, [[database, "key"]] * 3)
    Catalog(database).bind_key("key")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"this is no database at all, but it is long enough to be read as one" * 20, "DAMAGED"), (None, "SCHEMA")],
)
def test_a_foreign_database_is_refused(tmp_path, content, code):
    path = tmp_path / "catalog.sqlite"
    if content is None:
        catalog = Catalog(f"sqlite:///{path}")
        with writing(catalog.engine) as connection:
            connection.execute(update(meta).where(meta.c.key == "schema").values(value="999"))
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        Catalog(f"sqlite:///{path}")
    assert caught.value.code == code


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_other_databases_are_a_configuration_error(url):
    with pytest.raises(ConfigError) as caught:
        open_database(url)
    assert caught.value.code == "BAD_VALUE"


@pytest.mark.parametrize(
    ("path", "network"),
    [("/srv/ws", True), ("/srv", True), ("/srv2", False), ("/srv/local/ws", False), ("/", False), ("/smb/x", True)],
)
def test_network_file_systems_are_seen(path, network):
    mounts = [("/", "ext4"), ("/srv", "nfs4"), ("/srv/local", "xfs"), ("/smb", "CIFS")]
    assert on_network(Path(path), mounts) is network


def test_sqlite_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_engine, "on_network", lambda path: True)
    with pytest.raises(ConfigError) as caught:
        Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    assert caught.value.code == "NETWORK_FS"
    assert not list(tmp_path.iterdir())


def test_another_key_is_a_mismatch(catalog):
    catalog.bind_key("one")
    catalog.bind_key("one")
    with pytest.raises(MismatchError) as caught:
        catalog.bind_key("two")
    assert caught.value.code == "WRONG_KEY"


# -- volumes


def test_a_volume_comes_in_once(workspace):
    catalog = workspace.catalog
    row = catalog.one("aaaa")
    assert (row.series, row.state, row.shape, row.spacing_mm, row.channels) == (
        SERIES, "encoded", (5, 24, 20), (2.5, 0.7, 0.7), 1
    )  # fmt: skip
    again = store_samples.volume_commit(workspace.volumes, store_samples.volume(), fingerprint="touched")
    outcome = catalog.commit_volumes([again])[0]
    assert (outcome.status, outcome.version) == ("unchanged", row.volume_version)
    assert catalog.one(SERIES).state == "encoded"
    assert catalog.known_fingerprints("src") == {SERIES: "touched"}
    unwritten = dataclasses.replace(again, committed=None, fingerprint="again")
    assert catalog.commit_volumes([unwritten])[0].status == "unchanged"
    assert catalog.known_fingerprints("src") == {SERIES: "again"}
    assert catalog.known_fingerprints("other") == {}
    assert catalog.known_digests([SERIES, "unknown"]) == {SERIES: again.content_digest}


def test_new_content_makes_codes_stale_and_expires_their_certificate(workspace):
    catalog = workspace.catalog
    before = catalog.one(SERIES)
    second = store_samples.volume_commit(workspace.volumes, store_samples.volume(seed=1), fingerprint="f2")
    assert [outcome.status for outcome in catalog.commit_volumes([second])] == ["ingested"]
    assert [outcome.status for outcome in catalog.commit_volumes([second])] == ["ingested"]  # the same one, repeated
    after = catalog.one(SERIES)
    assert (after.state, after.codes_version, after.first_seen) == ("stale", before.codes_version, before.first_seen)
    assert after.volume_version == second.committed.version
    assert [row.expired for row in catalog.certificates()] == [True]
    assert catalog.version(after.volume_version).manifest == second.committed.manifest
    assert [row.series for row in catalog.to_encode(Wanted("ct", MODEL, SETTINGS))] == [SERIES]


def test_two_sources_of_one_series_are_both_known(workspace):
    catalog = workspace.catalog
    copy = store_samples.volume_commit(workspace.volumes, store_samples.volume(), source="copy", fingerprint="c1")
    catalog.commit_volumes([copy])
    assert catalog.known_fingerprints("src") == {SERIES: "f1"}
    assert catalog.known_fingerprints("copy") == {SERIES: "c1"}


def test_a_damaged_volume_is_ingested_anew_from_an_unchanged_source(workspace):
    catalog = workspace.catalog
    catalog.mark_checked({catalog.one(SERIES).volume_version: "DAMAGED"})
    assert catalog.known_fingerprints("src") == {}
    assert catalog.known_digests() == {}
    again = store_samples.volume_commit(workspace.volumes, store_samples.volume())
    assert catalog.commit_volumes([again])[0].version == again.committed.version
    assert catalog.known_fingerprints("src") == {SERIES: "f1"}


def test_a_volume_said_to_be_there_that_is_not_is_an_error(catalog, tmp_path):
    commit = store_samples.volume_commit(tmp_path / "v", store_samples.volume())
    with pytest.raises(StoreError):
        catalog.commit_volumes([dataclasses.replace(commit, committed=None)])
    assert catalog.series() == []


@pytest.mark.parametrize(
    ("name", "found"), [("ab", "ab" * 16), ("ab" * 16, "ab" * 16), ("a", None), ("", None), ("c", None), ("%", None)]
)
def test_series_are_found_by_unique_beginnings(catalog, tmp_path, name, found):
    commit = store_samples.volume_commit(tmp_path / "v", store_samples.volume())
    for series in ("ab" * 16, "ac" * 16):
        committed = dataclasses.replace(commit.committed, series=series, version=series[:16])
        catalog.commit_volumes([dataclasses.replace(commit, series=series, committed=committed)])
    if found is None:
        with pytest.raises(StoreError) as caught:
            catalog.one(name)
        assert caught.value.code == "NOT_FOUND"
    else:
        assert catalog.one(name).series == found
        assert [row.series for row in catalog.series([name])] == [found]
    assert len(catalog.series(group="ct", states=["ingested"])) == 2
    assert catalog.series(group="mr") == catalog.series(states=["stale"]) == []


# -- models and codes


def test_the_first_model_of_a_group_is_current_and_promotion_moves_that(workspace):
    catalog = workspace.catalog
    second = catalog.add_model(ModelRow("2" * 64, "ct", "tiny", summary={"psnr": float("nan")}))
    assert (second.current, second.summary) == (False, {"psnr": None})
    assert catalog.add_model(ModelRow("3" * 64, "mr", "tiny")).current
    assert catalog.add_model(ModelRow(MODEL, "ct", "other")).preset == "tiny"  # the same id again changes nothing
    promoted = catalog.promote("2" * 64)
    assert (promoted.model, promoted.current) == ("2" * 64, True)
    assert catalog.current_model("ct").model == "2" * 64
    assert catalog.current_model("mr").model == "3" * 64
    assert catalog.current_model("pt") is None
    assert [row.current for row in catalog.models("ct")] == [False, True]
    assert catalog.one(SERIES).state == "stale"
    assert catalog.certificates()[0].expired
    catalog.promote(MODEL)
    assert catalog.one(SERIES).state == "encoded"
    assert not catalog.certificates()[0].expired
    assert catalog.model("22").model == "2" * 64
    with pytest.raises(StoreError):
        catalog.promote("4" * 64)


def test_promoting_back_finds_the_codes_that_are_there(workspace):
    catalog = workspace.catalog
    row = catalog.one(SERIES)
    catalog.add_model(ModelRow("2" * 64, "ct", "tiny"))
    catalog.promote("2" * 64)
    newer = store_samples.codes(store_samples.volume(), row.volume_version, "2" * 64)
    outcome = catalog.commit_encodings([store_samples.encoding_commit(workspace.codes, newer, passed=False)])[0]
    assert (outcome.status, catalog.one(SERIES).reason) == ("quality_failed", "BELOW_MIN_PSNR")
    catalog.promote(MODEL)
    assert (catalog.one(SERIES).state, catalog.one(SERIES).codes_version) == ("encoded", row.codes_version)
    assert catalog.adopt_encodings("ct", "2" * 64, SETTINGS) == [SERIES]
    assert (catalog.one(SERIES).state, catalog.one(SERIES).codes_version) == ("quality_failed", outcome.version)
    assert catalog.adopt_encodings("ct", "2" * 64, SETTINGS) == []
    assert catalog.adopt_encodings("ct", "2" * 64, "other settings") == []


def test_the_second_encoding_of_the_same_is_lost_and_a_repeated_one_is_not(workspace):
    catalog = workspace.catalog
    row = catalog.one(SERIES)
    codes = store_samples.codes(store_samples.volume(), row.volume_version)
    late = store_samples.encoding_commit(workspace.codes, codes)
    outcome = catalog.commit_encodings([late])[0]
    assert (outcome.status, outcome.version) == ("lost", row.codes_version)
    other = store_samples.encoding_commit(workspace.codes, codes, settings="t" * 16)
    for _ in range(2):
        assert catalog.commit_encodings([other])[0].version == other.committed.version
    assert len(catalog.encodings(SERIES)) == 2
    assert [item.version for item in catalog.encodings(current_only=True)] == [other.committed.version]
    certificate = catalog.certificates()[0]
    assert certificate.data == {"psnr": 40.0, "max_error": None}  # JSON has no infinity


def test_codes_of_a_replaced_volume_or_a_forgotten_series_are_lost(workspace):
    catalog = workspace.catalog
    item = store_samples.volume()
    late = store_samples.encoding_commit(workspace.codes, store_samples.codes(item, "an older version"))
    assert catalog.commit_encodings([late])[0].status == "lost"
    catalog.remove_series(SERIES)
    assert catalog.commit_encodings([late])[0].version == ""
    assert catalog.series() == catalog.encodings() == catalog.certificates() == []
    assert catalog.referenced("volume") == catalog.referenced("codes") == set()


def test_commits_of_every_kind_in_one_call_come_out_as_one_by_one(workspace):
    """Ordinary ones are inserted together; a repeated, a lost and a doubled one beside them change nothing of that."""
    catalog = workspace.catalog
    item = store_samples.volume((4, 8, 8))
    names = [f"{number:032x}" for number in range(3)]
    catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, item, name) for name in names])
    version = {row.series: row.volume_version for row in catalog.series()}

    def offer(name: str, **options):
        codes = store_samples.codes(item, version[name])
        return store_samples.encoding_commit(workspace.codes, codes, name, **options)

    late = store_samples.encoding_commit(workspace.codes, store_samples.codes(item, "older"), names[2])
    done = catalog.commit_encodings([offer(names[0]), offer(SERIES), late, offer(names[1], passed=False)])
    assert [outcome.status for outcome in done] == ["encoded", "lost", "lost", "quality_failed"]
    rows = {row.series: row for row in catalog.series()}
    assert [rows[name].state for name in names] == ["encoded", "quality_failed", "ingested"]
    assert (rows[names[1]].reason, rows[names[0]].codes_version) == ("BELOW_MIN_PSNR", done[0].version)
    assert {row.version for row in catalog.certificates()} == {
        rows[name].codes_version for name in (*names[:2], SERIES)
    }
    twice = [offer(names[2]), offer(names[2])]
    assert [outcome.status for outcome in catalog.commit_encodings(twice)] == ["encoded", "lost"]
    beside = offer(names[0], settings="t" * 16)
    assert catalog.commit_encodings([beside], beside=True)[0].version == beside.committed.version
    assert catalog.one(names[0]).codes_version == done[0].version


def test_damaged_codes_are_made_again(workspace):
    catalog = workspace.catalog
    row = catalog.one(SERIES)
    assert catalog.to_encode(Wanted("ct", MODEL, SETTINGS)) == []
    catalog.mark_checked({row.codes_version: "MISSING"})
    assert [item.series for item in catalog.to_encode(Wanted("ct", MODEL, SETTINGS))] == [SERIES]
    assert [item.damage for item in catalog.codes_stored()] == ["MISSING"]
    codes = store_samples.codes(store_samples.volume(), row.volume_version)
    outcome = catalog.commit_encodings([store_samples.encoding_commit(workspace.codes, codes)])[0]
    assert outcome.status == "encoded"
    assert [(item.version, item.damage) for item in catalog.encodings()] == [(outcome.version, "")]


def test_the_database_itself_keeps_encodings_unique(workspace):
    from sqlalchemy.exc import IntegrityError

    known = dataclasses.asdict(workspace.catalog.encodings()[0])
    with pytest.raises(IntegrityError), writing(workspace.catalog.engine) as connection:
        connection.execute(insert(encodings).values(**{**known, "version": "another"}))


RACE = """
import sys
from pathlib import Path
import store_samples
from archive.workspace import Workspace
workspace = Workspace.open(Path(sys.argv[1]))
sys.stdout.write("ready\\n")
for round_ in range(int(sys.argv[2])):
    series = f"{round_:032x}"
    row = workspace.catalog.one(series)
    codes = store_samples.codes(store_samples.volume((4, 8, 8)), row.volume_version, seed=int(sys.argv[3]))
    commit = store_samples.encoding_commit(workspace.codes, codes, series)
    outcome = workspace.catalog.commit_encodings([commit])[0]
    sys.stdout.write(f"{series} {outcome.status} {outcome.version} {commit.committed.version}\\n")
"""


def test_of_two_processes_that_encode_one_series_exactly_one_wins(tmp_path):
    rounds = 12
    workspace = Workspace.open(tmp_path / "ws", create=True)
    commits = [
        store_samples.volume_commit(workspace.volumes, store_samples.volume((4, 8, 8)), f"{round_:032x}")
        for round_ in range(rounds)
    ]
    workspace.catalog.commit_volumes(commits)
    printed = run_together(RACE, [[str(tmp_path / "ws"), str(rounds), str(seed)] for seed in (0, 1)])
    lines = [line.split() for text in printed for line in text.splitlines()[1:]]
    for row in workspace.catalog.series():
        mine = [line for line in lines if line[0] == row.series]
        assert sorted(line[1] for line in mine) == ["encoded", "lost"]
        winner = next(line[3] for line in mine if line[1] == "encoded")
        assert {line[2] for line in mine} == {winner} == {row.codes_version}
        assert len(workspace.catalog.encodings(row.series)) == 1


# -- quarantine, runs, checking


def test_quarantine_follows_its_source_and_remembers_when_it_began(catalog):
    rows = [QuarantineRow("", f"k{number}", "file", "NOT_DICOM", 1, numbers={"x": float(number)}) for number in (1, 2)]
    catalog.set_quarantine("one", rows, "run1")
    catalog.set_quarantine("two", rows[:1], "run1")
    first = {row.key: row.first_seen for row in catalog.quarantine("one")}
    changed = dataclasses.replace(rows[1], code="TRUNCATED", numbers={"y": float("inf")})
    catalog.set_quarantine("one", [changed, QuarantineRow("", "k3", "series", "MISSING_SLICE", 9)], "run2")
    found = {row.key: row for row in catalog.quarantine("one")}
    assert sorted(found) == ["k2", "k3"]
    assert (found["k2"].first_seen, found["k2"].code, found["k2"].run) == (first["k2"], "TRUNCATED", "run2")
    assert (found["k2"].numbers, found["k2"].source) == ({"y": None}, "one")
    assert found["k2"].last_seen > first["k2"]
    assert [row.key for row in catalog.quarantine("two")] == ["k1"]
    assert len(catalog.quarantine()) == 3


def test_runs_and_sources_are_listed(catalog):
    catalog.register_source("a", "folder")
    catalog.register_source("a", "file")
    assert [(row.alias, row.kind) for row in catalog.sources()] == [("a", "file")]
    run = catalog.start_run("ingest")
    assert [(row.run, row.state, row.ended_at) for row in catalog.runs()] == [(run, "running", None)]
    catalog.end_run(run, "completed", {"series": 3, "rate": float("nan")})
    ended = catalog.runs()[0]
    assert (ended.state, ended.counts, ended.pid) == ("completed", {"series": 3, "rate": None}, os.getpid())
    assert ended.ended_at >= ended.started_at


def test_reasons_and_sightings_touch_only_the_series_named(workspace):
    catalog = workspace.catalog
    before = catalog.one(SERIES)
    catalog.set_reason([SERIES, "unknown"], "NO_MODEL")
    catalog.seen([SERIES])
    after = catalog.one(SERIES)
    assert (after.reason, after.state) == ("NO_MODEL", before.state)
    assert after.last_seen > before.last_seen
    assert len(catalog.series()) == 1


def test_thousands_of_series_fit_one_call(catalog):
    names = [f"{number:032x}" for number in range(40_000)]
    catalog.seen(names)
    assert superseded.drop(catalog, names, 0, 0.0) == 0
    assert catalog.known_digests(names) == {}


def test_postgresql_understands_every_table_and_upsert():
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in catalog_tables.tables.sorted_tables:
        assert CreateTable(table).compile(dialect=postgresql.dialect())
        columns = tuple(column.key for column in table.columns)
        primary = table.primary_key.columns.values()[0].name
        text = str(catalog_engine.upsert_of("postgresql", table, columns).compile(dialect=postgresql.dialect()))
        assert f"ON CONFLICT ({primary}" in text


def test_importing_the_catalog_is_light():
    heavy = {"zarr", "torch", "numpy", "pydicom", "nibabel"}
    code = f"import sys, archive.workspace, archive.collect; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert done.stdout.strip() == "[]"

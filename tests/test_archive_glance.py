"""The quick look into a catalog answers as the catalog does, and leaves to it whatever only it can do."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from archive.catalog import Catalog
from archive.errors import MismatchError, StoreError
from archive.glance import Glance, glance
from archive.workspace import Workspace


@pytest.fixture
def both(workspace):
    home = Workspace.open(workspace)
    catalog = home.catalog
    first = catalog.series()[0]
    catalog._set_series([first.series], state="removed")
    yield glance(home), catalog
    home.close()


def test_it_answers_as_the_catalog_does(both):
    quick, catalog = both
    assert isinstance(quick, Glance) and isinstance(catalog, Catalog)
    for question in ("runs", "series", "models", "quarantine", "certificates", "encodings"):
        answer = getattr(catalog, question)()
        assert getattr(quick, question)() == answer and answer, question
    assert quick.encodings(current_only=True) == catalog.encodings(current_only=True)
    row = catalog.series()[-1]
    assert quick.one(row.series[:8]) == row == quick.one(row.series)
    assert quick.certificates(row.series) == catalog.certificates(row.series) != []
    assert quick.encodings(row.series) == catalog.encodings(row.series) != []
    model = catalog.models()[0]
    assert quick.model(model.model[:8]) == model


@pytest.mark.parametrize("name", ["", "zz", "%", "_", "/", "'"])
def test_what_is_not_there_is_refused_in_the_same_words(both, name):
    for question in ("one", "model"):
        told = []
        for one in both:
            with pytest.raises(StoreError) as caught:
                getattr(one, question)(name)
            told.append((caught.value.code, str(caught.value), caught.value.hint))
        assert told[0] == told[1]


def test_several_that_begin_alike_are_refused_in_the_same_words(both):
    quick, catalog = both
    with closing(sqlite3.connect(quick._path)) as connection, connection:
        names = [name for (name,) in connection.execute("SELECT series FROM series ORDER BY series LIMIT 2")]
        connection.execute("UPDATE series SET series = ? WHERE series = ?", (names[0] + "0", names[1]))
    assert quick.one(names[0]) == catalog.one(names[0])  # the whole name of one is the beginning of the other's
    with pytest.raises(StoreError, match="several series begin like that"):
        quick.one(names[0][:9])


def test_another_key_is_refused_as_ever(workspace, monkeypatch):
    monkeypatch.setenv("VOXBOOK_KEY", "another key that is long enough")
    with pytest.raises(MismatchError) as caught:
        glance(Workspace.open(workspace))
    assert caught.value.code == "WRONG_KEY"


def test_a_damaged_file_is_refused_as_ever(workspace):
    path = workspace / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(StoreError) as caught:
        glance(Workspace.open(workspace))
    assert caught.value.code == "DAMAGED"
    page = int.from_bytes(whole[16:18], "big")
    path.write_bytes(whole[: 4 * page] + os.urandom(len(whole) - 4 * page))
    with pytest.raises(StoreError) as caught:
        for question in ("runs", "series", "models", "quarantine", "encodings"):
            getattr(glance(Workspace.open(workspace)), question)()
    assert caught.value.code == "DAMAGED"


def test_an_empty_workspace_gets_its_catalog(tmp_path):
    (tmp_path / "voxbook.toml").write_text("")
    assert glance(Workspace.open(tmp_path)).series() == []


def test_looking_writes_nothing(workspace):
    quick = glance(Workspace.open(workspace))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        quick._ask("DELETE FROM series")

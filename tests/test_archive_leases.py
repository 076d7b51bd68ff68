"""Leases: one run a resource, taken over from the dead, kept fresh, given back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from archive import leases as module
from archive.catalog import Catalog
from archive.catalog_engine import writing
from archive.catalog_tables import leases as table
from archive.errors import StoreError
from archive.leases import EXPIRY_SECONDS, Lease, Leases, holders
from archive.owner import Owner

HERE = Path(__file__).resolve().parent


@pytest.fixture
def catalog(tmp_path):
    found = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    yield found
    found.close()


def run_of(catalog: Catalog) -> Leases:
    return Leases(catalog, catalog.start_run("test"))


def test_what_one_run_holds_no_other_gets(catalog):
    one, two = run_of(catalog), run_of(catalog)
    assert one.acquire(["series:b", "series:a", "series:b"]) == ["series:b", "series:a"]
    assert two.acquire(["series:a", "series:c"]) == ["series:c"]
    assert one.acquire(["series:a"]) == ["series:a"]  # its own again
    two.release(["series:a"])  # not its own: nothing happens
    assert two.acquire(["series:a"]) == []
    one.release(["series:a"])
    assert two.acquire(["series:a"]) == ["series:a"]
    assert {lease.resource: lease.run for lease in two.holders()} == {
        "series:a": two.run, "series:b": one.run, "series:c": two.run
    }  # fmt: skip
    assert all(lease.live and not lease.unseen for lease in holders(catalog))


def test_leases_are_given_back_at_the_end_even_after_an_error(catalog):
    with pytest.raises(ZeroDivisionError), run_of(catalog) as leases:
        leases.acquire(["train:ct", "series:a"])
        assert len(holders(catalog)) == 2
        raise ZeroDivisionError
    assert holders(catalog) == []


def test_leases_that_could_not_be_given_back_do_not_stop_the_next_run_of_this_process(catalog, monkeypatch):
    def full(engine):
        raise StoreError("NOT_WRITABLE", "the disk is full")

    with pytest.raises(ZeroDivisionError), run_of(catalog) as leases:
        leases.acquire(["series:a", "series:b"])
        monkeypatch.setattr(module, "writing", full)
        raise ZeroDivisionError
    monkeypatch.setattr(module, "writing", writing)
    assert [lease.run for lease in holders(catalog)] == [leases.run, leases.run]
    after = run_of(catalog)
    assert after.acquire(["series:a"]) == ["series:a"]
    assert [lease.run for lease in holders(catalog)] == [after.run]


def test_what_a_run_that_ended_still_holds_is_free(catalog):
    one = run_of(catalog)
    one.acquire(["series:a"])
    catalog.end_run(one.run, "failed", {})
    assert run_of(catalog).acquire(["series:a"]) == ["series:a"]


TAKE = """
import os, signal, sys
from archive.catalog import Catalog
from archive.leases import Leases
catalog = Catalog(sys.argv[1])
run = catalog.start_run("test")
print(Leases(catalog, run).acquire(["series:a"]), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_taken_over_at_once_and_a_living_one_never(catalog):
    other = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(catalog.engine.url)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "['series:a']\n"
    mine = run_of(catalog)
    with writing(catalog.engine) as connection:  # on one host the process counts, not its heartbeat
        connection.execute(update(table).values(heartbeat=time.time() - 10 * EXPIRY_SECONDS))
    assert mine.acquire(["series:a"]) == []
    other.communicate("die\n")
    assert not any(lease.live or lease.unseen for lease in holders(catalog))
    assert mine.acquire(["series:a"]) == ["series:a"]


@pytest.mark.parametrize(
    ("change", "age", "free"),
    [
        ({}, 0, False),
        ({"boot_id": "before"}, 0, True),
        ({"process_started": "1"}, 0, True),
        ({"host": "elsewhere"}, EXPIRY_SECONDS - 60, False),
        ({"host": "elsewhere", "boot_id": "theirs"}, EXPIRY_SECONDS - 60, False),
        ({"host": "elsewhere"}, EXPIRY_SECONDS + 1, True),
    ],
)
def test_who_counts_as_dead(catalog, change, age, free):
    me = Owner.me()
    lease = Lease("series:a", catalog.start_run("test"), me.host, me.boot_id, me.pid, me.started, time.time() - age)
    with writing(catalog.engine) as connection:
        connection.execute(insert(table).values(**dataclasses.asdict(dataclasses.replace(lease, **change))))
    assert (run_of(catalog).acquire(["series:a"]) == ["series:a"]) is free


def test_heartbeats_go_on_by_themselves_and_survive_a_failure(catalog, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    beats = []
    real = Leases.beat

    def beat(leases: Leases) -> None:
        beats.append(time.time())
        if len(beats) == 1:
            raise StoreError("NOT_WRITABLE")
        real(leases)

    monkeypatch.setattr(Leases, "beat", beat)
    with run_of(catalog) as leases:
        leases.acquire(["series:a"])
        first = holders(catalog)[0].heartbeat
        deadline = time.time() + 10
        while holders(catalog)[0].heartbeat == first and time.time() < deadline:
            time.sleep(0.01)
        assert holders(catalog)[0].heartbeat > first
        assert len(beats) >= 2


RACE = """
import sys
from archive.catalog import Catalog
from archive.leases import Leases
catalog = Catalog(sys.argv[1])
granted = Leases(catalog, catalog.start_run("test")).acquire([f"series:{n}" for n in range(200)])
one_by_one = Leases(catalog, catalog.start_run("test"))
more = [name for n in range(40) for name in one_by_one.acquire([f"series:x{n}"])]
print(",".join(granted + more), flush=True)
sys.stdin.readline()
"""


def test_two_processes_share_without_overlap(catalog):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(catalog.engine.url)],
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    granted = [process.stdout.readline().strip().split(",") for process in running]
    for process in running:
        process.communicate("\n")
    everything = [name for names in granted for name in names if name]
    assert len(everything) == len(set(everything)) == 240

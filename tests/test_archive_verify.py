"""Verify finds damage and goes on where it stopped; gc removes garbage and nothing else."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
import store_samples
from sqlalchemy import select, update

from archive import superseded
from archive.catalog import Catalog, ModelRow
from archive.catalog_engine import reading, writing
from archive.catalog_tables import encodings, series_table, versions
from archive.catalog_tables import leases as lease_table
from archive.collect import STAGE_SECONDS, Collected, collect
from archive.commit import STAGE, commit
from archive.leases import Leases
from archive.owner import Owner
from archive.verify import Problem, plan, record, verify_version
from archive.workspace import Workspace

SERIES = store_samples.SERIES


@pytest.fixture
def workspace(tmp_path):
    found = store_samples.encoded_workspace(tmp_path / "ws")
    yield found
    found.close()


def shard(folder: Path, tier: str) -> Path:
    return folder / ("0/c/0/0/0" if tier == "volume" else "c.0.0.0.0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flip": (flip, "DAMAGED", False),
    "truncate": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "DAMAGED", True),
    "zero length": (lambda path: path.write_bytes(b""), "DAMAGED", True),
    "delete": (Path.unlink, "MISSING", True),
    "extra": (lambda path: path.with_name("9").write_bytes(b""), "DAMAGED", True),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("tier", ["volume", "codes"])
def test_damage_of_either_tier_is_found_and_remembered(workspace, tier, kind):
    damage, code, seen_without_reading = DAMAGE[kind]
    item = plan(workspace, tier)[0]
    assert verify_version(item, read_data=True).problems == ()
    damage(shard(item.folder, tier))
    quick = verify_version(item, read_data=False)
    assert quick.code == (code if seen_without_reading else "")
    found = verify_version(item, read_data=True)
    assert (found.problems, found.code, found.series) == ((Problem(code, 1),), code, SERIES)
    record(workspace, [found])
    again = plan(workspace, tier)[0]
    assert (again.version, verify_version(again, read_data=True).code) == (item.version, code)
    stored = workspace.catalog.volumes_stored() if tier == "volume" else workspace.catalog.codes_stored()
    assert stored[0].damage == code


def test_a_manifest_that_is_not_the_committed_one_is_damage(workspace):
    item = plan(workspace, "codes")[0]
    forged = dataclasses.replace(item, manifest={**item.manifest, "zarr.json": [1, "0" * 64]})
    assert verify_version(forged, read_data=True).code == "DAMAGED"
    (item.folder / "zarr.json").unlink()
    flip(shard(item.folder, "codes"))
    both = verify_version(item, read_data=True)
    assert both.problems == (Problem("DAMAGED", 1), Problem("MISSING", 1))
    assert both.code == "DAMAGED"


def test_the_longest_unchecked_come_first(tmp_path):
    workspace = Workspace.open(tmp_path / "ws", create=True)
    names = [f"{number:032x}" for number in range(5)]
    item = store_samples.volume((2, 8, 8))
    workspace.catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, item, name) for name in names])
    order = [check.series for check in plan(workspace, "volume")]
    assert sorted(order) == names
    for _ in range(3):
        due = plan(workspace, "volume", sample=0.3)
        assert len(due) == 2
        record(workspace, [verify_version(check, read_data=False) for check in due])
    assert [check.series for check in plan(workspace, "volume")] == [*order[1:4], order[0], order[4]]
    assert plan(workspace, "codes", sample=0.5) == []


# -- garbage


def supersede(workspace: Workspace) -> None:
    """A second volume and codes of a second model: the first versions are named by rows and current no more."""
    second = store_samples.volume(seed=1)
    commit_ = store_samples.volume_commit(workspace.volumes, second, fingerprint="f2")
    version = workspace.catalog.commit_volumes([commit_])[0].version
    workspace.catalog.add_model(ModelRow("2" * 64, "ct", "tiny"))
    codes = store_samples.codes(second, version, "2" * 64)
    workspace.catalog.commit_encodings([store_samples.encoding_commit(workspace.codes, codes)])


def folders(workspace: Workspace) -> set[str]:
    return {
        path.relative_to(workspace.root).as_posix()
        for root in (workspace.volumes, workspace.codes)
        for path in root.glob("*/*")
    }


def test_nothing_current_is_ever_collected(workspace):
    before = folders(workspace)
    assert collect(workspace) == Collected(0, 0)
    assert folders(workspace) == before


def test_superseded_and_orphaned_versions_go_and_a_dry_run_says_so(workspace):
    supersede(workspace)
    store_samples.volume_commit(
        workspace.volumes, store_samples.volume(seed=7), "b" * 32
    )  # an orphan of its own series
    before = folders(workspace)
    expected = collect(workspace, dry_run=True, grace_seconds=0)
    assert folders(workspace) == before
    assert len(workspace.catalog.referenced("volume")) == 2
    assert expected.folders == 3
    assert expected.bytes > 0
    assert collect(workspace, grace_seconds=0) == expected
    row = workspace.catalog.one(SERIES)
    assert folders(workspace) == {
        f"volumes.zarr/{SERIES}/{row.volume_version}", f"codes.zarr/{SERIES}/{row.codes_version}"
    }  # fmt: skip
    assert not (workspace.volumes / ("b" * 32)).exists()
    assert len(workspace.catalog.certificates(current_only=False)) == 1
    assert row.state == "encoded"
    assert collect(workspace).folders == 0


def test_what_a_living_run_holds_stays(workspace):
    supersede(workspace)
    store_samples.volume_commit(workspace.volumes, store_samples.volume(seed=7))  # renamed, its row not yet written
    before = folders(workspace)
    with Leases(workspace.catalog, workspace.catalog.start_run("encode")) as leases:
        leases.acquire([f"series:{SERIES}"])
        assert collect(workspace, grace_seconds=0).folders == 0
        assert folders(workspace) == before
        assert len(workspace.catalog.referenced("volume")) == 2
    assert collect(workspace, grace_seconds=0).folders == 3


def test_a_version_committed_while_gc_runs_stays(workspace, monkeypatch):
    supersede(workspace)
    late = []
    real = superseded.drop

    def drop(catalog: Catalog, *rest) -> int:  # gc has listed the folders and read the leases
        item = store_samples.volume(seed=9)
        done = catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, item, "c" * 32)])
        late.append(done[0].version)
        return real(catalog, *rest)

    monkeypatch.setattr(superseded, "drop", drop)
    collect(workspace)
    assert f"volumes.zarr/{'c' * 32}/{late[0]}" in folders(workspace)


def test_only_stage_folders_of_the_dead_go(workspace):
    me = Owner.me()
    stage = workspace.volumes / STAGE
    dead = {
        "pid": stage / f"{Owner(me.host, me.boot_id, me.pid, '1').tag()}.x",
        "boot": stage / f"{Owner(me.host, 'before', me.pid, me.started).tag()}.x",
        "old": stage / f"{Owner('elsewhere', 'theirs', 7, '7').tag()}.x",
        "odd": stage / "something",
    }
    alive = {"mine": stage / f"{me.tag()}.x", "theirs": stage / f"{Owner('elsewhere', 'theirs', 7, '7').tag()}.y"}
    for folder in [*dead.values(), *alive.values()]:
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"12345")
    then = time.time() - STAGE_SECONDS - 60
    for folder in (dead["old"], dead["odd"], alive["mine"]):
        os.utime(folder / "part", (then, then))
        os.utime(folder, (then, then))
    assert collect(workspace) == Collected(4, 20)
    assert set(stage.iterdir()) == set(alive.values())


def test_superseded_versions_stay_for_their_readers_and_the_newest_as_asked(workspace):
    supersede(workspace)
    before = folders(workspace)
    assert collect(workspace, dry_run=True) == collect(workspace) == Collected(0, 0, waiting=2)  # the grace begins
    with writing(workspace.catalog.engine) as connection:
        for table in (versions, encodings):
            long_ago = update(table).where(table.c.superseded_at.is_not(None))
            assert connection.execute(long_ago.values(superseded_at="2020-01-01T00:00:00.000000Z")).rowcount == 1
    assert collect(workspace, keep=1).folders == 0
    assert folders(workspace) == before
    assert collect(workspace, keep=0).folders == 2
    assert len(folders(workspace)) == 2


def test_a_version_that_became_current_again_has_its_grace_anew(workspace):
    supersede(workspace)
    collect(workspace)
    first = workspace.catalog.encodings(SERIES)[0]
    with writing(workspace.catalog.engine) as connection:
        connection.execute(update(series_table).values(codes_version=first.version))
    collect(workspace)
    with reading(workspace.catalog.engine) as connection:
        marked = connection.execute(select(encodings.c.version).where(encodings.c.superseded_at.is_not(None))).all()
    assert [row.version for row in marked] == [workspace.catalog.encodings(SERIES)[1].version]


def test_models_that_no_row_names_go_unless_a_training_is_under_way(workspace):
    for name in (store_samples.MODEL, "3" * 64):
        (workspace.models / name).mkdir(parents=True)
        (workspace.models / name / "config.json").write_bytes(b"{}")
    (workspace.models / "of mine").mkdir()
    done, open_ = workspace.training / f"ct-{'4' * 16}", workspace.training / f"ct-{'5' * 16}"
    for folder in (done, open_):
        folder.mkdir(parents=True)
    workspace.catalog.add_model(ModelRow("2" * 64, "ct", "tiny", train_key="4" * 64))
    with Leases(workspace.catalog, workspace.catalog.start_run("train")) as leases:
        leases.acquire(["train:ct"])
        assert collect(workspace).folders == 0
    assert collect(workspace) == Collected(2, 2)
    assert {path.name for path in workspace.models.iterdir()} == {store_samples.MODEL, "of mine"}
    assert list(workspace.training.iterdir()) == [open_]


def test_what_another_host_may_still_commit_stays_for_a_day(workspace):
    store_samples.volume_commit(workspace.volumes, store_samples.volume(seed=7), "b" * 32)
    leases = Leases(workspace.catalog, workspace.catalog.start_run("ingest"))
    leases.owner = Owner("elsewhere", "theirs", 7, "7")
    leases.acquire([f"series:{'b' * 32}"])
    for age, gone in ((20 * 60, 0), (STAGE_SECONDS + 60, 1)):  # after ten minutes another run may take its work over
        with writing(workspace.catalog.engine) as connection:
            connection.execute(update(lease_table).values(heartbeat=time.time() - age))
        assert collect(workspace).folders == gone


def test_forgotten_series_leave_no_folder(workspace):
    workspace.catalog.remove_series(SERIES)
    assert collect(workspace).folders == 2
    assert folders(workspace) == set()
    assert not (workspace.volumes / SERIES).exists()


def test_a_link_in_the_store_is_not_followed(workspace, tmp_path):
    outside = tmp_path / "outside"
    commit(outside, SERIES, lambda folder: (folder / "x").write_bytes(b"x"))
    (workspace.volumes / ("d" * 32)).symlink_to(outside / SERIES)
    (workspace.volumes / SERIES / "link").symlink_to(outside / SERIES)
    collect(workspace)
    assert list(outside.rglob("x"))

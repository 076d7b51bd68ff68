"""The commit protocol: whole or not at all, synced in order, killed anywhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import store_samples

from archive import commit as module
from archive.collect import collect
from archive.commit import FAULT, STAGE, check, commit, digest_of, manifest_of, remove_tree
from archive.errors import InputError, StoreError
from archive.leases import Leases
from archive.owner import Owner
from archive.workspace import Workspace, open_codes, open_volumes

SERIES, OTHER = "a" * 32, "b" * 32
HERE = Path(__file__).resolve().parent
# A point stands in a fault_point("...") call somewhere in archive/, and the crash test goes through all of them but
# those of exports, which lie outside the stores (test_archive_exported.py).
POINTS = sorted(
    {
        point
        for path in (HERE.parent / "archive").glob("*.py")
        for point in re.findall(r'fault_point\("([^"]+)"\)', path.read_text())
        if not point.startswith("export.")
    }
)


def fill(folder: Path) -> None:
    (folder / "c").mkdir()
    (folder / "zarr.json").write_bytes(b"{}")
    (folder / "c" / "0").write_bytes(b"abc" * 100)


def test_a_committed_folder_is_whole_and_its_manifest_says_so(tmp_path):
    done = commit(tmp_path, SERIES, fill)
    folder = tmp_path / SERIES / done.version
    assert re.fullmatch("[0-9a-f]{16}", done.version)
    assert done.manifest == manifest_of(folder)
    assert sorted(done.manifest) == ["c/0", "zarr.json"]
    assert (done.digest, done.bytes) == (digest_of(done.manifest), 302)
    assert check(folder, done.manifest, read_data=True) == []
    assert not list((tmp_path / STAGE).iterdir())
    assert commit(tmp_path, SERIES, fill).version != done.version


DAMAGE = {
    "nothing": (lambda folder: None, [], []),
    "flip": (lambda folder: (folder / "c/0").write_bytes(b"abd" * 100), [], ["DAMAGED"]),
    "truncate": (lambda folder: (folder / "c/0").write_bytes(b"abc" * 99), ["DAMAGED"], ["DAMAGED"]),
    "zero length": (lambda folder: (folder / "c/0").write_bytes(b""), ["DAMAGED"], ["DAMAGED"]),
    "delete": (lambda folder: (folder / "c/0").unlink(), ["MISSING"], ["MISSING"]),
    "extra": (lambda folder: (folder / "c/1").write_bytes(b"x"), ["DAMAGED"], ["DAMAGED"]),
    "folder gone": (remove_tree, ["MISSING", "MISSING"], ["MISSING", "MISSING"]),
    "link to file": (
        lambda folder: ((folder / "c/0").unlink(), (folder / "c/0").symlink_to("/etc/hostname")),
        ["DAMAGED"],
        ["DAMAGED"],
    ),
    "link to folder": (lambda folder: (folder / "d").symlink_to("/etc"), ["DAMAGED"], ["DAMAGED"]),
    "file for folder": (
        lambda folder: (remove_tree(folder / "c"), (folder / "c").write_bytes(b"")),
        ["MISSING", "DAMAGED"],
        ["MISSING", "DAMAGED"],
    ),
    "swapped": (
        lambda folder: (folder / "zarr.json").write_bytes(b"[]"),
        [],
        ["DAMAGED"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_check_finds_every_kind_of_damage(tmp_path, kind):
    damage, quick, thorough = DAMAGE[kind]
    done = commit(tmp_path, SERIES, fill)
    folder = tmp_path / SERIES / done.version
    damage(folder)
    assert check(folder, done.manifest, read_data=False) == quick
    assert check(folder, done.manifest, read_data=True) == thorough


def test_everything_is_synced_before_it_is_renamed_and_its_parent_after(tmp_path, monkeypatch):
    calls: list[tuple[str, str]] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        calls.append(("sync", path.relative_to(tmp_path).as_posix()))
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        calls.append(("rename", target.relative_to(tmp_path).as_posix()))
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    done = commit(tmp_path, SERIES, fill)
    at = calls.index(("rename", f"{SERIES}/{done.version}"))
    stage = calls[0][1].split("/")[1]
    before = [path.replace(f"{STAGE}/{stage}", "STAGE") for _, path in calls[:at]]
    assert sorted(before[:2]) == ["STAGE/c/0", "STAGE/zarr.json"]
    assert before[2:] == ["STAGE/c", "STAGE", "."]  # inner folders first; the root last, as it holds the new series
    assert calls[at + 1 :] == [("sync", SERIES)]


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("commit.")])
def test_an_io_error_anywhere_is_a_store_error_and_leaves_nothing_staged(tmp_path, monkeypatch, point):
    monkeypatch.setenv(FAULT, f"{point}:raise")
    with pytest.raises(StoreError) as caught:
        commit(tmp_path, SERIES, fill)
    assert caught.value.code == "NOT_WRITABLE"
    assert caught.value.context["errno"] == 5
    assert not list((tmp_path / STAGE).glob("*"))
    monkeypatch.delenv(FAULT)
    commit(tmp_path, SERIES, fill)


def test_what_the_writer_raises_passes_through_and_leaves_nothing(tmp_path):
    def refuse(folder: Path) -> None:
        fill(folder)
        raise InputError("NON_FINITE")

    with pytest.raises(InputError):
        commit(tmp_path, SERIES, refuse)
    assert not list((tmp_path / STAGE).iterdir())
    assert not (tmp_path / SERIES).exists()


def test_a_full_disk_is_a_store_error(tmp_path):
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError) as caught:
        commit(tmp_path, SERIES, full)
    assert (caught.value.code, caught.value.context["errno"]) == ("NOT_WRITABLE", 28)


def test_gc_taking_the_empty_series_folder_does_not_fail_a_commit(tmp_path, monkeypatch):
    taken = []

    def take(name: str) -> None:
        if name == "commit.parent" and not taken:
            taken.append(name)
            (tmp_path / SERIES).rmdir()

    monkeypatch.setattr(module, "fault_point", take)
    done = commit(tmp_path, SERIES, fill)
    assert taken
    assert check(tmp_path / SERIES / done.version, done.manifest, read_data=True) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".stage", "a\0b", "a" * 129])
def test_no_name_leads_out_of_the_store(tmp_path, name):
    with pytest.raises(StoreError):
        commit(tmp_path / "store", name, fill)
    assert not list(tmp_path.rglob("zarr.json"))


def test_an_owner_lives_until_its_process_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = Owner.me()
    from archive.owner import _started

    theirs = Owner(me.host, me.boot_id, child.pid, _started(child.pid))
    assert theirs.alive() is True
    assert Owner.from_tag(theirs.tag() + ".rest") == theirs
    assert Owner(me.host, "another boot", child.pid, theirs.started).alive() is False
    assert Owner(me.host, me.boot_id, child.pid, "1").alive() is False  # the pid was given to somebody else
    assert Owner("another host", me.boot_id, child.pid, theirs.started).alive() is None
    child.kill()
    assert theirs.started
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert theirs.alive() is False  # a zombie does no work
    child.wait()
    assert theirs.alive() is False
    assert Owner.from_tag("something") is None


@pytest.fixture(scope="module")
def crashed(tmp_path_factory) -> Path:
    """One workspace for each fault point, each left by a process that was killed there."""
    base = tmp_path_factory.mktemp("crash")
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    run = subprocess.run(
        [sys.executable, str(HERE / "crash_driver.py"), str(base), *POINTS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    ended = dict(line.split() for line in run.stdout.splitlines())
    assert ended == {point: str(-signal.SIGKILL) for point in POINTS}, run.stderr
    return base


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_nothing_acknowledged_and_shows_nothing_half_done(crashed, point):
    workspace = Workspace.open(crashed / point)
    catalog = workspace.catalog
    row = catalog.one(SERIES)
    acks = [tuple(line.split()) for line in (crashed / f"{point}.acks").read_text().splitlines()]
    current = {"volume": row.volume_version, "codes": row.codes_version}
    erasing = point.startswith("erase.")
    stored = [(workspace.volumes, version) for version in catalog.volumes_stored()]
    for root, version in [*stored, *((workspace.codes, version) for version in catalog.codes_stored())]:
        if erasing and version.series == OTHER:  # its bytes go first, and the rows that find them last
            continue
        assert check(root / version.series / version.version, version.manifest, read_data=True) == []
        assert digest_of(version.manifest) == version.manifest_digest
    # What was acknowledged last is current; only a kill between commit and acknowledgement may leave something newer.
    unacknowledged = {"catalog.volumes.after": "volume", "catalog.encodings.after": "codes"}.get(point)
    for tier, version in dict(acks).items():
        assert (current[tier] == version) is (tier != unacknowledged)
    open_volumes(workspace)[SERIES].read()
    open_codes(workspace)[SERIES].read()

    # The next run takes the dead one's lease over, gc leaves exactly what is named, and the work goes on.
    with Leases(catalog, catalog.start_run("test")) as leases:
        assert leases.acquire([f"series:{SERIES}"]) == [f"series:{SERIES}"]
    if erasing:
        assert [one.series for one in catalog.series()] == [SERIES]  # out of sight from the first moment
        collect(workspace)
        catalog = workspace.catalog
        assert not catalog.series(states=["removed"])
    expected = collect(workspace, dry_run=True, grace_seconds=0)
    assert collect(workspace, grace_seconds=0) == expected
    assert collect(workspace, grace_seconds=0).folders == 0
    for tier, root in (("volume", workspace.volumes), ("codes", workspace.codes)):
        folders = {(path.parent.name, path.name) for path in root.glob("*/*") if path.parent.name != STAGE}
        assert folders == catalog.referenced(tier)
        assert not list(root.glob(f"{STAGE}/*"))
    second = store_samples.volume(seed=1)
    done = catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, second, fingerprint="f2")])[0]
    assert done.version == catalog.one(SERIES).volume_version
    codes = store_samples.codes(second, done.version)
    catalog.commit_encodings([store_samples.encoding_commit(workspace.codes, codes)])
    assert catalog.one(SERIES).state == "encoded"
    workspace.close()


def test_the_crash_test_knows_every_step(crashed):
    assert len(POINTS) >= 31
    stores = {"commit", "volumes", "codes", "catalog", "collect", "linkage", "leases", "verify", "erase"}
    assert {point.split(".")[0] for point in POINTS} == stores

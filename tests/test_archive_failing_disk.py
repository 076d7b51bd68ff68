"""A disk that fails at any call, or is full: nothing half done shows, and it goes on where there is room again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_samples

from archive.collect import collect
from archive.commit import STAGE, check, digest_of
from archive.errors import StoreError
from archive.workspace import Workspace

SERIES = store_samples.SERIES
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


class Disk:
    """Counts the calls that touch files under a root, and lets the k-th fail; the hook of a process stays for good."""

    def __init__(self) -> None:
        self.root, self.fail_at, self.code, self.calls = "", 0, 0, 0
        self.sync = os.fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.root and event in FILE_EVENTS and str(arguments[0]).startswith(self.root):
            self.touch()

    def touch(self) -> None:
        """One more call; raises where it is the one to fail."""
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def fsync(self, descriptor: int) -> None:
        """os.fsync, which no audit event tells of."""
        if self.root:
            self.touch()
        self.sync(descriptor)

    @contextlib.contextmanager
    def failing(self, root: Path, at: int, code: int) -> Iterator[None]:
        """Within, the `at`-th call fails with an errno."""
        self.root, self.fail_at, self.code, self.calls = str(root), at, code, 0
        try:
            yield
        finally:
            self.root = ""


DISK = Disk()
pytestmark = pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # zarr, where a call of its own fails


def whole(workspace: Workspace) -> None:
    """Every version that a series points at is as it was committed."""
    for root, rows in (
        (workspace.volumes, workspace.catalog.volumes_stored()), (workspace.codes, workspace.catalog.codes_stored())
    ):  # fmt: skip
        for row in rows:
            assert check(root / row.series / row.version, row.manifest, read_data=True) == []
            assert digest_of(row.manifest) == row.manifest_digest


def stored_folders(workspace: Workspace) -> set[tuple[str, str]]:
    """(series, version) of every folder of both stores, stages too."""
    return {(path.parent.name, path.name) for root in (workspace.volumes, workspace.codes) for path in root.glob("*/*")}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failure_at_any_call_of_a_commit_shows_nothing_half_done(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", DISK.fsync)
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    volume = store_samples.volume((2, 16, 16), seed=3)
    failed = at = 0
    while True:
        at += 1
        before = workspace.catalog.one(SERIES)
        try:
            with DISK.failing(workspace.root, at, code):
                item = store_samples.volume_commit(workspace.volumes, volume, fingerprint=f"f{at}")
                codes = store_samples.codes(volume, item.committed.version, levels=1)
                encoding = store_samples.encoding_commit(workspace.codes, codes)
        except StoreError as error:
            failed += 1
            assert (error.code, error.context["errno"]) == ("NOT_WRITABLE", code)
            assert workspace.catalog.one(SERIES) == before
            continue
        if DISK.calls < at:
            break  # a run that nothing happened to
    assert failed > 30
    workspace.catalog.commit_volumes([item])
    assert workspace.catalog.commit_encodings([encoding])[0].status == "encoded"
    whole(workspace)
    collect(workspace, grace_seconds=0)
    # A write that a thread of zarr's had begun may end after its stage was cleared: that goes when this process is gone.
    stored = {(series, version) for series, version in stored_folders(workspace) if series != ".stage"}
    assert stored == {(SERIES, item.committed.version), (SERIES, encoding.committed.version)}
    workspace.close()


def test_a_failure_at_any_call_of_gc_costs_no_version_that_counts(tmp_path):
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    names = [f"{number:032x}" for number in range(3)]
    at = 0
    while True:
        at += 1
        for name in names:  # orphans
            store_samples.volume_commit(workspace.volumes, store_samples.volume((1, 8, 8)), name)
        with contextlib.suppress(OSError), DISK.failing(workspace.root, at, errno.EIO):
            collect(workspace, grace_seconds=0)
        whole(workspace)
        if DISK.calls < at:
            break
    collect(workspace)
    assert len(stored_folders(workspace)) == 2
    assert at > 20
    workspace.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB; skipped where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """Fill a disk but for so many bytes; remove the file to make room."""
    filler = place / "filler"
    room = os.statvfs(place)
    filler.write_bytes(b"\0" * (room.f_bavail * room.f_frsize - leave))
    return filler


@pytest.mark.parametrize("leave", [16 * 2**10, 96 * 2**10, 160 * 2**10])
def test_a_full_disk_stops_a_verb_cleanly_and_room_lets_it_go_on(small_disk, tmp_path, capfd, monkeypatch, leave):
    from conftest import QUICK
    from phantoms import ct_volume, write_ct_series
    from test_flows_cli import here

    from flows import console

    words = [word for override in QUICK for word in ("--set", override)]
    for number in range(8):
        volume = ct_volume((4, 64, 80), seed=number)
        write_ct_series(tmp_path / "in" / str(number), volume, patient=number, name=f"ct{number}")
    root = small_disk / "ws"
    Workspace.open(root, create=True).register_source(tmp_path / "in")
    filler = fill(small_disk, leave)
    code, out, err = here(capfd, monkeypatch, "ingest", "-w", root, *words)
    assert code == console.DAMAGE, out + err
    said = err[err.index("error NOT_WRITABLE") :]
    assert "the disk is full" in said and "free space" in said and "Traceback" not in said
    workspace = Workspace.open(root)
    whole(workspace)
    assert len(workspace.catalog.series()) < 8
    assert not list(workspace.volumes.glob(f"{STAGE}/*"))
    filler.unlink()
    code, _, err = here(capfd, monkeypatch, "ingest", "-w", root, *words)
    assert code == console.OK, err
    whole(workspace)
    assert len(workspace.catalog.series()) == 8
    collect(workspace, grace_seconds=0)
    assert {version for _, version in stored_folders(workspace)} == {
        row.version for row in workspace.catalog.volumes_stored()
    }
    workspace.close()

"""Make a folder appear at once and whole, or not at all, whenever the process or the power dies.

Stage beside the target, write, read back into a manifest of sha256, fsync files and folders, rename into place, fsync
the parents. The folder counts only when the catalog names it (archive.catalog); until then it is an orphan that
archive.collect removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive.errors import StoreError, VoxbookError
from archive.owner import Owner

STAGE = ".stage"
FAULT = "VOXBOOK_FAULT"
FULL = (errno.ENOSPC, errno.EDQUOT)
Manifest = dict[str, list[Any]]  # relative posix path: [size in bytes, sha256 hex]
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")


@dataclass(frozen=True)
class Committed:
    """One immutable folder `root/series/version`, on disk and synced, not yet in the catalog.

    digest: sha256 hex of the canonical JSON of `manifest`. bytes: sum of the file sizes.
    """

    series: str
    version: str
    digest: str
    manifest: Manifest = field(repr=False)
    bytes: int


def commit(root: Path, series: str, write: Callable[[Path], None]) -> Committed:
    """Let `write` fill an empty folder, then move it to `root/series/<new version>`.

    Two processes may commit versions of one series at once: each gets its own folder, the catalog decides. Raises
    StoreError NOT_WRITABLE on any OSError (disk full, no permission, I/O); what `write` raises otherwise passes
    through. After an exception nothing is left; after kill -9 at most a stage folder or a version no row names.
    """
    name_of(series)
    version = secrets.token_hex(8)
    stage: Path | None = None
    try:
        fault_point("commit.begin")
        # The name itself says who owns it, so there is no moment at which a stage folder belongs to nobody.
        stage = root / STAGE / f"{Owner.me().tag()}.{version}"
        stage.mkdir(parents=True, mode=0o700)
        fault_point("commit.staged")
        write(stage)
        fault_point("commit.written")
        manifest = manifest_of(stage)
        fault_point("commit.manifest")
        sync_tree(stage)
        fault_point("commit.synced")
        target = root / series / version
        _move(stage, target)
        stage = None
        fault_point("commit.renamed")
        sync_folder(target.parent)
        fault_point("commit.done")
    except VoxbookError:
        raise
    except OSError as error:
        words = f"the disk is full ({root.name})" if error.errno in FULL else ""
        raise StoreError("NOT_WRITABLE", words, errno=error.errno, series=series) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    return Committed(series, version, digest_of(manifest), manifest, sum(size for size, _ in manifest.values()))


def _move(stage: Path, target: Path) -> None:
    for attempt in range(10):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(target.parent.parent)
        fault_point("commit.parent")
        try:
            stage.rename(target)
            return
        except FileNotFoundError:  # gc removed the series' empty folder in between
            if attempt == 9 or not stage.is_dir():
                raise


def manifest_of(folder: Path) -> Manifest:
    """Size and sha256 of every file below a folder, read from disk; links and devices are a StoreError DAMAGED."""
    manifest: Manifest = {}
    for path in sorted(_files(folder)):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StoreError("DAMAGED", "a stored version holds something that is not a plain file")
        manifest[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
    return manifest


def digest_of(manifest: Manifest) -> str:
    """sha256 hex of the manifest's canonical JSON: one number for a whole version."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(folder: Path, manifest: Manifest, read_data: bool) -> list[str]:
    """Compare a version with its manifest: one code per file that is not as committed, empty when all is well.

    MISSING: the file is gone. DAMAGED: another size, other bytes (found with read_data only), unreadable, not a plain
    file, or a file that was never committed.
    """
    problems = []
    for name, (size, digest) in manifest.items():
        path = folder / name
        try:
            found = path.lstat()
            whole = stat.S_ISREG(found.st_mode) and found.st_size == size
            if not whole or (read_data and _sha256(path) != digest):
                problems.append("DAMAGED")
        except (FileNotFoundError, NotADirectoryError):
            problems.append("MISSING")
        except OSError:  # EIO, EACCES: the bytes are there and cannot be had
            problems.append("DAMAGED")
    extra = {path.relative_to(folder).as_posix() for path in _files(folder)} - manifest.keys()
    return problems + ["DAMAGED"] * len(extra)


def name_of(series: str) -> str:
    """The series itself when it is safe as a folder's name; a path from outside never gets here otherwise."""
    if not _NAME.fullmatch(series):
        raise StoreError("NOT_FOUND", "not a series pseudonym")
    return series


def fault_point(name: str) -> None:
    """Die or fail here when VOXBOOK_FAULT says so (`name:kill`, `name:raise`); for crash tests only, else nothing."""
    wanted = os.environ.get(FAULT)
    if not wanted:
        return
    point, _, action = wanted.rpartition(":")
    if point == name:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(5, f"injected at {name}")


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that names made or moved in it survive a power cut."""
    _sync(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def sync_tree(folder: Path) -> None:
    """fsync everything in a folder, and it; or one file."""
    if folder.is_file():
        _sync(folder, os.O_RDONLY)
    for path in _files(folder):
        _sync(path, os.O_RDONLY)
    folders = [Path(here) for here, _, _ in os.walk(folder)]
    for inner in reversed(folders):
        sync_folder(inner)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        yield from (Path(here) / name for name in names)
        # A link to a folder is never followed, and it is no folder of ours.
        yield from (Path(here) / name for name in folders if (Path(here) / name).is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> int:
    """Delete a folder of ours and return the bytes that it held; what is already gone is no error."""
    size = 0
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            size += path.lstat().st_size
    shutil.rmtree(folder, ignore_errors=False, onerror=_ignore_missing)
    return size


def _ignore_missing(_function: object, _path: object, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]

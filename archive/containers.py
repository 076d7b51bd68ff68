"""Zip, tar and gzip files as folders: `a.zip!/inner/x.dcm` is a file in one. Unpacked under limits, under names of our own.

What a member is called never becomes a path on disk, so no name, link or device in an archive reaches outside.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import secrets
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, BinaryIO

from archive.errors import InputError
from archive.owner import Owner
from archive.part10 import looks_like_dicom
from archive.plans import SeriesPlan

INSIDE = "!/"
PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
MAX_MEMBERS = 500_000
RATIO, RATIO_FROM = 200, 2**30  # a bomb: more than a gigabyte, at more than 200 times the packed size
BLOCK = 1 << 20
BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
)
BROKEN += (RuntimeError, OSError, ValueError, OverflowError)  # RuntimeError: a zip under a password


@dataclass(frozen=True)
class Member:
    """One plain file of a container, its name cleaned; `open` opens it, once, in the order of the archive.

    apart: packed by itself, so that damage to it says nothing of the others (zip; a tar is one stream).
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    apart: bool = False


def is_container(path: Path, start: bytes) -> bool:
    """Whether a file that begins with `start` (512 bytes) is a zip or tar, or gzip, bzip2, xz around a tar or DICOM file."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) or start[257:262] == b"ustar":
        return True
    for magic, opened in PACKED:
        if start.startswith(magic):
            try:
                with opened(path) as file:  # type: ignore[operator]
                    inside = file.read(512)
                    return inside[257:262] == b"ustar" or looks_like_dicom(inside)
            except BROKEN:
                return False
    return False


def is_inside(path: str) -> bool:
    """Whether a path of a scan may lie in a container."""
    return INSIDE in path


def outer_of(path: str, known: Container[str]) -> str:
    """The container, one of the known, that a path lies in; empty where none."""
    start = 0
    while (at := path.find(INSIDE, start)) >= 0:
        if path[:at] in known:
            return path[:at]
        start = at + 1
    return ""


def members(path: Path, most_bytes: int, skipped: Counter[str] | None = None) -> Iterator[Member]:
    """The plain files of a container in its own order. skipped counts links and devices in it.

    Raises InputError ARCHIVE_LIMIT (bombs, too many members), ARCHIVE_NOT_UNPACKED (a password, an unknown method),
    TRUNCATED, UNREADABLE; also from reading a member.
    """
    skipped = Counter() if skipped is None else skipped
    budget = _Budget(path.stat().st_size, most_bytes)
    names: Counter[str] = Counter()
    with translated(), path.open("rb") as file:
        found = _zipped(file, skipped) if file.read(2) == b"PK" else _packed(path, skipped)
        for count, member in enumerate(found):
            if count >= MAX_MEMBERS:
                raise InputError("ARCHIVE_LIMIT", members=float(MAX_MEMBERS))
            name = _clean(member.name)
            base = name
            while names[name]:  # a zip may hold one name twice; both are files
                names[base] += 1
                name = f"{base}~{names[base]}"
            names[name] += 1
            yield Member(name, member.size, partial(budget.watched, member.open), member.apart)


def _zipped(file: BinaryIO, skipped: Counter[str]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                skipped["LINK"] += 1
                continue
            yield Member(info.filename, info.file_size, partial(archive.open, info), apart=True)


def _packed(path: Path, skipped: Counter[str]) -> Iterator[Member]:
    """A tar's members, or the one file that is packed alone."""
    with path.open("rb") as file:
        start = file.read(8)
    opened = next((found for magic, found in PACKED if start.startswith(magic)), None)
    if opened is not None:
        with opened(path) as file:  # type: ignore[operator]
            alone = file.read(512)[257:262] != b"ustar"
        if alone:
            yield Member("packed", 0, partial(opened, path))  # type: ignore[arg-type]
            return
    yield from _tarred(path, skipped)


def _tarred(path: Path, skipped: Counter[str]) -> Iterator[Member]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            if info.isfile():
                yield Member(info.name, info.size, lambda info=info: archive.extractfile(info))  # type: ignore
            elif not info.isdir():
                skipped["LINK" if info.issym() or info.islnk() else "DEVICE"] += 1
            archive.members = []  # type: ignore[attr-defined]  # it would remember every one


def _clean(name: str) -> str:
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return "/".join(parts).replace("\0", "") or "unnamed"


@dataclass
class _Budget:
    """Bytes that a container may still unpack to, over all its members and readings of it."""

    packed: int
    most: int
    used: int = 0

    def watched(self, opened: Callable[[], IO[bytes]]) -> IO[bytes]:
        with translated():  # a password shows here
            return _Watched(opened(), self)  # type: ignore[return-value]

    def spend(self, count: int) -> None:
        self.used += count
        if self.used > self.most or (self.used > RATIO_FROM and self.used > RATIO * self.packed):
            raise InputError("ARCHIVE_LIMIT", packed_bytes=float(self.packed))


@dataclass
class _Watched:
    """A member's bytes, counted as they come: what its header claims of its size is not believed."""

    file: IO[bytes]
    budget: _Budget

    def read(self, count: int) -> bytes:
        with translated():
            block = self.file.read(count)
        self.budget.spend(len(block))
        return block

    def close(self) -> None:
        self.file.close()


@contextmanager
def translated() -> Iterator[None]:
    """What zipfile, tarfile and the decompressors raise, as InputError without names and paths."""
    try:
        yield
    except InputError:
        raise
    except PermissionError:
        raise InputError("UNREADABLE") from None
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        raise InputError("TRUNCATED", "an archive ends early or its bytes are damaged") from None
    except (RuntimeError, NotImplementedError):
        raise InputError("ARCHIVE_NOT_UNPACKED", "a password, or a method of packing that is not read") from None
    except (OSError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise InputError("TRUNCATED", f"an archive is damaged ({type(error).__name__})") from None


def extract(member: Member, target: Path, mtime_ns: int) -> int:
    """Write a member to a new private file with the container's time; returns its true size.

    Raises InputError as `members`; nothing of the file is left then.
    """
    size = 0
    source = member.open()
    try:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            while block := source.read(BLOCK):
                out.write(block)
                size += len(block)
    except InputError:
        target.unlink(missing_ok=True)
        raise
    finally:
        source.close()
    os.utime(target, ns=(mtime_ns, mtime_ns))
    return size


class Unpacked:
    """Files of a source as paths on disk: those in containers are unpacked first, and gone when this is closed."""

    def __init__(self, root: Path, scratch: Path | None = None, most_bytes: int = 2**36) -> None:
        """scratch: where the unpacked lie, in a private folder; none: the system's temporary folder."""
        self.root = root
        self.most_bytes = most_bytes
        self._scratch = scratch
        self._folder: Path | None = None
        self._files: dict[str, Path] = {}

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was unpacked."""
        folder, self._folder = self._folder, None
        self._files.clear()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a file of the source can be read now. Raises InputError as `members`, UNREADABLE where it is gone."""
        self.fetch([name])
        return self._files.get(name) or self.root / name

    def fetch(self, names: Iterable[str]) -> None:
        """Unpack what of these lies in containers, each container gone through once."""
        wanted: dict[str, set[str]] = {}
        for name in names:
            if is_inside(name) and name not in self._files:
                outer = outer_of(name, _Files(self.root))
                if outer:
                    wanted.setdefault(outer, set()).add(name)
        for outer, inner in wanted.items():
            container = self.root / outer
            try:
                mtime_ns = container.stat().st_mtime_ns
            except OSError:
                raise InputError("UNREADABLE", "a container is gone since the scan") from None
            for member in members(container, self.most_bytes):
                name = outer + INSIDE + member.name
                if name not in inner:
                    continue
                target = self.new_file(PurePosixPath(member.name).suffix)
                extract(member, target, mtime_ns)
                self._files[name] = target
                inner.discard(name)
                if not inner:
                    break
            if inner:
                raise InputError("UNREADABLE", "a file is gone from its container since the scan")

    def resolved(self, plan: SeriesPlan) -> SeriesPlan:
        """The plan with its files where they can be read; as it is where none lies in a container."""
        if not any(is_inside(name) for name in plan.files):
            return plan
        # Siblings that a plan reads along (a NIfTI pair's .img) are named in its tables.
        pairs = [str(table["pair"]) for table in plan.tables if table.get("pair")]
        self.fetch([*plan.files, *pairs])
        paths = tuple(os.fspath(self.path(name)) for name in plan.files)
        tables: list[dict[str, Any]] = [
            {**table, "pair": os.fspath(self.path(table["pair"]))} if table.get("pair") else table
            for table in plan.tables
        ]
        return replace(plan, files=paths, tables=tuple(tables))

    def new_file(self, suffix: str = "") -> Path:
        """A name of our own, not yet there; only a known suffix is kept, as readers look at it."""
        if self._folder is None:
            if self._scratch is None:
                self._folder = Path(tempfile.mkdtemp(prefix="voxbook-"))
            else:  # named like commit's stages, so that what a killed process leaves is collected like them
                self._folder = self._scratch / f"{Owner.me().tag()}.{secrets.token_hex(8)}"
                self._folder.mkdir(parents=True, mode=0o700)
        suffix = suffix.lower() if suffix.lower() in (".gz", ".nii", ".hdr", ".img", ".png", ".jpg", ".tif") else ""
        return self._folder / f"{secrets.token_hex(8)}{suffix}"


@dataclass(frozen=True)
class _Files:
    """The plain files below a root, asked for one at a time."""

    root: Path

    def __contains__(self, name: object) -> bool:
        return (self.root / str(name)).is_file()

"""The files of a source, in a fixed order, without opening any: names and what the file system says of them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pathspec

from archive.errors import InputError


class Seen(NamedTuple):
    """One regular file: path relative to the source root, posix, and its stat; a tuple, as there may be millions."""

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Listing:
    """A source's files. skipped: how many of each class were left out. closed: folders that could not be listed."""

    folder: Path
    files: list[Seen]
    skipped: Counter[str]
    closed: list[str]


def survey(root: Path | str, exclude: tuple[str, ...] | list[str] = ()) -> Listing:
    """List a folder, or one file; exclude holds .gitignore patterns on the path relative to the root.

    Hidden files, links out of the root, FIFOs and devices are counted and not followed. Raises InputError UNREADABLE
    where the root itself cannot be read.
    """
    root = Path(root).resolve()
    folder = root if root.is_dir() else root.parent
    skipped: Counter[str] = Counter()
    closed: list[str] = []
    if folder != root:
        try:
            files = [_seen(root.name, root.stat())]
        except OSError:  # its message would hold the path
            raise InputError("UNREADABLE", "the source is not there or cannot be read") from None
        return Listing(folder, files, skipped, closed)
    left_out = pathspec.GitIgnoreSpec.from_lines(exclude) if exclude else None
    return Listing(folder, list(_walk(root, left_out, skipped, closed)), skipped, closed)


def _walk(root: Path, exclude: pathspec.PathSpec | None, skipped: Counter[str], closed: list[str]) -> Iterator[Seen]:
    # Plain strings and scandir: pathlib takes most of the time where 100,000 files have not changed.
    folders = [""]
    while folders:
        base = folders.pop()
        deeper = []
        try:
            with os.scandir(os.path.join(root, base)) as found:  # noqa: PTH118
                items = sorted(found, key=lambda item: item.name)
        except OSError:
            closed.append(base.rstrip("/") or ".")
            continue
        for item in items:
            path = base + item.name
            try:
                if item.is_dir():
                    if item.is_symlink() or item.name.startswith("."):
                        skipped["LINK" if item.is_symlink() else "HIDDEN"] += 1
                    else:
                        deeper.append(path + "/")
                    continue
                if exclude is not None and exclude.match_file(path):
                    continue
                if item.name.startswith("."):
                    skipped["HIDDEN"] += 1
                    continue
                if item.is_symlink() and not Path(item.path).resolve(strict=True).is_relative_to(root):
                    skipped["LINK"] += 1
                    continue
                status = item.stat()
            except (OSError, RuntimeError):  # a link to nowhere, or in a circle
                skipped["LINK"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                yield _seen(path, status)
            else:
                skipped["DEVICE"] += 1
        folders += reversed(deeper)


def _seen(path: str, status: os.stat_result) -> Seen:
    return Seen(path, status.st_size, status.st_mtime_ns, status.st_ino)

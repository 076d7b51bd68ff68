"""What a folder holds of voxbook's exports: a ledger beside them, so that nothing else in it is ever touched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from archive.commit import fault_point, remove_tree, sync_folder, sync_tree
from archive.errors import ConfigError, TransientError

LEDGER, LOCK, STAGED = ".voxbook-export.jsonl", ".voxbook-export.lock", ".voxbook-staged"
State = Literal["absent", "done", "ours", "foreign"]
Look = list[int]


class Ledger:
    """The exports of one folder, held by one run at a time; use it as a context manager.

    A line says which series lies at a target, of which options (`key`), and how it looks: files, bytes, and the
    newest time of change in nanoseconds. It is on the disk before the target is: what is made goes to `staged` first.
    """

    def __init__(self, out: Path) -> None:
        self.root, self.path = out, out / LEDGER
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._lock = -1

    def __enter__(self) -> Ledger:
        """Raises TransientError LEASED where another run writes into this folder."""
        self._lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the kernel however a run ends
        except OSError as error:
            os.close(self._lock)
            raise TransientError("LEASED", f"another export writes into {self.root.name}") from error
        self._read()
        self._sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # not there, or not empty: the next run sweeps it
            (self.root / STAGED).rmdir()
        os.close(self._lock)

    def state(self, target: Path, key: str) -> State:
        """done: as asked for. ours: of other options. foreign: not as voxbook wrote it, if it wrote it at all."""
        if not os.path.lexists(target):
            return "absent"
        look = _look(target)
        keys = [entry["key"] for entry in self._known.get(self._name(target), ()) if entry["look"] == look]
        return "done" if key in keys else "ours" if keys else "foreign"

    def staged(self, target: Path) -> Path:
        """Where a target is made before it is there; what an ended attempt left is removed."""
        place = self._aside("new", target)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        _remove(place)
        return place

    def publish(self, target: Path, series: str, key: str) -> None:
        """Put what was made at `staged` in its place, whole; an older export of ours gives way once it is there.

        Raises ConfigError OCCUPIED where somebody else has put something there meanwhile.
        """
        staged, old = self._aside("new", target), self._aside("old", target)
        if self.state(target, key) == "foreign":
            raise ConfigError("OCCUPIED", f"{target.name} is not as voxbook wrote it")
        sync_tree(staged)
        self._write({"target": self._name(target), "series": series, "key": key, "look": _look(staged)})
        fault_point("export.announced")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():  # a folder does not give way in one step
            target.rename(old)
            fault_point("export.between")
        staged.replace(target)
        sync_folder(target.parent)
        _remove(old)

    def forget(self, series: Collection[str]) -> int:
        """Remove the exports of these series, changed ones too, and every word of them; returns how many there were."""
        gone = 0
        for name in list(self._known):
            if any(entry["series"] in series for entry in self._known[name]):
                gone += os.path.lexists(self.root / name)
                _remove(self.root / name)
                self._prune((self.root / name).parent)
                del self._known[name]
        draft = self.root / f"{LEDGER}.part"
        lines = [json.dumps(entry) + "\n" for entries in self._known.values() for entry in entries]
        draft.write_text("".join(lines))
        sync_tree(draft)
        draft.replace(self.path)
        sync_folder(self.root)
        return gone

    def _prune(self, folder: Path) -> None:
        """Folders of BIDS name the patient, so they go too where nothing is left in them."""
        with contextlib.suppress(OSError):  # not empty, or not there
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def _read(self) -> None:
        text = self.path.read_text() if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a power cut; the next line must not be lost with this one
            with self.path.open("a") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if {"series", "key", "look"} <= entry.keys() and not Path(entry["target"]).is_absolute():
                    self._known.setdefault(entry["target"], []).append(entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut off by the end of a run

    def _write(self, entry: dict[str, Any]) -> None:
        self._known.setdefault(entry["target"], []).append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _sweep(self) -> None:
        """What an ended run left half-way: an old export whose place is empty goes back, the rest goes."""
        for name in self._known:
            old, target = self._aside("old", self.root / name), self.root / name
            if os.path.lexists(old) and not os.path.lexists(target):
                old.rename(target)
        _remove(self.root / STAGED)

    def _aside(self, kind: str, target: Path) -> Path:
        return self.root / STAGED / f"{kind}-{self._name(target).replace(os.sep, '_')}"

    def _name(self, target: Path) -> str:
        return str(target.relative_to(self.root))


def forget_exports(root: Path, series: Collection[str]) -> int:
    """Remove the exports of series from every ledger's folder below `root`; returns how many.

    Raises TransientError LEASED where an export is under way.
    """
    gone = 0
    for folder, _, files in os.walk(root):
        if LEDGER in files:
            with Ledger(Path(folder)) as ledger:
                gone += ledger.forget(series)
    return gone


def _look(path: Path) -> Look:
    """Number of files, bytes, newest change in nanoseconds; of a folder all files in it."""
    if path.is_symlink() or not path.is_dir():
        found = [path.lstat()]
    else:
        found = [one.lstat() for one in path.rglob("*") if not one.is_dir()]
    return [len(found), sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)

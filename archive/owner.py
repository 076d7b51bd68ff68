"""Which process holds something, and whether that process still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Owner:
    """One process of one boot of one machine; pids repeat, so the start time tells two holders of one pid apart.

    host: hostname and pid namespace, hashed to 12 hex (two containers of one name are two hosts).
    boot_id: 12 hex, another after every restart. started: clock ticks since boot, as text.
    """

    host: str
    boot_id: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> Owner:
        """The process that asks."""
        pid = os.getpid()
        return cls(_host(), _boot_id(), pid, _started(pid))

    def alive(self) -> bool | None:
        """Whether it lives; None where that cannot be seen from here, as it is on another host."""
        if self.host != _host():
            return None
        return self.boot_id == _boot_id() and _started(self.pid) == self.started

    def tag(self) -> str:
        """One word for a file name; `from_tag` reads it."""
        return f"{self.host}.{self.boot_id}.{self.pid}.{self.started}"

    @classmethod
    def from_tag(cls, tag: str) -> Owner | None:
        """Read what `tag` wrote (anything after it is ignored); None when it is something else."""
        parts = tag.split(".")
        if len(parts) < 4 or not parts[2].isdigit():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _host() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return _short(f"{socket.gethostname()}\0{namespace}")


@lru_cache(maxsize=1)
def _boot_id() -> str:
    try:
        return _short(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except OSError:
        return _short(str(int(psutil.boot_time())))


def _started(pid: int) -> str:
    """Start time of a process, or an empty string when there is none; a zombie counts as none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except (ProcessLookupError, PermissionError):
        return ""
    try:  # no /proc: macOS, Windows
        return str(int(psutil.Process(pid).create_time() * 1000))
    except psutil.Error:
        return ""

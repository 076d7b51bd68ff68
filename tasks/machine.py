"""What this machine lets a process have: cores, memory and GPUs, within the limits of its control group."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
WORKER_BYTES = 2**30  # what a worker needs at the least: torch, a model, its windows


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (version 2, then 1)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, own if quota is None else min(own, int(quota)))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's where that is less."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(name)
        if text is not None and text.isdigit():
            limits.append(int(text))
    return min(limits)


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold, one entry per GPU; torch is not imported for it.

    As that variable says where it is set; else the UUIDs that nvidia-smi lists, MIG slices in place of their GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return uuids(listed)


def uuids(listed: str) -> list[str]:
    """UUIDs from the output of `nvidia-smi -L`: of MIG slices where a GPU has some, else of the GPU."""
    found: list[str] = []
    for line in listed.splitlines():
        name = line.partition("UUID: ")[2].rstrip(")").strip()
        if name.startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        if name:
            found.append(name)
    return found


def local_workers(*, gpu: bool) -> int:
    """Processes of one thread that this machine carries: one per core as far as memory goes.

    gpu: of a stage that computes on a GPU where there is one. Its workers then wait for the device and not for a core,
    so there is one per GPU.
    """
    devices = gpus() if gpu else []
    return len(devices) or max(1, min(cores(), memory_bytes() // WORKER_BYTES))


def _quota() -> float | None:
    text = _read("cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
        return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
    quota, period = _read("cpu/cpu.cfs_quota_us") or "", _read("cpu/cpu.cfs_period_us") or ""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None  # -1: no limit


def _read(name: str) -> str | None:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return None

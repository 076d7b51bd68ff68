"""How long this machine would take: one series of a group is really read, stored, encoded and certified, and timed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archive.errors import VoxbookError
from archive.plans import SeriesPlan
from flows.survey import Found

MOST_VOXELS = 8 * 2**20  # of the series that is timed: seconds, not minutes
CERTIFY_SLICES = 24
QUICK_SECONDS = 2.0  # what took less is timed again: the first call of a library loads it


@dataclass(frozen=True)
class Cost:
    """What one group will take.

    volume_bytes, code_bytes: expected on disk; codes at their fixed length, so at the most before certificates.
    ingest_seconds, encode_seconds: with `workers` side by side; None, as volume_bytes, where nothing was timed.
    basis: in words, what the figures rest on.
    """

    group: str
    preset: str
    volume_bytes: int | None
    code_bytes: int
    ingest_seconds: float | None
    encode_seconds: float | None
    workers: int
    device: str
    basis: str


@dataclass(frozen=True)
class _Timed:
    voxels: int
    stored_bytes: int
    reading: float
    encoding: float
    device: str


def cost_of(found: Found, scratch: Path) -> Cost:
    """Time the largest series of a group that is small enough, and multiply by voxels; `scratch` is left as it was.

    scratch: a folder on the disk that the workspace lies on.
    """
    from model.config import resolve
    from tasks.machine import local_workers

    config = resolve(found.preset)
    cell = config.downsample[0] * config.downsample[1] * config.downsample[2]
    bits = config.code_levels * (config.codebook_size - 1).bit_length() / cell / config.channels
    code_bytes = int(found.voxels * bits / 8)
    workers = local_workers(gpu=True)
    plan = _to_time(found)
    timed, reason = None, "its smallest series is too large for a short look"
    if plan is not None:
        try:
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=scratch) as folder:
                timed = _time(plan, found.preset, Path(folder))
        except VoxbookError as error:
            reason = f"the series tried cannot be used ({error.code})"
        except OSError:
            reason = "the workspace's folder could not be written"
    if timed is None:
        return Cost(found.group, found.preset, None, code_bytes, None, None, workers, "", f"not timed: {reason}")
    share = found.voxels / timed.voxels
    who = f"{workers} worker{'s' if workers != 1 else ''} on {timed.device}"
    return Cost(
        group=found.group,
        preset=found.preset,
        volume_bytes=int(timed.stored_bytes * share),
        code_bytes=code_bytes,
        ingest_seconds=timed.reading * share / workers,
        encode_seconds=timed.encoding * share / workers,
        workers=workers,
        device=timed.device,
        basis=f"one series of {timed.voxels / 1e6:.2g} million voxels timed here, times {share:.3g}, by {who}",
    )


def _to_time(found: Found) -> SeriesPlan | None:
    """The largest series that is not too large."""
    fit = [plan for plan in found.plans if 0 < plan.voxels <= MOST_VOXELS]
    return max(fit, key=lambda plan: plan.voxels, default=None)


def _time(plan: SeriesPlan, preset: str, folder: Path) -> _Timed:
    """Read, store, encode and certify one series with an untrained model: as many operations as a trained one."""
    import torch

    from archive import volumes
    from archive.series import read_series
    from model.certificate import certify
    from model.config import intensity_for, resolve
    from model.decoded import DecodedVolume
    from model.device import pick
    from model.encode import encode_volume
    from model.jobs import sample_of
    from model.vqvae import VQVAE

    started = time.monotonic()
    volume = read_series(plan)
    committed = volumes.write(volume, folder, "probe")
    reading = time.monotonic() - started
    stored = sum(file.stat().st_size for file in (folder / "probe" / committed.version).rglob("*") if file.is_file())
    torch.manual_seed(0)
    mapping = intensity_for(volume.modality, volume.channels, volume.units)
    model = VQVAE(resolve(preset, channels=volume.channels, intensity=mapping)).eval()
    device = pick("auto")
    sample = sample_of("auto", CERTIFY_SLICES, device.type)
    with _one_thread(device.type):
        encoding = 0.0
        for _ in range(2):
            started = time.monotonic()
            codes = encode_volume(model, volume, device=str(device))
            certify(volume, DecodedVolume(model, codes), codes, codes.array.nbytes, sample=sample)
            encoding = time.monotonic() - started
            if encoding > QUICK_SECONDS:
                break
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return _Timed(plan.voxels, stored, reading, encoding, name)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """As a worker on a CPU computes."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_bytes(folder: Path) -> int:
    """Free space that a user has where `folder` lies, or will lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    facts = os.statvfs(there)
    return facts.f_bavail * facts.f_frsize

"""A worker process' share of an archive: volumes read ahead, encoded in mixed batches, stored behind, and certified.

Apart from the tasks that send it, so that a worker starts without importing Prefect.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archive import codes as code_store
from archive import tables
from archive.codes import Codes, StoredCodes
from archive.commit import Committed, remove_tree
from archive.errors import InputError, MismatchError, StoreError, TransientError, describe
from archive.settings import GateSettings
from archive.volume import Volume
from archive.volumes import StoredVolume

if TYPE_CHECKING:  # torch takes seconds to import, and the driver sends jobs without it
    from model.encode import Encoded
    from model.vqvae import VQVAE

logger = logging.getLogger("voxbook")

WRITERS = 8  # threads that store codes: nearly all of it is waiting for the disk
HELD_SHARE = 8  # a volume up to this part of memory_bytes is read whole, once; half of them may wait for a certificate


@dataclass(frozen=True)
class EncodeJob:
    """One series to encode: where its volume lies, with which model and settings; small and picklable.

    certify, certify_slices, memory_bytes: as in archive.settings.EncodeSettings.
    """

    series: str
    voxels: int
    volume: Path
    source_version: str
    source_digest: str
    codes: Path
    models: Path
    model: str
    profile: str
    levels: int | None
    gate: GateSettings
    settings_digest: str
    device: str
    certify: str = "auto"
    certify_slices: int = 24
    memory_bytes: int = 2**28


@dataclass(frozen=True)
class EncodeRecord:
    """What became of one job: a committed encoding with its certificate, or the reason code why there is none."""

    job: EncodeJob
    committed: Committed | None
    certificate: dict[str, Any] | None
    code: str = ""


def encode_batch(jobs: Sequence[EncodeJob]) -> list[EncodeRecord]:
    """Encode a batch in a worker process; a series that cannot be encoded is its own record. In the jobs' order.

    All jobs are of one model, profile and number of levels, as a stage sends them.
    """
    with _one_thread():
        found = {record.job.series: record for record in _encode_all(jobs)}
    return [found[job.series] for job in jobs]


def _encode_all(jobs: Sequence[EncodeJob]) -> Iterator[EncodeRecord]:
    """Records as they are ready: the network works on one series while others are read and stored."""
    from model.bundle import load
    from model.encode import Request, encode_volumes

    first = jobs[0]
    model = load(first.models / first.model, first.model, device=first.device)  # kept per process
    # One setting for all groups, whose models have more levels or fewer.
    levels = None if first.levels is None else min(first.levels, model.config.code_levels)
    by_name = {job.series: job for job in jobs}
    requests = (Request(job.series, partial(_open, job), job.source_version, job.source_digest) for job in jobs)
    encoded = encode_volumes(
        model,
        requests,
        profile=first.profile,
        levels=levels,
        model_id=first.model,
        ahead_bytes=first.memory_bytes // 2,
    )
    storing: deque[tuple[EncodeJob, Encoded, Future[tuple[Committed, Codes]]]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="store-codes") as writers:
        try:
            for item in encoded:
                job = by_name[str(item.name)]
                if item.codes is None:
                    yield _refused(job, item.error)
                    continue
                storing.append((job, item, writers.submit(_store, item.codes, job)))
                held = sum(one.volume.voxels.nbytes for _, one, _ in storing if isinstance(one.volume, Volume))
                while storing and (storing[0][2].done() or len(storing) > WRITERS or held > first.memory_bytes // 2):
                    held = 0  # one at a time is enough: the next series adds one
                    yield _certified(model, *storing.popleft())
            while storing:
                yield _certified(model, *storing.popleft())
        finally:
            encoded.close()  # type: ignore[attr-defined]  # a generator: its reader ends with it


def _open(job: EncodeJob) -> Any:
    """The stored volume, its voxels in memory where they are few: a chunk is then decompressed once."""
    stored = StoredVolume(job.volume)
    few = job.voxels * stored.dtype.itemsize <= job.memory_bytes // HELD_SHARE
    return stored.read() if few else stored


def _store(codes: Codes, job: EncodeJob) -> tuple[Committed, Codes]:
    """Commit codes. Writing decodes every chunk and reads every file again, so these codes are what a reader gets."""
    return code_store.write(codes, job.codes, job.series), codes


def _certified(model: VQVAE, job: EncodeJob, item: Encoded, stored: Future[tuple[Committed, Codes]]) -> EncodeRecord:
    from model.ladder import climb
    from model.metrics import histogram
    from model.source import as_source
    from model.unlike import unlike

    volume = item.volume

    def store(codes: Codes, max_error: float | None) -> tuple[Committed, Codes]:
        committed = code_store.write(codes, job.codes, job.series, as_source(volume), max_error)
        return committed, StoredCodes(job.codes / job.series / committed.version).read()

    try:
        found = climb(
            model,
            volume,
            stored.result(),
            job.gate,
            store,
            lambda committed: _dropped(job.codes / job.series / committed.version),
            sample=sample_of(job.certify, job.certify_slices, model.device.type),
            seed=f"{job.series} {job.source_version}",
        )
        counts = histogram(found.codes.array, found.codes.codebook_size)
        own = model.config.levels  # corrections are mostly nothing, whatever the scanner
        distances = None if item.distances is None else item.distances[:own]
        score = unlike(counts[:own], distances, tables.of_model(job.models, job.model))
        certificate = replace(found.certificate, unlike=score.codes, unlike_distances=score.distances)
    except Exception as error:
        return _refused(job, error)
    return EncodeRecord(job, found.committed, certificate.as_dict())


def _dropped(folder: Path) -> None:
    """Remove a version that no row names; what stays of it is an orphan, which gc removes."""
    with suppress(OSError):
        remove_tree(folder)


def sample_of(certify: str, slices: int, device: str) -> int | None:
    """Most slices to measure per series; None is all: where asked for, and on a GPU, which decodes them quickly."""
    return None if certify == "full" or (certify == "auto" and device == "cuda") else slices


def _refused(job: EncodeJob, error: Exception | None) -> EncodeRecord:
    """The record of a series that cannot be encoded; raises what no other series would survive either."""
    assert error is not None  # there are no codes
    if isinstance(error, InputError):
        return EncodeRecord(job, None, None, error.code)
    if isinstance(error, StoreError) and error.code in ("DAMAGED", "MISSING"):
        return EncodeRecord(job, None, None, error.code)
    if isinstance(error, (MismatchError, TransientError, StoreError)):
        raise error  # the model or the disk, not this series
    # One odd volume must not stop ten thousand others; it is listed, not hidden.
    logger.warning("series %s is not encoded: %s; the others go on", job.series, describe(error))
    return EncodeRecord(job, None, None, "UNEXPECTED")


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per worker: cores are shared by processes, and codes must not depend on how many one has."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

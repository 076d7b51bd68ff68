"""Encode series in batches: codes and certificates made in workers, rows written here."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import codes as code_store
from archive.catalog_schema import EncodingCommit, ModelRow, SeriesRow
from archive.commit import Committed
from archive.errors import InputError, MismatchError, StoreError, TransientError, describe
from archive.settings import GateSettings
from archive.volumes import StoredVolume
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.records import encoding_commit
from tasks.stage import Stage, recorded

logger = logging.getLogger("voxbook")


@dataclass(frozen=True)
class EncodeJob:
    """One series to encode: where its volume lies, with which model and settings; small and picklable."""

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


@dataclass(frozen=True)
class EncodeRecord:
    """What became of one job: a committed encoding with its certificate, or the reason code why there is none."""

    job: EncodeJob
    committed: Committed | None
    certificate: dict[str, Any] | None
    code: str = ""


@dataclass(frozen=True)
class EncodeCounts:
    """Series by what became of them; series = encoded + failed + unchanged + leased."""

    series: int = 0
    encoded: int = 0
    unchanged: int = 0
    failed: int = 0
    below_gate: int = 0
    damaged: int = 0
    leased: int = 0
    voxels: int = 0
    bytes_out: int = 0

    def __add__(self, other: EncodeCounts) -> EncodeCounts:
        return EncodeCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def settings_digest(profile: str, levels: int | None, gate: GateSettings) -> str:
    """16 hex that name the settings an encoding was made with: part of its identity."""
    text = json.dumps([profile, levels, gate.model_dump()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_jobs(stage: Stage, rows: Sequence[SeriesRow], model: ModelRow) -> tuple[list[EncodeJob], int]:
    """Jobs for the series of one group that have no codes of this source version, model and settings; how many have."""
    settings, workspace = stage.settings, stage.workspace
    gate = settings.gate_of(model.group)
    digest = settings_digest(settings.encode.profile, settings.encode.levels, gate)
    missing = {row.series for row in stage.catalog.to_encode(model.group, model.model, digest)}
    todo = [row for row in rows if row.series in missing]
    jobs = [
        EncodeJob(
            series=row.series,
            voxels=row.voxels,
            volume=workspace.volumes / row.series / row.volume_version,
            source_version=row.volume_version,
            source_digest=stage.catalog.version(row.volume_version).manifest_digest,
            codes=workspace.codes,
            models=workspace.models,
            model=model.model,
            profile=settings.encode.profile,
            levels=settings.encode.levels,
            gate=gate,
            settings_digest=digest,
            device=settings.encode.device,
        )
        for row in todo
    ]
    return jobs, len(rows) - len(jobs)


@recorded("encode-group", "encode {group}")
def encode_group(stage: Stage, group: str, rows: Sequence[SeriesRow], model: ModelRow) -> EncodeCounts:
    """Encode what is new or stale of one group; every series is committed as soon as its batch is done."""
    gate = stage.settings.gate_of(group)
    encode = stage.settings.encode
    stage.catalog.adopt_encodings(group, model.model, settings_digest(encode.profile, encode.levels, gate))
    jobs, _ = plan_jobs(stage, rows, model)
    granted = set(stage.leases.acquire([f"series:{job.series}" for job in jobs]))
    leased = len(jobs) - len(granted)
    # Planned again under the leases: another run may have finished some of them meanwhile.
    todo = [job for job in plan_jobs(stage, rows, model)[0] if f"series:{job.series}" in granted]
    counts = EncodeCounts(series=len(rows), unchanged=len(rows) - leased - len(todo), leased=leased)
    done_voxels, all_voxels = 0, sum(job.voxels for job in todo)
    batches = batches_by_size(todo, _voxels, stage.settings.encode.batch_voxels, stage.cluster.workers)
    for done in stage.cluster.run(encode_batch, batches):
        records = done.result
        if records is None:
            records = [EncodeRecord(job, None, None, "WORKER_KILLED") for job in done.items]
        committed = stage.catalog.commit_encodings([_commit(record) for record in records if record.committed])
        lost = {outcome.series for outcome in committed if outcome.status == "lost"}
        for record in records:
            if record.code:
                stage.catalog.set_reason([record.job.series], record.code)
        stage.leases.release([f"series:{record.job.series}" for record in records])
        for record in records:
            counts += EncodeCounts(unchanged=1) if record.job.series in lost else _count(record)
            stage.reasons.update(_reasons(record))
            done_voxels += record.job.voxels
        advance(f"encode {group}", done_voxels, all_voxels, "voxels")
    return counts


def encode_batch(jobs: Sequence[EncodeJob]) -> list[EncodeRecord]:
    """Encode a batch in a worker process; a series that cannot be encoded is its own record."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # codes must not depend on how many cores a worker happens to have
    try:
        return [_encode_safely(job) for job in jobs]
    finally:
        torch.set_num_threads(threads)


def _encode_safely(job: EncodeJob) -> EncodeRecord:
    try:
        return encode_series(job)
    except (MismatchError, TransientError):
        raise  # the model or the disk, not this series: no other one would fare better
    except InputError as error:
        return EncodeRecord(job, None, None, error.code)
    except StoreError as error:
        if error.code not in ("DAMAGED", "MISSING"):
            raise
        return EncodeRecord(job, None, None, error.code)
    except Exception as error:  # one odd volume must not stop ten thousand others; it is listed, not hidden
        logger.warning("series %s: %s", job.series, describe(error))
        return EncodeRecord(job, None, None, "UNEXPECTED")


def encode_series(job: EncodeJob) -> EncodeRecord:
    """Volume to codes to store, then back from the store: the certificate is of what a reader will get."""
    from model.bundle import load
    from model.certificate import certify
    from model.decode import decode_codes
    from model.encode import encode_volume

    model = load(job.models / job.model, job.model, device=job.device)  # kept per process
    volume = StoredVolume(job.volume)
    codes = encode_volume(
        model,
        volume,
        profile=job.profile,
        levels=job.levels,
        model_id=job.model,
        source_version=job.source_version,
        source_digest=job.source_digest,
    )
    committed = code_store.write(codes, job.codes, job.series)
    stored = code_store.StoredCodes(job.codes / job.series / committed.version).read()
    certificate = certify(volume, decode_codes(model, stored), stored, committed.bytes, job.gate)
    return EncodeRecord(job, committed, certificate.as_dict())


def _commit(record: EncodeRecord) -> EncodingCommit:
    job = record.job
    assert record.committed is not None and record.certificate is not None  # the caller has looked
    return encoding_commit(
        job.series,
        job.source_version,
        job.model,
        job.settings_digest,
        job.profile,
        record.committed,
        record.certificate,
    )


def _count(record: EncodeRecord) -> EncodeCounts:
    if record.certificate is None:
        damaged = record.code in ("DAMAGED", "MISSING")
        return EncodeCounts(failed=1, damaged=int(damaged))
    passed = bool(record.certificate["passed"])
    size = record.committed.bytes if record.committed else 0
    return EncodeCounts(
        encoded=int(passed),
        failed=int(not passed),
        below_gate=int(not passed),
        voxels=record.job.voxels,
        bytes_out=size,
    )


def _reasons(record: EncodeRecord) -> list[str]:
    return [record.code] if record.code else list((record.certificate or {}).get("reasons", ()))


def _voxels(job: EncodeJob) -> int:
    return job.voxels

"""Encode series in batches: codes and certificates made in workers, rows written here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from archive.catalog_schema import EncodingCommit, ModelRow, SeriesRow
from archive.settings import GateSettings
from model.jobs import EncodeJob, EncodeRecord, encode_batch
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.records import encoding_commit
from tasks.stage import Stage, recorded


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


def plan_jobs(
    stage: Stage, rows: Sequence[SeriesRow], model: ModelRow, *, any_model: bool = False
) -> tuple[list[EncodeJob], int]:
    """Jobs for the series of one group that have no codes of this source version, model and settings; how many have.

    any_model: codes by another model that was asked for since the last promotion will do.
    """
    settings, workspace = stage.settings, stage.workspace
    gate = settings.gate_of(model.group)
    digest = settings_digest(settings.encode.profile, settings.encode.levels, gate)
    missing = {row.series for row in stage.catalog.to_encode(model.group, model.model, digest, any_model=any_model)}
    todo = [row for row in rows if row.series in missing]
    digests = stage.catalog.manifest_digests(row.volume_version for row in todo)
    todo = [row for row in todo if row.volume_version in digests]  # not what was forgotten meanwhile
    jobs = [
        EncodeJob(
            series=row.series,
            voxels=row.voxels,
            volume=workspace.volumes / row.series / row.volume_version,
            source_version=row.volume_version,
            source_digest=digests[row.volume_version],
            codes=workspace.codes,
            models=workspace.models,
            model=model.model,
            profile=settings.encode.profile,
            levels=settings.encode.levels,
            gate=gate,
            settings_digest=digest,
            device=settings.encode.device,
            certify=settings.encode.certify,
            certify_slices=settings.encode.certify_slices,
            memory_bytes=settings.encode.memory_bytes,
        )
        for row in todo
    ]
    return jobs, len(rows) - len(jobs)


@recorded("encode-group", "encode {group}")
def encode_group(
    stage: Stage,
    group: str,
    rows: Sequence[SeriesRow],
    model: ModelRow,
    *,
    any_model: bool = False,
    beside: bool = False,
) -> EncodeCounts:
    """Encode what is new or stale of one group; every series is committed as soon as its batch is done.

    any_model: codes by another model that was asked for since the last promotion will do. beside: readers go on with
    the codes that they have.
    """
    gate = stage.settings.gate_of(group)
    encode = stage.settings.encode
    digest = settings_digest(encode.profile, encode.levels, gate)
    if not beside:
        names = [row.series for row in rows]
        stage.catalog.adopt_encodings(group, model.model, digest, names=names, any_model=any_model)
    jobs, _ = plan_jobs(stage, rows, model, any_model=any_model)
    granted = set(stage.leases.acquire([f"series:{job.series}" for job in jobs]))
    leased = len(jobs) - len(granted)
    # Planned again under the leases: another run may have finished some of them meanwhile.
    planned, _ = plan_jobs(stage, rows, model, any_model=any_model)
    todo = [job for job in planned if f"series:{job.series}" in granted]
    stage.leases.release(granted - {f"series:{job.series}" for job in todo})
    counts = EncodeCounts(series=len(rows), unchanged=len(rows) - leased - len(todo), leased=leased)
    done_series, done_voxels, all_voxels = 0, 0, sum(job.voxels for job in todo)
    if todo:
        advance(f"encode {group}", 0, all_voxels, "voxels", f"0 of {len(todo)} series")
    batches = batches_by_size(todo, _voxels, stage.settings.encode.batch_voxels, stage.cluster.workers)
    for done in stage.cluster.run(encode_batch, batches):
        records = done.result
        if records is None:
            records = [EncodeRecord(job, None, None, "WORKER_KILLED") for job in done.items]
        commits = [_commit(record) for record in records if record.committed]
        committed = stage.catalog.commit_encodings(commits, beside=beside)
        lost = {outcome.series for outcome in committed if outcome.status == "lost"}
        for code in {record.code for record in records if record.code} if not beside else ():
            stage.catalog.set_reason([record.job.series for record in records if record.code == code], code)
        stage.leases.release([f"series:{record.job.series}" for record in records])
        for record in records:
            counts += EncodeCounts(unchanged=1) if record.job.series in lost else _count(record)
            stage.reasons.update(_reasons(record))
            done_voxels += record.job.voxels
        done_series += len(records)
        advance(f"encode {group}", done_voxels, all_voxels, "voxels", f"{done_series} of {len(todo)} series")
    return counts


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

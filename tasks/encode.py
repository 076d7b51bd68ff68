"""Encode series in batches: codes and certificates made in workers, rows written here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from archive.catalog_conditions import Wanted
from archive.catalog_queries import PAGE
from archive.catalog_schema import EncodingCommit, ModelRow, QuarantineRow, SeriesRow
from archive.settings import GateSettings
from model.jobs import EncodeJob, EncodeRecord, encode_batch
from tasks.cluster import batch_limit, cut
from tasks.progress import advance
from tasks.records import encoding_commit
from tasks.stage import Stage, recorded

LASTING = {"NON_FINITE", "WORKER_KILLED"}  # as long as volume, model and settings are the same; `--series` tries anyway


@dataclass(frozen=True)
class EncodeCounts:
    """Series by what became of them; series = encoded + failed + unchanged + refused + leased.

    adopted: those of the unchanged that now point at codes that were there already.
    refused: tried before for the same codes and refused by a reason that lasts (LASTING), so not tried again.
    """

    series: int = 0
    encoded: int = 0
    unchanged: int = 0
    adopted: int = 0
    refused: int = 0
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


def wanted_of(stage: Stage, model: ModelRow, *, any_model: bool = False) -> Wanted:
    """The codes that the settings of this run ask for of a model's group.

    any_model: codes by another model that was asked for since the last promotion will do.
    """
    encode = stage.settings.encode
    digest = settings_digest(encode.profile, encode.levels, stage.settings.gate_of(model.group))
    return Wanted(model.group, model.model, digest, any_model)


def plan_jobs(stage: Stage, rows: Sequence[SeriesRow], model: ModelRow) -> list[EncodeJob]:
    """A job for each series but those that were forgotten meanwhile."""
    settings, workspace = stage.settings, stage.workspace
    digests = stage.catalog.manifest_digests(row.volume_version for row in rows)
    return [
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
            gate=settings.gate_of(model.group),
            settings_digest=wanted_of(stage, model).settings_digest,
            device=settings.encode.device,
            certify=settings.encode.certify,
            certify_slices=settings.encode.certify_slices,
            memory_bytes=settings.encode.memory_bytes,
        )
        for row in rows
        if row.volume_version in digests
    ]


@recorded("encode-group", "encode {group}")
def encode_group(
    stage: Stage,
    group: str,
    model: ModelRow,
    names: Sequence[str] | None = None,
    *,
    any_model: bool = False,
    beside: bool = False,
) -> EncodeCounts:
    """Encode what is new or stale of one group, or of those named of it; each is committed as soon as its batch is done.

    any_model: codes by another model that was asked for since the last promotion will do. beside: readers go on with
    the codes that they have. Memory does not grow with the group: series are planned and leased a page at a time.
    """
    encode, catalog = stage.settings.encode, stage.catalog
    wanted = replace(wanted_of(stage, model, any_model=any_model), again=names is not None)
    before, kept = catalog.count_refused(wanted)
    adopted = 0
    if not beside:
        moved = catalog.adopt_encodings(group, model.model, wanted.settings_digest, names=names, any_model=any_model)
        adopted = len(moved)
    there = catalog.count_series(names, group=group).get(group, 0)
    left, voxels = catalog.left_to_encode(wanted, names)
    refused = before if names is None else 0
    skipped = _Skipped(unchanged=there - left - refused)
    counts, done_series, done_voxels = EncodeCounts(), 0, 0
    if left:
        advance(f"encode {group}", 0, voxels, "voxels", f"0 of {left} series")
    limit = batch_limit(voxels, encode.batch_voxels, stage.cluster.workers)
    batches = cut(_granted(stage, model, wanted, names, skipped), _voxels, limit, encode.batch_series)
    for done in stage.cluster.run(encode_batch, batches):
        records = done.result
        if records is None:
            records = [EncodeRecord(job, None, None, "WORKER_KILLED") for job in done.items]
        commits = [_commit(record) for record in records if record.committed]
        committed = catalog.commit_encodings(commits, beside=beside)
        lost = {outcome.series for outcome in committed if outcome.status == "lost"}
        for code in {record.code for record in records if record.code} if not beside else ():
            catalog.set_reason([record.job.series for record in records if record.code == code], code)
        lasting = [_refusal(record, wanted) for record in records if record.code in LASTING]
        if kept or lasting:
            catalog.set_refused(lasting, [record.job.series for record in records], stage.run)
        stage.leases.release([f"series:{record.job.series}" for record in records])
        for record in records:
            counts += EncodeCounts(unchanged=1) if record.job.series in lost else _count(record)
            stage.reasons.update(_reasons(record))
            done_voxels += record.job.voxels
        done_series += len(records)
        text = f"{done_series} of {left} series"
        advance(f"encode {group}", done_voxels, max(voxels - skipped.voxels, done_voxels), "voxels", text)
    return counts + EncodeCounts(
        series=there, unchanged=skipped.unchanged, adopted=adopted, refused=refused, leased=skipped.leased
    )


@dataclass
class _Skipped:
    """What a group's planning came past: series with codes already, series that another run works on."""

    unchanged: int
    leased: int = 0
    voxels: int = 0


def _granted(
    stage: Stage, model: ModelRow, wanted: Wanted, names: Sequence[str] | None, skipped: _Skipped
) -> Iterator[EncodeJob]:
    """Jobs under this run's leases, planned as far as workers have come; what is left out is added to `skipped`."""
    catalog, last = stage.catalog, ""
    while rows := catalog.to_encode(wanted, names, after=last, limit=PAGE):
        last = rows[-1].series
        granted = stage.leases.acquire([f"series:{row.series}" for row in rows])
        # Asked again under the leases: another run may have finished some of them meanwhile.
        still = catalog.to_encode(wanted, [resource.removeprefix("series:") for resource in granted])
        jobs = plan_jobs(stage, still, model)
        mine = {f"series:{job.series}" for job in jobs}
        stage.leases.release(set(granted) - mine)
        skipped.leased += len(rows) - len(granted)
        skipped.unchanged += len(granted) - len(jobs)
        skipped.voxels += sum(row.voxels for row in rows if f"series:{row.series}" not in mine)
        yield from jobs


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


def _refusal(record: EncodeRecord, wanted: Wanted) -> QuarantineRow:
    job = record.job
    return QuarantineRow(
        source=wanted.refusal(job.source_version),
        key=job.series,
        kind="series",
        code=record.code,
        files=0,
        numbers={"voxels": job.voxels},
        group=wanted.group,
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

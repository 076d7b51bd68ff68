"""Ingest one source: scan headers, spread the new series over the cluster, write the catalog in batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from archive.decoder import PixelDecoder
from archive.errors import InputError, TransientError, VoxbookError
from archive.ingest import IngestRecord, ingest_series, refusal
from archive.plans import FileEntry, Finding, ScanResult, SeriesPlan
from archive.scan import scan
from archive.settings import GroupSettings, IngestSettings
from tasks.cluster import batches_by_size
from tasks.progress import advance
from tasks.records import quarantine_row, volume_commit
from tasks.stage import Stage, describe

logger = logging.getLogger("voxbook")


@dataclass(frozen=True)
class IngestCounts:
    """What one source gave; found = ingested + unchanged + quarantined (+ leased by another run)."""

    found: int = 0
    ingested: int = 0
    unchanged: int = 0
    quarantined: int = 0
    leased: int = 0
    skipped: int = 0
    bytes_in: int = 0
    voxels: int = 0

    def __add__(self, other: IngestCounts) -> IngestCounts:
        return IngestCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@task(name="ingest-source", task_run_name="ingest {alias}", cache_policy=NO_CACHE, persist_result=False)
def ingest_source(stage: Stage, alias: str) -> IngestCounts:
    """Bring the catalog and the volume store up to date with one source; unchanged series are not opened."""
    try:
        found = scan_source(stage, alias)
    except InputError as error:  # an unmounted share must not keep the other sources from coming in
        return unreadable_source(stage, alias, error.code)
    changed = new_plans(stage, alias, found.plans)
    granted = set(stage.leases.acquire([f"series:{plan.series}" for plan in changed]))
    leased = len(changed) - len(granted)
    # Asked again under the leases: another run may have finished some of them meanwhile.
    todo = [plan for plan in new_plans(stage, alias, changed) if f"series:{plan.series}" in granted]

    linkage = stage.workspace.linkage
    linkage.save_series(todo, alias)  # before the catalog: a series in the catalog can always be led back
    stage.catalog.seen([plan.series for plan in found.plans])

    findings: list[Finding] = list(found.findings)
    ingested = unchanged = voxels = bytes_in = 0
    work = partial(
        ingest_batch,
        volumes=stage.workspace.volumes,
        settings=stage.settings.ingest,
        groups=stage.settings.groups,
        digests=stage.catalog.known_digests(plan.series for plan in todo),
    )
    batches = batches_by_size(todo, _source_bytes, stage.settings.ingest.batch_bytes, stage.cluster.workers)
    for done in stage.cluster.run(work, batches):
        records = done.result
        if records is None:
            findings += [refusal(plan, "WORKER_KILLED") for plan in done.items]
            continue
        stage.catalog.commit_volumes([volume_commit(record, alias) for record in records if record.finding is None])
        stage.leases.release([f"series:{record.series}" for record in records])
        for record in records:
            if record.finding is not None:
                findings.append(record.finding)
                continue
            ingested += record.committed is not None
            unchanged += record.committed is None
            if record.committed is not None:
                bytes_in += record.source_bytes
                voxels += _voxels(record)
        advance("ingest", ingested + unchanged, len(todo), "series")

    refused = [quarantine_row(finding, alias) for finding in findings]
    # What another run holds is that run's to judge: its rows stay as they are.
    others = {plan.series for plan in changed} - {plan.series for plan in todo}
    known = {row.key for row in refused}
    refused += [row for row in stage.catalog.quarantine(alias) if row.key in others - known]
    stage.catalog.set_quarantine(alias, refused, stage.run)
    # Last: a file counts as known only once its series is in the catalog.
    linkage.save_entries(alias, {entry.path: entry.as_dict() for entry in found.entries})
    stage.reasons.update(finding.code for finding in findings)
    return IngestCounts(
        found=len(found.plans) + len(found.findings),
        ingested=ingested,
        unchanged=unchanged + len(found.plans) - leased - len(todo),
        quarantined=len(findings),
        leased=leased,
        skipped=sum(found.skipped.values()),
        bytes_in=bytes_in,
        voxels=voxels,
    )


def unreadable_source(stage: Stage, alias: str, code: str) -> IngestCounts:
    """A source that cannot be read at all is one quarantined item beside those it had."""
    finding = Finding(code=code, kind="file", key=stage.workspace.pseudonyms.file(alias, ""), files=0)
    kept = [row for row in stage.catalog.quarantine(alias) if row.key != finding.key]
    stage.catalog.set_quarantine(alias, [*kept, quarantine_row(finding, alias)], stage.run)
    stage.reasons[code] += 1
    return IngestCounts(found=1, quarantined=1)


def new_plans(stage: Stage, alias: str, plans: Sequence[SeriesPlan]) -> list[SeriesPlan]:
    """The plans whose files are not those that gave the stored, undamaged version."""
    fingerprints = stage.catalog.known_fingerprints(alias)
    return [plan for plan in plans if fingerprints.get(plan.series) != plan.fingerprint]


def scan_source(stage: Stage, alias: str) -> ScanResult:
    """Headers of one source as plans and findings; files that did not change since the last scan are not opened."""
    linkage = stage.workspace.linkage
    known = {path: FileEntry.from_dict(entry) for path, entry in linkage.entries(alias).items()}
    return scan(
        Path(linkage.path_of(alias)),
        alias=alias,
        pseudonyms=stage.workspace.pseudonyms,
        exclude=tuple(linkage.excluded(alias)),
        settings=stage.settings.ingest,
        known=known,
        progress=lambda done, total: advance("scan", done, total, "files"),
    )


def ingest_batch(
    plans: Sequence[SeriesPlan],
    *,
    volumes: Path,
    settings: IngestSettings,
    groups: dict[str, GroupSettings],
    digests: dict[str, str],
) -> list[IngestRecord]:
    """Read and store a batch of series in a worker process; what goes wrong with one is its own record."""
    records = []
    with PixelDecoder(settings) as decoder:
        for plan in plans:
            digest = digests.get(plan.series)
            try:
                records.append(_with_retry(plan, volumes, settings, groups, digest, decoder))
            except InputError as error:
                records.append(_refused(plan, error.code))
            except VoxbookError:
                raise  # the store itself is broken: no other series would fare better
            except Exception as error:  # one odd file must not stop ten thousand others; it is listed, not hidden
                logger.warning("series %s: %s", plan.series, describe(error))
                records.append(_refused(plan, "UNEXPECTED"))
    return records


def _with_retry(plan, volumes, settings, groups, digest, decoder) -> IngestRecord:
    try:
        return ingest_series(plan, volumes, settings, groups, digest, decoder)
    except TransientError:
        return ingest_series(plan, volumes, settings, groups, digest, decoder)


def _refused(plan: SeriesPlan, code: str) -> IngestRecord:
    return IngestRecord(
        series=plan.series,
        patient=plan.patient,
        group=plan.group,
        fingerprint=plan.fingerprint,
        source_bytes=plan.source_bytes,
        content_digest="",
        attributes={},
        committed=None,
        finding=refusal(plan, code),
        seconds=0.0,
    )


def _source_bytes(plan: SeriesPlan) -> int:
    return plan.source_bytes


def _voxels(record: IngestRecord) -> int:
    count = 1
    for size in record.attributes["shape"]:
        count *= size
    return count

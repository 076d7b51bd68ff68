"""What a worker process does with its share of a source: look at headers, read and store series.

Apart from the tasks that send them, so that a worker starts without importing Prefect (half of its start).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archive.commit import STAGE
from archive.containers import Unpacked
from archive.decoder import PixelDecoder
from archive.errors import InputError, TransientError, VoxbookError, describe
from archive.ingest import IngestRecord, ingest_series, refusal
from archive.plans import Filed, SeriesPlan
from archive.scan import look
from archive.settings import GroupSettings, IngestSettings
from archive.walk import Seen

logger = logging.getLogger("voxbook")


@dataclass(frozen=True)
class Job:
    """One series to read. stored: content digest of its version in the store, if any."""

    plan: SeriesPlan
    stored: str | None


def look_batch(
    files: Sequence[Seen], *, folder: Path, exclude: tuple[str, ...], settings: IngestSettings, volumes: Path
) -> list[Filed]:
    """Headers of some files, in a worker process; containers are unpacked beside the volume store's stages."""
    scratch = volumes / STAGE
    return [entry.filed() for seen in files for entry in look(folder, seen, exclude, settings, scratch)]


def ingest_batch(
    jobs: Sequence[Job], *, volumes: Path, settings: IngestSettings, groups: dict[str, GroupSettings]
) -> list[IngestRecord]:
    """Read and store a batch of series in a worker process; what goes wrong with one is its own record."""
    records = []
    root = Path(jobs[0].plan.root)
    with PixelDecoder(settings) as decoder, Unpacked(root, volumes / STAGE, settings.max_archive_bytes) as unpacked:
        with contextlib.suppress(InputError):  # each container gone through once; what is wrong shows again below
            unpacked.fetch(name for job in jobs for name in job.plan.files)
        for job in jobs:
            try:
                records.append(_with_retry(job, unpacked, volumes, settings, groups, decoder))
            except InputError as error:
                records.append(not_read(job.plan, error.code))
            except VoxbookError:
                raise  # the store itself is broken: no other series would fare better
            except Exception as error:  # one odd file must not stop ten thousand others; it is listed, not hidden
                logger.warning("series %s is not ingested: %s; the others go on", job.plan.series, describe(error))
                records.append(not_read(job.plan, "UNEXPECTED"))
    return records


def _with_retry(job, unpacked, volumes, settings, groups, decoder) -> IngestRecord:
    plan = unpacked.resolved(job.plan)
    try:
        record = ingest_series(plan, volumes, settings, groups, job.stored, decoder)
    except TransientError:
        record = ingest_series(plan, volumes, settings, groups, job.stored, decoder)
    if record.finding is not None:  # the source's own names, not those of what was unpacked
        record = replace(record, finding=replace(record.finding, paths=job.plan.files))
    return record


def not_read(plan: SeriesPlan, code: str) -> IngestRecord:
    """The record of a plan that was not read."""
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

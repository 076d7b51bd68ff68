"""One planned series into the volume store: read, place in a group, compare with what is there, commit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archive.commit import Committed
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.plans import Finding, SeriesPlan
from archive.series import read_series
from archive.settings import GroupSettings, IngestSettings
from archive.volume import Volume
from archive.volumes import content_digest, write


@dataclass(frozen=True)
class IngestRecord:
    """What became of one plan; small, picklable, free of identifiers.

    committed is None where the volume equals the stored one, or where it was refused (then finding says why).
    attributes: Volume.attributes() of what was read; empty when refused.
    """

    series: str
    patient: str
    group: str
    fingerprint: str
    source_bytes: int
    content_digest: str
    attributes: dict
    committed: Committed | None
    finding: Finding | None
    seconds: float


def ingest_series(
    plan: SeriesPlan,
    volumes: Path,
    settings: IngestSettings,
    groups: Mapping[str, GroupSettings],
    stored_digest: str | None,
    decoder: PixelDecoder | None,
) -> IngestRecord:
    """Read and store one series; a refused one comes back as a finding, never as an exception.

    stored_digest: content digest of the version in the store, if any; an equal volume is not written again.
    Raises StoreError where the store cannot be written.
    """
    started = time.monotonic()

    def record(digest="", attributes=None, group=plan.group, committed=None, finding=None) -> IngestRecord:
        return IngestRecord(
            series=plan.series,
            patient=plan.patient,
            group=group,
            fingerprint=plan.fingerprint,
            source_bytes=plan.source_bytes,
            content_digest=digest,
            attributes=attributes or {},
            committed=committed,
            finding=finding,
            seconds=time.monotonic() - started,
        )

    try:
        volume = read_series(plan, settings=settings, decoder=decoder)
    except InputError as error:
        return record(finding=refusal(plan, error.code, error.context))
    digest = content_digest(volume)
    group = group_of(volume, plan.group, groups)
    if digest == stored_digest:
        return record(digest, volume.attributes(), group)
    return record(digest, volume.attributes(), group, committed=write(volume, volumes, plan.series))


def refusal(plan: SeriesPlan, code: str, context: Mapping[str, object] | None = None) -> Finding:
    """The finding that stands for a whole planned series; only the numbers of the context are kept."""
    numbers = {key: float(value) for key, value in (context or {}).items() if isinstance(value, int | float)}
    return Finding(
        code=code,
        kind="series",
        key=plan.series,
        files=len(plan.files),
        modality=plan.modality,
        numbers=numbers,
        paths=plan.files,
    )


def group_of(volume: Volume, default: str, groups: Mapping[str, GroupSettings]) -> str:
    """The first configured group whose every `match` equals the volume's attribute, else the modality's own."""
    known = {**volume.acquisition, "modality": volume.modality}
    for name, group in groups.items():
        if group.match and all(known.get(key) == value for key, value in group.match.items()):
            return name
    return default

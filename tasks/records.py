"""From what workers send back to what the catalog takes."""

from __future__ import annotations

import math
from typing import Any

from archive.catalog_schema import EncodingCommit, QuarantineRow, VolumeCommit
from archive.commit import Committed
from archive.geometry import Geometry
from archive.ingest import IngestRecord
from archive.plans import Finding


def volume_commit(record: IngestRecord, source: str) -> VolumeCommit:
    """The catalog's entry for an ingested series."""
    attributes = record.attributes
    return VolumeCommit(
        series=record.series,
        patient=record.patient,
        group=record.group,
        modality=attributes["modality"],
        source=source,
        fingerprint=record.fingerprint,
        content_digest=record.content_digest,
        source_bytes=record.source_bytes,
        axes=attributes["axes"],
        shape=tuple(attributes["shape"]),
        dtype=attributes["dtype"],
        spacing_mm=Geometry.from_dict(attributes["geometry"]).spacing_mm,
        units=attributes["units"],
        voxels=math.prod(attributes["shape"]),
        committed=record.committed,
    )


def encoding_commit(
    series: str,
    source_version: str,
    model: str,
    settings_digest: str,
    profile: str,
    committed: Committed,
    certificate: dict[str, Any],
) -> EncodingCommit:
    """The catalog's entry for an encoded series; the first reason of a failed gate stands on the series."""
    reasons = certificate["reasons"]
    return EncodingCommit(
        series=series,
        source_version=source_version,
        model=model,
        settings_digest=settings_digest,
        profile=profile,
        committed=committed,
        psnr=certificate["psnr"],
        ssim=certificate["ssim"],
        passed=certificate["passed"],
        certificate=certificate,
        reason=reasons[0] if reasons else "",
    )


def quarantine_row(finding: Finding, source: str) -> QuarantineRow:
    """The catalog's row for something refused; its paths stay out of it."""
    return QuarantineRow(
        source=source,
        key=finding.key,
        kind=finding.kind,
        code=finding.code,
        files=finding.files,
        modality=finding.modality,
        numbers=finding.numbers,
        group=finding.modality.lower(),
    )

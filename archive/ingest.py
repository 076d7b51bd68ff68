"""One planned series into the volume store: read, place in a group, compare with what is there, commit."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archive.commit import Committed
from archive.decoder import PixelDecoder
from archive.dicom import read_slices
from archive.errors import InputError
from archive.geometry import Geometry
from archive.groups import matching
from archive.plans import Finding, SeriesPlan
from archive.series import read_series
from archive.settings import GroupSettings, IngestSettings
from archive.volume import Volume
from archive.volumes import content_digest, write, write_slices


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
        if plan.kind == "dicom" and "c" not in plan.details["axes"]:
            with contextlib.ExitStack() as stack:
                own = decoder or stack.enter_context(PixelDecoder(settings))
                volume, slices = _streamed(plan, own)
                digest, committed = write_slices(volume, slices, volumes, plan.series, stored_digest)
        else:
            volume = read_series(plan, settings=settings, decoder=decoder)
            digest = content_digest(volume)
            committed = None if digest == stored_digest else write(volume, volumes, plan.series)
    except InputError as error:
        return record(finding=refusal(plan, error.code, error.context))
    known = {**volume.acquisition, "modality": volume.modality}
    return record(digest, volume.attributes(), matching(known, plan.group, groups), committed)


def _streamed(plan: SeriesPlan, decoder: PixelDecoder) -> tuple[Volume, Iterator[np.ndarray]]:
    """A grey DICOM series as a Volume of zeros that take no memory, and its slices, read as they are asked for."""
    details = plan.details
    slices = read_slices(plan, decoder)
    first = next(slices)
    depth = Geometry.from_dict(details["geometry"]).shape
    shape = (len(details["frames"]), *depth) if details["axes"].startswith("t") else depth
    bits = details["bits_stored"] or first.dtype.itemsize * 8  # a table's output is as wide as its dtype
    voxels = np.broadcast_to(np.zeros((), first.dtype), shape)
    volume = Volume.from_attributes(voxels, {**details, "bits_stored": bits})
    return volume, itertools.chain([first], slices)


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

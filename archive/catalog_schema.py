"""What goes into the catalog and comes out of it: one frozen dataclass per kind of row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from archive.errors import StoreError

if TYPE_CHECKING:
    from archive.commit import Committed
    from archive.volume import Volume

SCHEMA = "2"
OLD_SCHEMA = "1"  # without superseded_at
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
STATES = ("ingested", "encoded", "quality_failed", "stale", "removed")
Row = TypeVar("Row")
_TUPLES = ("shape", "spacing_mm")


@dataclass(frozen=True)
class SourceRow:
    """A folder that series come from, by its alias; its path is in the linkage."""

    alias: str
    kind: str
    registered_at: str


@dataclass(frozen=True)
class SeriesRow:
    """One series: what it is, its state (STATES), and which versions are current.

    shape along `axes`; spacing_mm (z, y, x); voxels is the product of shape; reason is a code or empty.
    """

    series: str
    patient: str
    group: str
    modality: str
    state: str
    reason: str
    source: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    spacing_mm: tuple[float, float, float]
    units: str
    voxels: int
    volume_version: str
    codes_version: str | None
    first_seen: str
    last_seen: str

    @property
    def channels(self) -> int:
        """Colour channels; 1 for grey."""
        return self.shape[self.axes.index("c")] if "c" in self.axes else 1


@dataclass(frozen=True)
class VersionRow:
    """One immutable version of a volume. damage: DAMAGED or MISSING as `verify` last found it, else empty."""

    version: str
    series: str
    source: str
    fingerprint: str
    content_digest: str
    manifest_digest: str
    manifest: dict[str, list[Any]] = field(repr=False)
    bytes: int
    source_bytes: int
    created_at: str
    checked_at: str | None = None
    damage: str = ""


@dataclass(frozen=True)
class ModelRow:
    """One trained model; `current` is the one that `encode` uses for its group."""

    model: str
    group: str
    preset: str
    train_key: str = ""
    current: bool = False
    created_at: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodingRow:
    """One immutable version of codes: which source version, model and settings gave it."""

    version: str
    series: str
    source_version: str
    model: str
    settings_digest: str
    profile: str
    manifest_digest: str
    manifest: dict[str, list[Any]] = field(repr=False)
    bytes: int
    created_at: str
    checked_at: str | None = None
    damage: str = ""


@dataclass(frozen=True)
class CertificateRow:
    """The measured fidelity of one version of codes; `expired` once its source or the current model changed."""

    version: str
    series: str
    psnr: float | None
    ssim: float | None
    passed: bool
    data: dict[str, Any]
    expired: bool
    created_at: str


@dataclass(frozen=True)
class QuarantineRow:
    """Something refused, by a reason code; the times and the run are filled in by the catalog."""

    source: str
    key: str
    kind: str
    code: str
    files: int
    modality: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    group: str = ""
    first_seen: str = ""
    last_seen: str = ""
    run: str = ""


@dataclass(frozen=True)
class RunRow:
    """One run of a verb. state: running, completed, failed or any other word that `end_run` was given."""

    run: str
    verb: str
    started_at: str
    ended_at: str | None
    state: str
    host: str
    pid: int
    counts: dict[str, Any]


@dataclass(frozen=True)
class VolumeCommit:
    """A volume to enter into the catalog. committed: None where its content is the current version's, unwritten."""

    series: str
    patient: str
    group: str
    modality: str
    source: str
    fingerprint: str
    content_digest: str
    source_bytes: int
    axes: str
    shape: tuple[int, ...]
    dtype: str
    spacing_mm: tuple[float, float, float]
    units: str
    voxels: int
    committed: Committed | None

    @classmethod
    def of(
        cls,
        volume: Volume,
        committed: Committed | None,
        *,
        series: str,
        patient: str,
        group: str,
        source: str,
        fingerprint: str,
        content_digest: str,
        source_bytes: int,
    ) -> VolumeCommit:
        """What the catalog keeps of a volume; no array is held."""
        return cls(
            series=series,
            patient=patient,
            group=group,
            modality=volume.modality,
            source=source,
            fingerprint=fingerprint,
            content_digest=content_digest,
            source_bytes=source_bytes,
            axes=volume.axes,
            shape=tuple(volume.voxels.shape),
            dtype=volume.voxels.dtype.name,
            spacing_mm=volume.geometry.spacing_mm,
            units=volume.units,
            voxels=int(volume.voxels.size),
            committed=committed,
        )


@dataclass(frozen=True)
class EncodingCommit:
    """Codes and their certificate to enter into the catalog. reason: the gate's code where `passed` is False."""

    series: str
    source_version: str
    model: str
    settings_digest: str
    profile: str
    committed: Committed
    psnr: float | None
    ssim: float | None
    passed: bool
    certificate: dict[str, Any] = field(repr=False)
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one commit.

    version: the one that is current now ("" where the series is gone). status: ingested, unchanged; encoded,
    quality_failed, lost (another process was first, or the series or its source version is gone). Unless
    `version` is the one that was offered, the offered folder is an orphan that gc removes.
    """

    series: str
    version: str
    status: str


def row_of(kind: type[Row], found: Mapping[Any, Any]) -> Row:
    """A selected row as its dataclass; JSON lists that stand for tuples become tuples."""
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: tuple(found[name]) if name in _TUPLES else found[name] for name in names})


def series_of(name: str, found: list[SeriesRow]) -> SeriesRow:
    """The one of the first two series that begin like that. Raises StoreError NOT_FOUND."""
    if len(found) == 1 or (found and found[0].series == name):
        return found[0]
    if found:
        raise StoreError("NOT_FOUND", "several series begin like that", hint="give more of the pseudonym")
    raise StoreError("NOT_FOUND", "no series begins like that")


def model_of(found: list[ModelRow]) -> ModelRow:
    """The one of the first two models that begin like that. Raises StoreError NOT_FOUND."""
    if len(found) != 1:
        raise StoreError("NOT_FOUND", f"{'several models begin' if found else 'no model begins'} like that")
    return found[0]


def damaged(name: str) -> StoreError:
    """What to do about a damaged database, by the name of its file."""
    if name == "linkage.sqlite":
        hint = "restore it from a backup, or move it away and ingest the sources again"
        return StoreError("DAMAGED", "linkage.sqlite is damaged", hint=hint)
    what = name if name == "catalog.sqlite" else "the database"
    return StoreError("DAMAGED", f"{what} is damaged", hint="restore it from a backup")


def now() -> str:
    """UTC, to the microsecond, sortable as text."""
    return datetime.now(UTC).strftime(TIME)

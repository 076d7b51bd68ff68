"""What a scan found: files, series that can be read, and what was refused."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

READER = 3  # counts up when headers are read in another way; entries of another number are read again


@dataclass(frozen=True)
class FileEntry:
    """One file as the scan saw it; kept in the linkage so that an unchanged file is not opened again.

    path: relative to the source root, posix; `a.zip!/inner/x.dcm` for a file inside of a container.
    kind: dicom, nifti, picture, container, skipped or refused.
    note: skipped: its class (RTSTRUCT, SIDECAR, ...); refused: the reason code; container: what was left out in it
    (`HIDDEN=2 LINK=1`); else empty.
    reader: the READER that made it.
    header: JSON-ready; what grouping and reading need, original UIDs included, so it stays in the linkage.
    """

    path: str = field(repr=False)
    size: int
    mtime_ns: int
    inode: int
    kind: str
    note: str = ""
    header: dict[str, Any] | None = field(default=None, repr=False)
    reader: int = READER

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FileEntry:
        """Read what `as_dict` wrote."""
        return cls(**data)

    @property
    def grouped(self) -> str:
        """What it is planned together with; empty where a file is no part of any series.

        DICOM: the SeriesInstanceUID (0020,000E); all without one together, as only planning knows what to make of them.
        """
        if self.kind == "dicom":
            return "d:" + str((self.header or {}).get("series") or "")
        return "f:" + pair_of(self.path) if self.kind in ("nifti", "picture") else ""

    def filed(self) -> Filed:
        """As the linkage keeps it."""
        header = self.header
        blob = None if header is None else zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 1)
        series, patient = (str((header or {}).get(key) or "") for key in ("series", "patient"))
        seen = (self.path, self.size, self.mtime_ns, self.inode)
        return Filed(*seen, self.kind, self.note, self.reader, self.grouped, series, patient, blob)


class Filed(NamedTuple):
    """A FileEntry with its header as one blob: what workers send back and the linkage stores, 100,000 at a time."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    kind: str
    note: str
    reader: int
    grouped: str
    series: str
    patient: str
    blob: bytes | None

    def entry(self) -> FileEntry:
        """With the header to be read."""
        header = None if self.blob is None else json.loads(zlib.decompress(self.blob))
        return FileEntry(
            self.path, self.size, self.mtime_ns, self.inode, self.kind, self.note, header=header, reader=self.reader
        )

    def stamp(self) -> Stamp:
        """Without path, identifiers and header."""
        return Stamp(self.size, self.mtime_ns, self.inode, self.kind, self.note, self.reader, self.grouped)


class Stamp(NamedTuple):
    """An entry without its header: what a rescan compares."""

    size: int
    mtime_ns: int
    inode: int
    kind: str
    note: str
    reader: int
    grouped: str


def pair_of(path: str) -> str:
    """The name that the two files of a NIfTI pair (.hdr, .img) share; any other path as it is."""
    return path[:-4] + ".hdr" if path.lower().endswith((".hdr", ".img")) else path


@dataclass(frozen=True)
class SeriesPlan:
    """One grid that will become one Volume: all that reading needs, without arrays.

    kind: dicom, nifti or picture. series, patient: pseudonyms. voxels: over all axes.
    fingerprint: sha256 over path, size, mtime and inode of its files; it changes when one of them does.
    identity, patient_identity: the originals, for the linkage only.
    root, files: private; files in the order they are read in. folded: copies of them, which are not read.
    images: (index of the file, frame, first row, first column) of every slice, t-major, z-minor; empty where each file
    holds one. details: Volume attributes beside the voxels. tables: one header per file of `files`.
    """

    kind: str
    series: str
    patient: str
    modality: str
    group: str
    voxels: int
    source_bytes: int
    fingerprint: str
    identity: tuple[str, ...] = field(repr=False)
    patient_identity: tuple[str, ...] = field(repr=False)
    root: str = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    details: dict[str, Any] = field(repr=False)
    tables: tuple[dict[str, Any], ...] = field(repr=False)
    folded: tuple[str, ...] = field(default=(), repr=False)
    images: tuple[tuple[int, int, int, int], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Finding:
    """Something refused: it becomes one row of the quarantine.

    kind: series or file. key: its pseudonym. numbers: what was measured, e.g. gap_mm. paths: linkage only.
    """

    code: str
    kind: str
    key: str
    files: int
    modality: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    paths: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ScanResult:
    """All that a source holds. skipped: files per class. opened: files whose header had to be read."""

    plans: tuple[SeriesPlan, ...]
    findings: tuple[Finding, ...]
    skipped: dict[str, int]
    files: int
    bytes: int
    entries: tuple[FileEntry, ...] = field(repr=False)
    opened: int = 0


def fingerprint(entries: Iterable[FileEntry]) -> str:
    """64 hex over (path, size, mtime_ns, inode) of the files, whatever their order, and the way headers are read.

    The inode: `rsync -t` of a corrected export keeps size and time. Where it alone changed, the series is read again and
    the digest of its contents says whether it is another one.
    """
    digest = hashlib.sha256(f"{READER}\n".encode())
    for entry in sorted(entries, key=lambda entry: entry.path):
        digest.update(f"{len(entry.path)}:{entry.path}:{entry.size}:{entry.mtime_ns}:{entry.inode}\n".encode())
    return digest.hexdigest()


def group_of(modality: str, channels: int = 1) -> str:
    """The default group: lower-case modality, `-rgb` appended for colour."""
    return modality.lower() + ("-rgb" if channels > 1 else "")

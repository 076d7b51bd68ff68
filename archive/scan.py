"""From a folder to plans: every file is part of a series, in a finding, or of a class that is skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pathspec

from archive import dicom, headers, nifti, part10, pictures, series
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.keys import Pseudonyms
from archive.plans import READER, FileEntry, Finding, ScanResult, SeriesPlan
from archive.series import read_series
from archive.settings import IngestSettings

SIDECARS = (
    *(".txt", ".md", ".rst", ".json", ".csv", ".tsv", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".rtf"),
    *(".doc", ".docx", ".xls", ".xlsx", ".bval", ".bvec", ".db", ".ini", ".inf", ".cfg", ".log", ".lnk"),
    *(".yaml", ".yml", ".toml", ".py", ".ipynb", ".sh", ".bat", ".exe", ".dll", ".jar", ".md5", ".sha256"),
)
SIDECAR_NAMES = ("LICENSE", "LICENCE", "README", "COPYING", "CHANGES", "NOTICE", "CITATION", "VERSION", "AUTHORS")
CONTAINERS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
DICOM_NAMES = (".dcm", ".ima", ".dicom", ".dic")
DICOMDIR = "1.2.840.10008.1.3.10"
STORAGE = series.STORAGE
# Classes without images (PS3.4 B.5), by the UID behind STORAGE; a prefix that ends in a dot takes the whole family.
NON_IMAGES = {
    "481.2": "RTDOSE", "481.3": "RTSTRUCT", "481.4": "RTRECORD", "481.5": "RTPLAN", "481.": "RT", "88.": "SR",
    "9.": "WAVEFORM", "11.": "PR", "66.": "SEG", "66": "RAW", "67": "RWV", "68.": "SEG", "104.": "DOCUMENT",
    "78.": "MEASUREMENT", "79.": "SR", "77.1.5.3": "MEASUREMENT", "4.2": "SPECTROSCOPY", "200.": "PROTOCOL",
    "131": "SR",
}  # fmt: skip
NON_IMAGE_MODALITIES = (
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "RTRECORD",
    "SR",
    "PR",
    "KO",
    "SEG",
    "ECG",
    "REG",
    "DOC",
    "PLAN",
)


@dataclass(frozen=True)
class Seen:
    """One regular file of a source."""

    path: str
    status: os.stat_result


def scan(
    root: Path | str,
    *,
    alias: str = "",
    pseudonyms: Pseudonyms | None = None,
    exclude: tuple[str, ...] | list[str] = (),
    settings: IngestSettings | None = None,
    known: Mapping[str, FileEntry] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Read every header below `root` (a folder, or one file) once, and plan what can be read.

    exclude: .gitignore patterns on the path relative to the root. known: entries of an earlier scan by path; a file of
    the same size, time and inode is not opened again. progress(done, total) in files. Links out of the root, FIFOs and
    devices are not followed. Raises InputError UNREADABLE where the root itself cannot be read.
    """
    settings = settings or IngestSettings()
    pseudonyms = pseudonyms or Pseudonyms.load()
    root = Path(root).resolve()
    folder = root if root.is_dir() else root.parent
    skipped: Counter[str] = Counter()
    closed: list[str] = []
    files = list(_walk(root, folder, pathspec.GitIgnoreSpec.from_lines(exclude), skipped, closed))
    # A folder that cannot be listed is one refused item: what it holds is unknown, not absent.
    entries = [FileEntry(path, 0, 0, 0, "refused", "UNREADABLE") for path in closed]
    opened = 0
    for done, seen in enumerate(files, 1):
        entry = _known(seen, known or {})
        if entry is None:
            opened += 1
            entry = _look(folder, seen)
        entries.append(entry)
        if progress is not None:
            progress(done, len(files))
    skipped.update(entry.note for entry in entries if entry.kind == "skipped")
    plans, findings = _plan(entries, folder, alias, pseudonyms, settings)
    return ScanResult(
        plans=tuple(sorted(plans, key=lambda plan: plan.series)),
        findings=tuple(sorted(findings, key=lambda finding: (finding.code, finding.key))),
        skipped={note: count for note, count in sorted(skipped.items()) if count},
        files=len(files),
        bytes=sum(entry.size for entry in entries),
        entries=tuple(entries),
        opened=opened,
    )


def _walk(
    root: Path, folder: Path, exclude: pathspec.PathSpec, skipped: Counter[str], closed: list[str]
) -> Iterator[Seen]:
    """Regular files in a fixed order; hidden ones and links are counted as skipped, folders that do not open as closed."""
    if root != folder:
        try:
            yield Seen(root.name, root.stat())
        except OSError:  # its message would hold the path
            raise InputError("UNREADABLE", "the source is not there or cannot be read") from None
        return

    def refuse(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(root).as_posix())

    for base, folders, names in os.walk(root, followlinks=False, onerror=refuse):
        linked = {name for name in folders if Path(base, name).is_symlink()}
        hidden = {name for name in folders if name.startswith(".")}
        skipped.update({"LINK": len(linked), "HIDDEN": len(hidden - linked)})
        folders[:] = sorted(set(folders) - linked - hidden)
        for name in sorted(names):
            path = Path(base, name)
            relative = path.relative_to(root).as_posix()
            if exclude.match_file(relative):
                continue
            if name.startswith("."):
                skipped["HIDDEN"] += 1
                continue
            try:
                if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
                    skipped["LINK"] += 1
                    continue
                status = path.stat()
            except OSError:  # a link to nowhere, or in a circle
                skipped["LINK"] += 1
                continue
            if not stat.S_ISREG(status.st_mode):
                skipped["DEVICE"] += 1
                continue
            yield Seen(relative, status)


def _known(seen: Seen, known: Mapping[str, FileEntry]) -> FileEntry | None:
    entry = known.get(seen.path)
    now = seen.status
    if (
        entry is None
        or entry.reader != READER
        or (entry.size, entry.mtime_ns, entry.inode) != (now.st_size, now.st_mtime_ns, now.st_ino)
    ):
        return None
    return entry


def _look(folder: Path, seen: Seen) -> FileEntry:
    """What one file is, by its name and its first bytes, and its header."""
    blank = FileEntry(seen.path, seen.status.st_size, seen.status.st_mtime_ns, seen.status.st_ino, "skipped")
    path, name = folder / seen.path, seen.path.rsplit("/", 1)[-1]
    lower = name.lower()
    try:
        if lower.endswith(nifti.SUFFIXES):
            return replace(blank, kind="nifti", header=nifti.read_nifti_header(path, blank.size))
        if lower.endswith(pictures.SUFFIXES):
            return replace(blank, kind="picture", header=pictures.read_picture_header(path))
        if lower.endswith(SIDECARS) or name.split(".")[0].upper() in SIDECAR_NAMES:
            return replace(blank, note="SIDECAR")
        with path.open("rb") as file:
            start = file.read(132)
        named = lower.endswith(DICOM_NAMES)
        if part10.looks_like_dicom(start):
            header = headers.read_header(path)
            kind, note = _classify(header)
            return replace(blank, kind=kind, note=note, header=None if kind == "refused" else header)
        if not named and (lower.endswith(CONTAINERS) or start.startswith((b"PK\x03\x04", b"\x1f\x8b"))):
            return replace(blank, kind="refused", note="ARCHIVE_NOT_UNPACKED")
        return replace(blank, kind="refused", note="NOT_DICOM" if named else "UNKNOWN_FORMAT")
    except InputError as error:
        return replace(blank, kind="refused", note=error.code)
    except OSError:
        return replace(blank, kind="refused", note="UNREADABLE")


def _classify(header: dict[str, Any]) -> tuple[str, str]:
    """(kind, note) of a DICOM object."""
    sop_class, modality = header["sop_class"], header["modality"]
    if sop_class == DICOMDIR:
        return "skipped", "DICOMDIR"
    note = _non_image(sop_class) or (modality if modality in NON_IMAGE_MODALITIES else "")
    if note:
        return "skipped", note
    if not sop_class and not header["elements"]:
        return "refused", "NOT_DICOM"  # the magic, and nothing behind it
    expected_image = modality in series.READ_MODALITIES or sop_class in series.SINGLE_FRAME | series.MULTI_FRAME
    if header["pixels"] is None and not expected_image:
        return "skipped", "NO_PIXELS"
    if not header["series"]:
        return "refused", "NO_SERIES_UID" if header["pixels"] else "NO_PIXELS"
    return "dicom", ""


def _non_image(sop_class: str) -> str:
    if not sop_class.startswith(STORAGE):
        return "OTHER" if sop_class.startswith("1.2.840.10008.5.1.4.3") else ""
    tail = sop_class.removeprefix(STORAGE)
    families = (note for key, note in NON_IMAGES.items() if key.endswith(".") and tail.startswith(key))
    return NON_IMAGES.get(tail) or next(families, "")


def _plan(
    entries: list[FileEntry], folder: Path, alias: str, pseudonyms: Pseudonyms, settings: IngestSettings
) -> tuple[list[SeriesPlan], list[Finding]]:
    with PixelDecoder(settings) as decoder:  # starts a process only where compressed duplicates must be compared

        def digest(entry: FileEntry) -> str:
            assert entry.header is not None
            if "digest" not in entry.header:  # kept with the entry, so that a rescan need not read pixels
                entry.header["digest"] = dicom.pixel_digest(folder / entry.path, entry.header, decoder)
            return str(entry.header["digest"])

        context = series.Context(os.fspath(folder), pseudonyms, settings, digest)
        plans, findings = series.plan_series([entry for entry in entries if entry.kind == "dicom"], context)
    for entry in entries:
        key = pseudonyms.file(alias, entry.path)
        if entry.kind == "refused":
            findings.append(Finding(entry.note, "file", key, 1, paths=(entry.path,)))
        elif entry.kind in ("nifti", "picture"):
            make = nifti.plan_nifti if entry.kind == "nifti" else pictures.plan_picture
            try:
                plans.append(make(entry, os.fspath(folder), (alias, entry.path), pseudonyms, settings))
            except InputError as error:
                findings.append(Finding(error.code, "file", key, 1, entry.kind.upper(), paths=(entry.path,)))
    return plans, findings


__all__ = ["FileEntry", "Finding", "ScanResult", "SeriesPlan", "read_series", "scan"]

"""From a folder to plans: every file is part of a series, in a finding, or of a class that is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pathspec

from archive import containers, dicom, headers, nifti, part10, pictures, series
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.frames import Image
from archive.keys import Pseudonyms
from archive.plans import READER, FileEntry, Finding, ScanResult, SeriesPlan, Stamp
from archive.series import read_series
from archive.settings import IngestSettings
from archive.walk import Seen, survey

SIDECARS = (
    *(".txt", ".md", ".rst", ".json", ".csv", ".tsv", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".rtf"),
    *(".doc", ".docx", ".xls", ".xlsx", ".bval", ".bvec", ".db", ".ini", ".inf", ".cfg", ".log", ".lnk"),
    *(".pptx", ".ppt", ".odt", ".ods", ".odp", ".epub", ".whl", ".npz"),  # zips that are not folders
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

    Zip and tar files are read as folders. exclude: .gitignore patterns on the path relative to the root. known: entries
    of an earlier scan by path; a file of the same size, time and inode is not opened again. progress(done, total) in
    files. Links out of the root, FIFOs and devices are not followed. Raises InputError UNREADABLE where the root itself
    cannot be read.
    """
    settings = settings or IngestSettings()
    pseudonyms = pseudonyms or Pseudonyms.load()
    listing = survey(root, exclude)
    inside = _inside(known or {})
    entries = [refused_folder(path) for path in listing.closed]
    opened = 0
    for done, seen in enumerate(listing.files, 1):
        entry = (known or {}).get(seen.path)
        if entry is not None and is_unchanged(seen, entry.size, entry.mtime_ns, entry.inode, entry.reader):
            entries += [entry, *inside.get(seen.path, ())]
        else:
            opened += 1
            entries += look(listing.folder, seen, exclude, settings)
        if progress is not None:
            progress(done, len(listing.files))
    plans, findings = plan(entries, listing.folder, alias, pseudonyms, settings)
    return ScanResult(
        plans=tuple(sorted(plans, key=lambda plan: plan.series)),
        findings=tuple(sorted(findings, key=lambda finding: (finding.code, finding.key))),
        skipped=skipped_of(entries, listing.skipped),
        files=sum(entry.kind != "container" for entry in entries) - len(listing.closed),
        bytes=sum(seen.size for seen in listing.files),
        entries=tuple(entries),
        opened=opened,
    )


def is_unchanged(seen: Seen, size: int, mtime_ns: int, inode: int, reader: int) -> bool:
    """Whether a file need not be opened: it looks as it did, and this reader has read it."""
    return (size, mtime_ns, inode) == (seen.size, seen.mtime_ns, seen.inode) and reader == READER


def refused_folder(path: str) -> FileEntry:
    """A folder that cannot be listed is one refused item: what it holds is unknown, not absent."""
    return FileEntry(path, 0, 0, 0, "refused", "UNREADABLE")


def skipped_of(entries: Iterable[FileEntry | Stamp], counted: Mapping[str, int]) -> dict[str, int]:
    """Files per class that belong to no series: those among the entries, in containers, and those counted already."""
    skipped = Counter(counted)
    for entry in entries:
        if entry.kind == "skipped":
            skipped[entry.note] += 1
        elif entry.kind == "container":
            for item in entry.note.split():
                skipped[item.partition("=")[0]] += int(item.partition("=")[2])
    return {note: count for note, count in sorted(skipped.items()) if count}


def _inside(known: Mapping[str, FileEntry]) -> dict[str, list[FileEntry]]:
    """Entries of files in containers by their container's path."""
    found: dict[str, list[FileEntry]] = {path: [] for path, entry in known.items() if entry.kind == "container"}
    for path, entry in known.items():
        outer = containers.outer_of(path, found)
        if outer:
            found[outer].append(entry)
    return found


def look(
    folder: Path,
    seen: Seen,
    exclude: Sequence[str] = (),
    settings: IngestSettings | None = None,
    scratch: Path | None = None,
) -> list[FileEntry]:
    """What one file is, by its name and its first bytes, with its header; of a container also every file in it.

    scratch: where files of containers are unpacked, one at a time (archive.containers.Unpacked).
    """
    entry = _look(folder / seen.path, seen)
    if entry.kind != "container":
        return [entry]
    try:
        return _look_inside(folder, entry, exclude, settings or IngestSettings(), scratch)
    except InputError as error:  # what else it holds is unknown: a series must not be silently shortened
        return [replace(entry, kind="refused", note=error.code)]


def _look_inside(
    folder: Path, container: FileEntry, exclude: Sequence[str], settings: IngestSettings, scratch: Path | None
) -> list[FileEntry]:
    """Every file of a container, and the container itself; a zip's damaged or locked members are refused one by one.

    Raises InputError where the container as a whole cannot be gone through, or nothing in it can be unpacked.
    """
    left_out = pathspec.GitIgnoreSpec.from_lines(exclude)
    skipped: Counter[str] = Counter()
    found: list[FileEntry] = []
    damaged: list[InputError] = []
    with containers.Unpacked(folder, scratch) as unpacked:
        for member in containers.members(folder / container.path, settings.max_archive_bytes, skipped):
            path = container.path + containers.INSIDE + member.name
            if left_out.match_file(path):
                continue
            if any(part.startswith((".", "__MACOSX")) for part in member.name.split("/")):
                skipped["HIDDEN"] += 1
                continue
            file = unpacked.new_file(Path(member.name).suffix)
            try:
                size = containers.extract(member, file, container.mtime_ns)
            except InputError as error:
                if error.code == "ARCHIVE_LIMIT" or not member.apart:
                    raise
                damaged.append(error)
                seen = (path, member.size, container.mtime_ns, container.inode)
                found.append(FileEntry(*seen, kind="refused", note=error.code))
                continue
            entry = _look(file, Seen(path, size, container.mtime_ns, container.inode))
            if entry.kind == "container":
                entry = replace(entry, kind="refused", note="ARCHIVE_NOT_UNPACKED")
            found.append(entry)
            file.unlink()
    if damaged and len(damaged) == len(found):
        raise damaged[0]
    note = " ".join(f"{name}={count}" for name, count in sorted(skipped.items()))
    return [replace(container, note=note), *found]


def _look(path: Path, seen: Seen) -> FileEntry:
    blank = FileEntry(seen.path, seen.size, seen.mtime_ns, seen.inode, "skipped")
    name = seen.path.rsplit("/", 1)[-1]
    lower = name.lower()
    try:
        if lower.endswith(nifti.SUFFIXES):
            return replace(blank, kind="nifti", header=nifti.read_nifti_header(path, blank.size))
        if lower.endswith(pictures.SUFFIXES):
            return replace(blank, kind="picture", header=pictures.read_picture_header(path))
        if lower.endswith(SIDECARS) or name.split(".")[0].upper() in SIDECAR_NAMES:
            return replace(blank, note="SIDECAR")
        with path.open("rb") as file:
            start = file.read(512)
        named = lower.endswith(DICOM_NAMES)
        if lower.endswith(".hdr") and nifti.is_pair_header(start):
            return replace(blank, kind="nifti", header=nifti.read_nifti_header(path, blank.size, pair=True))
        if part10.looks_like_dicom(start[:132]):
            header = headers.read_header(path)
            kind, note = _classify(header)
            # Of a refused file only whose it is, so that `forget` finds it.
            whose = {key: header[key] for key in ("series", "patient", "issuer")}
            return replace(blank, kind=kind, note=note, header=whose if kind == "refused" else header)
        if not named and containers.is_container(path, start):
            return replace(blank, kind="container")
        if not named and (lower.endswith(CONTAINERS) or start.startswith((b"PK\x03\x04", b"\x1f\x8b"))):
            return replace(blank, kind="refused", note="ARCHIVE_NOT_UNPACKED")
        if lower.endswith(".img"):  # planning looks whether it has a header beside it
            return replace(blank, kind="nifti")
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
    if header.get("cut"):
        return "refused", "TRUNCATED"
    expected_image = modality in series.READ_MODALITIES or sop_class in series.SINGLE_FRAME | series.MULTI_FRAME
    if header["pixels"] is None and not expected_image:
        return "skipped", "NO_PIXELS"
    if not header["series"] and not header["pixels"]:
        return "refused", "NO_PIXELS"
    return "dicom", ""


def _non_image(sop_class: str) -> str:
    if not sop_class.startswith(STORAGE):
        return "OTHER" if sop_class.startswith("1.2.840.10008.5.1.4.3") else ""
    tail = sop_class.removeprefix(STORAGE)
    families = (note for key, note in NON_IMAGES.items() if key.endswith(".") and tail.startswith(key))
    return NON_IMAGES.get(tail) or next(families, "")


def plan(
    entries: Sequence[FileEntry],
    folder: Path,
    alias: str,
    pseudonyms: Pseudonyms,
    settings: IngestSettings,
    known: Callable[[str], Iterable[tuple[str, ...]]] = lambda uid: (),
    scratch: Path | None = None,
) -> tuple[list[SeriesPlan], list[Finding]]:
    """Every entry that belongs to a series as part of a plan or of a finding, whatever their order.

    Entries of one `grouped` must come together; several groups may come at once. known: as in archive.series.Context.
    scratch: where duplicates in containers are unpacked to be compared.
    """
    unpacked = containers.Unpacked(folder, scratch, settings.max_archive_bytes)
    # The decoder starts a process only where compressed duplicates must be compared.
    with unpacked, PixelDecoder(settings) as decoder:

        def digest(image: Image) -> str:
            return dicom.image_digest(image, unpacked.path(image.entry.path), decoder)

        context = series.Context(os.fspath(folder), pseudonyms, settings, digest, known)
        plans, findings = series.plan_series([entry for entry in entries if entry.kind == "dicom"], context)
    files = [entry for entry in entries if entry.kind in ("nifti", "picture") and entry.header is not None]
    images = {entry.grouped: entry for entry in entries if entry.kind == "nifti" and entry.header is None}
    refused = [(entry, entry.note) for entry in entries if entry.kind == "refused"]
    for entry in files:
        identity = (alias, entry.path)
        try:
            if entry.kind == "picture":
                plans.append(pictures.plan_picture(entry, os.fspath(folder), identity, pseudonyms, settings))
            else:
                image = images.pop(entry.grouped, None)
                plans += nifti.plan_nifti(entry, os.fspath(folder), identity, pseudonyms, settings, image)
        except InputError as error:
            refused.append((entry, error.code))
    refused += [(entry, "UNKNOWN_FORMAT") for entry in images.values()]  # an .img without a header
    for entry, code in refused:
        modality = entry.kind.upper() if entry.kind in ("nifti", "picture") else ""
        key = pseudonyms.file(alias, entry.path)
        findings.append(Finding(code, "file", key, 1, modality, paths=(entry.path,)))
    return plans, findings


__all__ = ["FileEntry", "Finding", "ScanResult", "SeriesPlan", "read_series", "scan"]

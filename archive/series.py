"""From DICOM headers to grids: grouping, splitting, folding, time, geometry, and every reason to refuse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import dicom, nifti, part10, pictures
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.keys import Pseudonyms
from archive.plans import FileEntry, Finding, SeriesPlan, fingerprint, group_of
from archive.settings import IngestSettings
from archive.stack import Stack, stack
from archive.suv import suv
from archive.volume import Volume

STORAGE = "1.2.840.10008.5.1.4.1.1."
READ_MODALITIES = ("CT", "MR", "PT")
SINGLE_FRAME = {STORAGE + tail for tail in ("2", "4", "128")}
MULTI_FRAME = {STORAGE + tail for tail in ("2.1", "2.2", "4.1", "4.2", "4.3", "4.4", "128.1", "130")}
SECONDARY_CAPTURE = {STORAGE + tail for tail in ("7", "7.1", "7.2", "7.3", "7.4")}
PT_UNITS = {"BQML": "Bq/ml", "GML": "SUVbw", "CNTS": "counts"}
FEW_SLICES = 4  # below it a missing neighbour cannot be told from a wide spacing


@dataclass(frozen=True)
class Context:
    """What planning needs beside the files. digest: pixel digest of one entry, computed at most once."""

    root: str
    pseudonyms: Pseudonyms
    settings: IngestSettings
    digest: Callable[[FileEntry], str]


def plan_series(entries: Sequence[FileEntry], context: Context) -> tuple[list[SeriesPlan], list[Finding]]:
    """Every DICOM image of a source as a plan or in a finding, whatever the order of `entries`."""
    plans: list[SeriesPlan] = []
    findings: list[Finding] = []
    by_uid: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.path):
        by_uid[_header(entry)["series"]].append(entry)
    for uid in sorted(by_uid):
        refused: dict[str, list[FileEntry]] = defaultdict(list)
        readable = []
        for entry in by_uid[uid]:
            code = refusal(_header(entry), context.settings)
            if code:
                refused[code].append(entry)
            else:
                readable.append(entry)
        for code, members in sorted(refused.items()):
            key = context.pseudonyms.series(uid, "refused", code)
            findings.append(_finding(InputError(code), key, members))
        conflicts, conflict_error = _conflicts(readable, context)
        for split, members in sorted(split_by_values(readable).items()):
            key = context.pseudonyms.series(uid, *split)
            try:
                if conflict_error is not None and any(_header(entry)["sop"] in conflicts for entry in members):
                    raise conflict_error
                plans.append(_plan(uid, split, members, context))
            except InputError as error:
                findings.append(_finding(error, key, members))
    return plans, findings


def read_series(
    plan: SeriesPlan, *, settings: IngestSettings | None = None, decoder: PixelDecoder | None = None
) -> Volume:
    """The voxels of one plan. `decoder`: one of the caller's, else one for this call. Raises InputError."""
    settings = settings or IngestSettings()
    if plan.kind == "dicom":
        return dicom.read_dicom(plan, settings, decoder)
    path, header = Path(plan.root, plan.files[0]), plan.tables[0]
    dicom.check_unchanged(path, header)
    return nifti.read_nifti(path, header) if plan.kind == "nifti" else pictures.read_picture(path, header)


def refusal(header: dict[str, Any], settings: IngestSettings) -> str:
    """Why an image cannot be placed in any grid, as a reason code; empty where it can."""
    modality, sop_class = header["modality"], header["sop_class"]
    if sop_class in SECONDARY_CAPTURE and settings.secondary_capture == "quarantine":
        return "SECONDARY_CAPTURE"
    if modality not in READ_MODALITIES:
        return "UNSUPPORTED_MODALITY"
    if header["burned_in"].upper() == "YES" and settings.burned_in == "quarantine":
        return "BURNED_IN"
    if sop_class in MULTI_FRAME or (header["frames"] or 1) > 1 or "MOSAIC" in header["image_type"].upper():
        return "MULTIFRAME"  # a Siemens mosaic is a volume tiled into one frame
    if sop_class and sop_class not in SINGLE_FRAME | SECONDARY_CAPTURE:
        return "UNSUPPORTED_MODALITY"
    if not header["sop"]:
        return "NO_SERIES_UID"
    if header["pixels"] is None:
        return "NO_PIXELS"
    return _illegal(header)


def _illegal(header: dict[str, Any]) -> str:
    if header["pixels"][0] != 0x7FE00010 or header["lut"]:
        return "UNSUPPORTED_PIXELS"  # float pixels, or stored values that only a table gives a meaning
    numbers = [header[key] for key in ("rows", "columns", "allocated", "stored", "signed")]
    if None in numbers or not header["photometric"] or min(numbers[:4]) < 1 or header["signed"] not in (0, 1):
        return "BAD_HEADER"
    if header["photometric"] not in ("MONOCHROME1", "MONOCHROME2") or (header["samples"] or 1) != 1:
        return "UNSUPPORTED_PIXELS"
    if header["allocated"] not in (8, 16, 32):
        return "UNSUPPORTED_PIXELS"
    high = header["stored"] - 1 if header["high"] is None else header["high"]
    if not header["stored"] - 1 <= high < header["allocated"]:
        return "BAD_HEADER"
    if not dicom.is_native(header) and not header["syntax"]:
        return "BAD_HEADER"
    return ""


def damage(entry: FileEntry) -> str:
    """What is wrong with an image whose place is known; its whole grid is refused then, not silently shortened."""
    header = _header(entry)
    if dicom.is_native(header):
        _, offset, length, _, _ = header["pixels"]
        expected = dicom.frame_bytes(header)
        at_hand = length if header["syntax"] == part10.DEFLATED else min(length, entry.size - offset)
        if at_hand < expected:
            return "TRUNCATED"
        if length >= 2 * expected:
            return "BAD_HEADER"  # more than one frame's worth: Rows or Columns cannot be right
    if header["slope_illegal"] or header["slope"] == 0.0:
        return "NON_FINITE"
    return ""


def split_by_values(entries: Sequence[FileEntry]) -> dict[tuple[str, ...], list[FileEntry]]:
    """Files of one series by everything that cannot share a grid; keys are values, never ordinals."""
    orientations = _snap([_header(entry)["orientation"] for entry in entries], 1e-3, 3)
    spacings = _snap([_header(entry)["spacing"] for entry in entries], 1e-4, 4)
    echoes = _snap([_vector(_header(entry)["echo_time"]) for entry in entries], 5e-2, 2)
    groups: dict[tuple[str, ...], list[FileEntry]] = defaultdict(list)
    for entry, orientation, spacing, echo in zip(entries, orientations, spacings, echoes, strict=True):
        header = _header(entry)
        modality = header["modality"]
        split = {
            "class": header["sop_class"],
            "modality": modality,
            "matrix": f"{header['rows']}x{header['columns']}",
            "bits": "/".join(str(header[key]) for key in ("allocated", "stored", "high", "signed")),
            "photometric": header["photometric"],
            "orientation": orientation,
            "spacing": spacing,
            "placed": "yes" if header["position"] else "no",
            "units": f"{header['units']}/{header['rescale_type']}/{header['suv_type']}",
            "type": _image_type(header),
            "echo": echo if modality == "MR" else "",
            "kernel": header["kernel"] if modality == "CT" else "",
        }
        groups[tuple(f"{name}={value}" for name, value in split.items())].append(entry)
    return groups


def _image_type(header: dict[str, Any]) -> str:
    """The part of ImageType (0008,0008) that tells images of other meaning apart, not how they came about."""
    parts = header["image_type"].upper().split("\\")
    if header["modality"] == "MR":
        return "\\".join([*parts[2:], header["component"].upper()])
    return "LOCALIZER" if "LOCALIZER" in parts else ""


def _vector(number: float | None) -> list[float] | None:
    return None if number is None else [number]


def _snap(vectors: Sequence[list[float] | None], tolerance: float, digits: int) -> list[str]:
    """Each vector as text, those within `tolerance` of each other as the same text: exporters round as they like.

    The text is a value of the smallest vector of its cluster, so it does not depend on the order of files.
    """
    leaders: list[list[float]] = []
    for known in sorted(vector for vector in vectors if vector is not None):
        if not any(_near(known, leader, tolerance) for leader in reversed(leaders)):
            leaders.append(known)
    names = []
    for vector in vectors:
        leader = next((one for one in leaders if vector is not None and _near(vector, one, tolerance)), None)
        # + 0.0 makes -0.0 read as 0.0
        names.append("" if leader is None else ",".join(f"{round(value, digits) + 0.0:.{digits}f}" for value in leader))
    return names


def _near(one: list[float], other: list[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _conflicts(entries: Sequence[FileEntry], context: Context) -> tuple[set[str], InputError | None]:
    """SOPInstanceUIDs that name different contents within one series."""
    by_sop: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        by_sop[_header(entry)["sop"]].append(entry)
    found: set[str] = set()
    for sop, members in by_sop.items():
        if len(members) < 2:
            continue
        places = {str(_header(entry)["position"]) for entry in members}
        try:
            same = len(places) == 1 and len({context.digest(entry) for entry in members}) == 1
        except InputError:
            same = False  # one of them cannot be read, so nobody knows which is right
        if not same:
            found.add(sop)
    return found, InputError("UID_CONFLICT", conflicts=float(len(found))) if found else None


def _plan(uid: str, split: tuple[str, ...], members: list[FileEntry], context: Context) -> SeriesPlan:
    """One grid. Raises InputError with the reason why it cannot be one."""
    for entry in members:
        code = damage(entry)
        if code:
            raise InputError(code, damaged=float(sum(bool(damage(one)) for one in members)))
    first = _header(members[0])
    stacked = stack(members, context.settings, context.digest)
    times, slices = len(stacked.rows), len(stacked.rows[0])
    voxels = times * slices * first["rows"] * first["columns"]
    if voxels * first["allocated"] // 8 > context.settings.max_series_bytes:
        raise InputError("TOO_LARGE", voxels=float(voxels))
    ordered = [entry for row in stacked.rows for entry in row]
    patient = (first["patient"], first["issuer"]) if first["patient"] else (uid,)
    return SeriesPlan(
        kind="dicom",
        series=context.pseudonyms.series(uid, *split),
        patient=context.pseudonyms.patient(*patient),
        modality=first["modality"],
        group=group_of(first["modality"]),
        voxels=voxels,
        source_bytes=sum(entry.size for entry in members),
        fingerprint=fingerprint(members),
        identity=(uid, *split),
        patient_identity=patient,
        root=context.root,
        files=tuple(entry.path for entry in ordered),
        details=_details(first, ordered, stacked),
        folded=tuple(sorted({entry.path for entry in members} - {entry.path for entry in ordered})),
        tables=tuple(
            {**{key: _header(entry)[key] for key in dicom.TABLE}, "status": [entry.size, entry.mtime_ns]}
            for entry in ordered
        ),
    )


def _details(first: dict[str, Any], ordered: Sequence[FileEntry], stacked: Stack) -> dict[str, Any]:
    """Volume.attributes() of the volume to be, but for the voxels' own."""
    all_headers = [_header(entry) for entry in ordered]
    # PET, and some MR, scale every slice by itself (0028,1053).
    scales = [(header["slope"] or 1.0, header["intercept"] or 0.0) for header in all_headers]
    if len(set(scales)) == 1:
        scales = scales[:1]
    modality = first["modality"]
    units = {"CT": "HU", "PT": PT_UNITS.get(first["units"].upper(), "a.u.")}.get(modality, "a.u.")
    if first["suv_type"] not in ("", "BW") and units == "SUVbw":
        units = "a.u."  # lean body mass or surface area, not body weight
    if modality == "CT" and first["rescale_type"].upper() not in ("", "HU"):
        units = "a.u."  # e.g. effective atomic number, electron density
    if modality == "CT" and first["slope"] is None and first["intercept"] is None and "DERIVED" in first["image_type"]:
        units = "a.u."
    flags = set(stacked.flags)
    if any(header["lossy"] == "01" or header["syntax"] in part10.LOSSY for header in all_headers):
        flags.add("LOSSY_SOURCE")
    if 1 < stacked.geometry.shape[0] < FEW_SLICES:
        flags.add("FEW_SLICES")
    acquisition = _common([header["acquisition"] for header in all_headers])
    if modality == "PT":
        acquisition |= suv([header["pet"] for header in all_headers], first["units"].upper())
    return {
        "axes": "tzyx" if len(stacked.rows) > 1 else "zyx",
        "geometry": stacked.geometry.as_dict(),
        "modality": modality,
        "slope": [slope for slope, _ in scales],
        "intercept": [intercept for _, intercept in scales],
        "units": units,
        "photometric": first["photometric"],
        "bits_stored": first["stored"],
        "frames": stacked.frames,
        "acquisition": acquisition,
        "flags": sorted(flags),
    }


def _common(dicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all files state alike."""
    first, *others = dicts
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _finding(error: InputError, key: str, members: Sequence[FileEntry]) -> Finding:
    numbers = {name: float(value) for name, value in error.context.items() if isinstance(value, (int, float))}
    modality = _header(members[0])["modality"]
    return Finding(
        code=error.code,
        kind="series",
        key=key,
        files=len(members),
        modality=modality if modality.isalpha() and len(modality) <= 16 else "",  # a code string, not free text
        numbers=numbers,
        paths=tuple(entry.path for entry in members),
    )


def _header(entry: FileEntry) -> dict[str, Any]:
    assert entry.header is not None
    return entry.header

"""From DICOM headers to grids: grouping, splitting, folding, time, geometry, and every reason to refuse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from archive import dicom, frames, nifti, pictures, pixels, syntaxes
from archive.containers import Unpacked
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.frames import Image
from archive.keys import Pseudonyms
from archive.plans import FileEntry, Finding, SeriesPlan, fingerprint, group_of
from archive.settings import IngestSettings
from archive.split import SECONDARY_CAPTURE, STORAGE, split_by_values
from archive.stack import Stack, stack
from archive.suv import suv
from archive.volume import Volume

READ_MODALITIES = ("CT", "MR", "PT")  # an object of these without pixels lost them
SINGLE_FRAME = {STORAGE + tail for tail in ("2", "4", "128")}
MULTI_FRAME = {STORAGE + tail for tail in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130")}
UNREAD = {STORAGE + tail for tail in ("77.1.6",)}  # whole slides, tiled over several magnifications
NAMELESS = ("study", "frame_of_reference", "patient", "issuer", "series_number", "modality")
PT_UNITS = {"BQML": "Bq/ml", "GML": "SUVbw", "CNTS": "counts"}
FEW_SLICES = 4  # below it a missing neighbour cannot be told from a wide spacing


@dataclass(frozen=True)
class Context:
    """What planning needs beside the files.

    digest: pixel digest of one image, computed at most once. known: the identities under which the parts of a
    SeriesInstanceUID were planned before (archive.linkage.Linkage.splits).
    """

    root: str
    pseudonyms: Pseudonyms
    settings: IngestSettings
    digest: Callable[[Image], str]
    known: Callable[[str], Iterable[tuple[str, ...]]] = lambda uid: ()


def plan_series(entries: Sequence[FileEntry], context: Context) -> tuple[list[SeriesPlan], list[Finding]]:
    """Every DICOM image of a source as a plan or in a finding, whatever the order of `entries`."""
    plans: list[SeriesPlan] = []
    findings: list[Finding] = []
    by_uid: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.path):
        by_uid[_name(_header(entry))].append(entry)
    for uid in sorted(by_uid):
        refused: dict[str, list[Image]] = defaultdict(list)
        readable: list[FileEntry] = []
        for entry in by_uid[uid]:
            code = refusal(_header(entry), context.settings) or frames.misfit(_header(entry), entry.size)
            if code:
                refused[code].append(Image(entry, 0, (0, 0), _header(entry)))
            else:
                readable.append(entry)
        for code, members in sorted(refused.items()):
            key = context.pseudonyms.series(uid, "refused", code)
            findings.append(_finding(InputError(code), key, members))
        images = {entry.path: frames.expand(entry) for entry in readable}
        conflicts, conflict_error = _conflicts(images.values(), context)
        everything = [image for inside in images.values() for image in inside]
        parts = split_by_values(everything, partial(context.known, uid))
        for split, members in sorted(parts.items()):
            key = context.pseudonyms.series(uid, *split)
            try:
                if conflict_error is not None and any(image.header["sop"] in conflicts for image in members):
                    raise conflict_error
                people = {
                    (image.header["patient"], image.header["issuer"]) for image in members if image.header["patient"]
                }
                if len(people) > 1:  # one UID for two people: whose it is, nobody can say
                    raise InputError("UID_CONFLICT", patients=float(len(people)))
                plans.append(_plan(uid, split, members, context))
            except InputError as error:
                findings.append(_finding(error, key, members))
    return plans, findings


def _name(header: dict[str, Any]) -> str:
    """What files are grouped by: SeriesInstanceUID (0020,000E), or all that is there where it is missing."""
    if header["series"]:
        return str(header["series"])
    return "|".join(["no series", *(f"{key}={header[key]}" for key in NAMELESS)])


def read_series(
    plan: SeriesPlan, *, settings: IngestSettings | None = None, decoder: PixelDecoder | None = None
) -> Volume:
    """The voxels of one plan. `decoder`: one of the caller's, else one for this call. Raises InputError."""
    settings = settings or IngestSettings()
    with Unpacked(Path(plan.root), most_bytes=settings.max_archive_bytes) as unpacked:
        plan = unpacked.resolved(plan)
        if plan.kind == "dicom":
            return dicom.read_dicom(plan, settings, decoder)
        path, header = Path(plan.root, plan.files[0]), plan.tables[0]
        dicom.check_unchanged(path, header)
        return nifti.read_nifti(path, header) if plan.kind == "nifti" else pictures.read_picture(path, header)


def refusal(header: dict[str, Any], settings: IngestSettings) -> str:
    """Why a file's images cannot be placed in any grid, as a reason code; empty where they can."""
    if header["sop_class"] in SECONDARY_CAPTURE and settings.secondary_capture == "quarantine":
        return "SECONDARY_CAPTURE"
    if header["sop_class"] in UNREAD:
        return "UNSUPPORTED_MODALITY"
    if header["burned_in"].upper() == "YES" and settings.burned_in == "quarantine":
        return "BURNED_IN"
    if not header["sop"]:
        return "NO_SERIES_UID"
    if header["pixels"] is None:
        return "NO_PIXELS"
    return pixels.legal(header)


def damage(image: Image) -> str:
    """What is wrong with an image whose place is known; its whole grid is refused then, not silently shortened."""
    if code := pixels.damage(_header(image.entry), image.entry.size):
        return code
    header = image.header
    if header["slope_illegal"] or header["slope"] == 0.0 or not np.isfinite(_scale(header)).all():
        return "NON_FINITE"
    return ""


def _conflicts(files: Iterable[list[Image]], context: Context) -> tuple[set[str], InputError | None]:
    """SOPInstanceUIDs that name different contents within one series."""
    by_sop: dict[str, list[list[Image]]] = defaultdict(list)
    for images in files:
        by_sop[images[0].header["sop"]].append(images)
    found: set[str] = set()
    for sop, copies in by_sop.items():
        if len(copies) < 2:
            continue
        places = {str([image.header["position"] for image in images]) for images in copies}
        try:
            same = len(places) == 1 and len({_content(images, context) for images in copies}) == 1
        except InputError:
            same = False  # one of them cannot be read, so nobody knows which is right
        if not same:
            found.add(sop)
    return found, InputError("UID_CONFLICT", conflicts=float(len(found))) if found else None


def _content(images: list[Image], context: Context) -> tuple[str, ...]:
    return tuple(context.digest(image) for image in images)


def _plan(uid: str, split: tuple[str, ...], members: list[Image], context: Context) -> SeriesPlan:
    """One grid. Raises InputError with the reason why it cannot be one."""
    for image in members:
        code = damage(image)
        if code:
            raise InputError(code, damaged=float(sum(bool(damage(one)) for one in members)))
    first = members[0].header
    stacked = stack(members, context.settings, context.digest)
    ordered = [image for row in stacked.rows for image in row]
    voxels = len(ordered) * first["rows"] * first["columns"] * _channels(first)
    if voxels * first["allocated"] // 8 > context.settings.max_series_bytes:
        raise InputError("TOO_LARGE", voxels=float(voxels))
    entries = {image.entry.path: image.entry for image in members}
    used = {image.entry.path: image.entry for image in ordered}  # in the order they are read in
    index = {path: number for number, path in enumerate(used)}
    patient = (first["patient"], first["issuer"]) if first["patient"] else (uid,)
    return SeriesPlan(
        kind="dicom",
        series=context.pseudonyms.series(uid, *split),
        patient=context.pseudonyms.patient(*patient),
        modality=first["modality"],
        group=group_of(first["modality"], _channels(first)),
        voxels=voxels,
        source_bytes=sum(entry.size for entry in entries.values()),
        fingerprint=fingerprint(entries.values()),
        identity=(uid, *split),
        patient_identity=patient,
        root=context.root,
        files=tuple(used),
        details=_details(first, ordered, stacked),
        folded=tuple(sorted(set(entries) - set(used))),
        tables=tuple(
            {**{key: _header(entry)[key] for key in pixels.TABLE}, "status": [entry.size, entry.mtime_ns]}
            for entry in used.values()
        ),
        images=_places(ordered, index),
    )


def _places(ordered: Sequence[Image], index: dict[str, int]) -> tuple[tuple[int, int, int, int], ...]:
    """Where each slice lies, for the plan; nothing where every file is one slice."""
    if len(ordered) == len(index) and not any(image.frame or any(image.corner) for image in ordered):
        return ()
    return tuple((index[image.entry.path], image.frame, *image.corner) for image in ordered)


def _channels(header: dict[str, Any]) -> int:
    return 3 if header["palette"] or header["samples"] == 3 else 1


def _scale(header: dict[str, Any]) -> tuple[float, float]:
    """(slope, intercept) of one image.

    Philips MR shows DV = PV * RS + RI and means FP = DV / (RS * SS), with SS in (2005,xx0E): only FP can be compared
    between series (Chenevert et al., https://pmc.ncbi.nlm.nih.gov/articles/PMC3998685/).
    """
    if header["lut"]:
        return 1.0, 0.0  # the table gives the values themselves
    slope, intercept = header["slope"] or 1.0, header["intercept"] or 0.0
    if header["scale"] and header["modality"] == "MR":
        return 1.0 / header["scale"], intercept / (slope * header["scale"])
    return slope, intercept


def _units(first: dict[str, Any]) -> str:
    """What values are in, as far as the header is to be trusted on it."""
    modality, rescale = first["modality"], first["rescale_type"].upper()
    if _channels(first) == 3:
        return "rgb"
    if modality == "PT":
        units = PT_UNITS.get((first["units"] or rescale).upper(), "a.u.")
        # lean body mass or surface area are no body weight
        return "a.u." if first["suv_type"] not in ("", "BW") and units == "SUVbw" else units
    if modality != "CT":
        return "a.u."
    if first["lut"]:
        return "HU" if first["lut_type"].upper() == "HU" else "a.u."
    if rescale not in ("", "HU"):
        return "a.u."  # e.g. effective atomic number, electron density
    untold = first["slope"] is None and first["intercept"] is None
    return "a.u." if untold and "DERIVED" in first["image_type"] else "HU"


def _details(first: dict[str, Any], ordered: Sequence[Image], stacked: Stack) -> dict[str, Any]:
    """Volume.attributes() of the volume to be, but for the voxels' own."""
    all_headers = [image.header for image in ordered]
    # PET, and some MR, scale every slice by itself (0028,1053).
    scales = [_scale(header) for header in all_headers]
    if len(set(scales)) == 1:
        scales = scales[:1]
    flags = set(stacked.flags)
    if any(header["lossy"] == "01" or header["syntax"] in syntaxes.LOSSY for header in all_headers):
        flags.add("LOSSY_SOURCE")
    if 1 < stacked.geometry.shape[0] < FEW_SLICES:
        flags.add("FEW_SLICES")
    if not first["series"]:
        flags.add("NO_SERIES_UID")
    acquisition = _common([header["acquisition"] for header in all_headers])
    if first["modality"] == "PT":
        acquisition |= suv([header["pet"] for header in all_headers], (first["units"] or first["rescale_type"]).upper())
    channels = _channels(first)
    table = first["lut"] or first["palette"]
    return {
        "axes": "t" * (len(stacked.rows) > 1) + "c" * (channels > 1) + "zyx",
        "geometry": stacked.geometry.as_dict(),
        "modality": first["modality"],
        "slope": [slope for slope, _ in scales],
        "intercept": [intercept for _, intercept in scales],
        "units": _units(first),
        "photometric": "RGB" if channels > 1 else first["photometric"] or "MONOCHROME2",
        # 0: known when the table was applied
        "bits_stored": 0 if table else first["stored"] or first["allocated"],
        "frames": stacked.frames,
        "acquisition": acquisition,
        "flags": sorted(flags),
    }


def _common(dicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all files state alike."""
    first, *others = dicts
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _finding(error: InputError, key: str, members: Sequence[Image]) -> Finding:
    numbers = {name: float(value) for name, value in error.context.items() if isinstance(value, (int, float))}
    paths = tuple(sorted({image.entry.path for image in members}))
    return Finding(
        code=error.code,
        kind="series",
        key=key,
        files=len(paths),
        modality=members[0].header["modality"],
        numbers=numbers,
        paths=paths,
    )


def _header(entry: FileEntry) -> dict[str, Any]:
    assert entry.header is not None
    return entry.header

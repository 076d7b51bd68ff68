"""The sample archive of `voxbook demo`: phantoms as proper DICOM, real files that installed packages ship, broken ones.

Every patient in `phantoms/` and `broken/` is fictional. `real/` holds copies of test files of pydicom and nibabel.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from archive.derived import SeriesIdentity, stable_uid
from archive.dicom_write import write_series
from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.phantoms import UNITS_OF, phantom
from archive.volume import Volume

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Entry:
    """One folder or file of the sample archive.

    path: relative, posix. what: one phrase. expected: "ingested", "skipped", or a quarantine reason code.
    voxels: of a phantom series; 0 where not known.
    """

    path: str
    what: str
    expected: str
    files: int
    voxels: int = 0


@dataclass(frozen=True)
class Manifest:
    """What `write_sample_archive` wrote, and which real files the installed packages did not bring."""

    entries: tuple[Entry, ...]
    not_shipped: tuple[str, ...] = ()

    @property
    def voxels(self) -> int:
        """Voxels of the phantom series that are expected to be ingested."""
        return sum(entry.voxels for entry in self.entries if entry.expected == "ingested")


@dataclass(frozen=True)
class Phantom:
    """One phantom series: whose, of what kind, on which grid, and how it is stored."""

    name: str
    patient: int
    kind: str
    shape: tuple[int, int, int]
    spacing_mm: Triple
    syntax: str = ExplicitVRLittleEndian
    signed: bool = True
    enhancement: float = 0.0
    timepoints: int = 0
    tilt_degrees: float = 0.0
    turn_degrees: Triple = (0.0, 0.0, 0.0)
    sagittal: bool = False
    acquisition: dict[str, float | int | str] = field(default_factory=dict)


LITTLE, IMPLICIT, BIG, DEFLATED = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
# Thirteen fictional patients, 25 series, about ten million voxels.
PHANTOMS = (
    Phantom("ct-head", 1, "ct-head", (24, 160, 160), (5.5, 1.4, 1.4)),
    Phantom("ct-head-tilted", 2, "ct-head", (22, 160, 160), (5.0, 1.4, 1.4), IMPLICIT, tilt_degrees=14.0),
    Phantom("ct-head-thin", 3, "ct-head", (36, 128, 128), (2.0, 1.7, 1.7), JPEG2000Lossless, signed=False),
    Phantom("ct-head-contrast", 4, "ct-head", (20, 128, 128), (6.0, 1.7, 1.7), RLELossless, enhancement=0.8),
    Phantom("ct-chest-6mm", 5, "ct-chest", (30, 160, 160), (6.0, 2.4, 2.4), signed=False),
    Phantom("ct-chest-thin", 5, "ct-chest", (32, 128, 128), (1.5, 3.0, 3.0), JPEG2000Lossless),
    Phantom("ct-chest-contrast", 6, "ct-chest", (30, 160, 160), (7.0, 2.4, 2.4), DEFLATED, enhancement=0.9),
    Phantom("ct-chest-low-dose", 7, "ct-chest", (24, 128, 128), (3.0, 3.0, 3.0), RLELossless, signed=False),
    Phantom("ct-abdomen-portal", 8, "ct-abdomen", (28, 160, 160), (5.5, 2.4, 2.4), enhancement=0.7),
    Phantom("ct-abdomen-plain", 8, "ct-abdomen", (28, 160, 160), (5.5, 2.4, 2.4), BIG),
    Phantom("ct-abdomen-thick", 9, "ct-abdomen", (16, 192, 192), (10.0, 2.0, 2.0), signed=False, enhancement=0.4),
    Phantom("ct-abdomen-oblique", 10, "ct-abdomen", (20, 128, 128), (6.0, 3.0, 3.0), turn_degrees=(0.0, 11.0, -6.0)),
    Phantom("mr-t1", 1, "mr-t1", (26, 128, 128), (5.0, 1.7, 1.7)),
    Phantom("mr-t2", 1, "mr-t2", (26, 128, 128), (5.0, 1.7, 1.7), IMPLICIT),
    Phantom("mr-t1-sagittal", 2, "mr-t1", (24, 128, 128), (6.0, 1.7, 1.7), sagittal=True),
    Phantom("mr-t2-oblique", 3, "mr-t2", (24, 128, 128), (5.0, 1.7, 1.7), RLELossless, turn_degrees=(8.0, 0.0, 5.0)),
    Phantom("mr-t1-dynamic", 4, "mr-t1", (14, 112, 112), (8.0, 2.0, 2.0), timepoints=3),
    Phantom("mr-t1-thin", 11, "mr-t1", (32, 128, 128), (1.5, 1.7, 1.7), JPEG2000Lossless),
    Phantom("mr-t2-thick", 11, "mr-t2", (16, 160, 160), (8.0, 1.4, 1.4), BIG),
    Phantom("mr-t2-small", 12, "mr-t2", (18, 96, 96), (6.0, 2.3, 2.3)),
    Phantom("pet-body", 7, "pet", (56, 80, 80), (18.0, 5.0, 5.0)),
    Phantom("pet-body-fine", 10, "pet", (52, 96, 96), (20.0, 4.2, 4.2), IMPLICIT),
    Phantom("pet-body-rle", 12, "pet", (48, 80, 80), (20.0, 5.0, 5.0), RLELossless),
    Phantom("pet-body-unsigned", 13, "pet", (48, 80, 80), (20.0, 5.0, 5.0), signed=False),
    Phantom("ct-head-second", 13, "ct-head", (20, 128, 128), (5.0, 1.7, 1.7), LITTLE, signed=False),
)

PYDICOM_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ct-small": ("one slice of CT, pydicom's CT_small", ("CT_small.dcm",)),
    "ct-j2k": ("one slice of CT as JPEG 2000, its header's sign corrected", ("J2K_pixelrep_mismatch.dcm",)),
    "mr-small": (
        "one slice of MR in six transfer syntaxes, which are one image",
        (
            "MR_small.dcm",
            "MR_small_RLE.dcm",
            "MR_small_bigendian.dcm",
            "MR_small_implicit.dcm",
            "MR_small_jp2klossless.dcm",
            "MR_small_jpeg_ls_lossless.dcm",
        ),
    ),
    "mr-overlay": ("one slice of MR with an overlay", ("examples_overlay.dcm",)),
    "ultrasound": ("one colour ultrasound image", ("examples_rgb_color.dcm",)),
    "radiotherapy": ("plan and dose, not images", ("rtplan.dcm", "rtdose.dcm")),
    "documents": (
        "structured reports, a segmentation, an ECG",
        ("test-SR.dcm", "liver_1frame.dcm", "waveform_ecg.dcm"),
    ),
}
EXPECTED_REAL = {
    "radiotherapy": "skipped",
    "documents": "skipped",
}
NIBABEL_FILES = {
    "anatomical.nii": "3D, big-endian int16",
    "example4d.nii.gz": "4D, two time points, oblique",
    "example_nifti2.nii.gz": "NIfTI-2, 4D",
    "functional.nii": "4D, twenty time points",
    "reoriented_anat_moved.nii": "3D, float32",
}


def write_sample_archive(folder: Path, seed: int = 0) -> Manifest:
    """Write the sample archive into a new folder, whole or not at all; the same bytes for the same seed.

    Raises ConfigError OCCUPIED where the folder exists.
    """
    if folder.exists():
        raise ConfigError("OCCUPIED", "the folder of the sample archive exists already")
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.stage")
    stage.mkdir(parents=True)
    try:
        entries = [_write_phantom(stage, item, seed) for item in PHANTOMS]
        real, not_shipped = _copy_real(stage)
        entries += [*real, *_write_broken(stage, seed)]
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already when the rename succeeded
    return Manifest(tuple(entries), tuple(not_shipped))


def phantom_volume(item: Phantom, seed: int = 0) -> Volume:
    """The volume of one phantom series, in the integers that a scanner would store."""
    shape, spacing = item.shape, item.spacing_mm
    if item.sagittal:  # draw it axially: rows run from top to bottom, columns from front to back, slices to the left
        shape, spacing = (shape[1], shape[2], shape[0]), (spacing[1], spacing[2], spacing[0])
    passes = max(1, item.timepoints)
    drawn = [
        phantom(
            item.kind,
            shape,
            spacing,
            seed + item.patient,
            repeat=t,
            enhancement=item.enhancement if passes == 1 else t / (passes - 1),
        )
        for t in range(passes)
    ]
    values = np.stack([plane[::-1].transpose(2, 0, 1) if item.sagittal else plane for plane in drawn])
    modality = {"ct": "CT", "mr": "MR", "pe": "PT"}[item.kind[:2]]
    dtype = np.int16 if item.signed else np.uint16
    slope: tuple[float, ...] = (1.0,)
    intercept: tuple[float, ...] = (-1024.0 if modality == "CT" and not item.signed else 0.0,)
    if modality == "PT":  # a scanner uses the full range in every slice, so slopes differ (0028,1053)
        slope = tuple(float(f"{max(1.0, plane.max()) / np.iinfo(dtype).max:.8g}") for plane in values[0])
        intercept = (0.0,) * len(slope)
    stored = (values - np.float32(intercept[0])) / np.asarray(slope, np.float64).reshape(1, -1, 1, 1)
    voxels = np.rint(stored).clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    return Volume(
        voxels=voxels if item.timepoints else voxels[0],
        axes="tzyx" if item.timepoints else "zyx",
        geometry=_geometry(item),
        modality=modality,
        slope=slope,
        intercept=intercept,
        units=UNITS_OF[item.kind],
        bits_stored=16 if item.signed or modality == "PT" else 12,
        frames=tuple({"time_s": 30.0 * t} for t in range(item.timepoints)),
        acquisition=item.acquisition,
    )


def _geometry(item: Phantom) -> Geometry:
    z, y, x = item.spacing_mm
    axes = np.array([[0, 0, x], [0, y, 0], [z, 0, 0]], dtype=float)  # columns: steps of z, y, x in L, P, S
    if item.sagittal:
        axes = np.array([[z, 0, 0], [0, 0, x], [0, -y, 0]], dtype=float)
    if item.tilt_degrees:  # the table moves along S while the gantry leans: the grid is sheared
        tilt = np.radians(item.tilt_degrees)
        axes[:, 1] = (0.0, y * np.cos(tilt), y * np.sin(tilt))
    about_x, about_y, about_z = np.radians(item.turn_degrees)
    turn = _turn(2, about_z) @ _turn(1, about_y) @ _turn(0, about_x)
    axes = turn @ axes
    corner = -axes @ ((np.asarray(item.shape) - 1) / 2)
    return Geometry(item.shape, (*((*axes[row], corner[row]) for row in range(3)), (0.0, 0.0, 0.0, 1.0)))


def _turn(axis: int, angle: float) -> np.ndarray:
    one, two = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[[one, two], [one, two]] = np.cos(angle)
    matrix[one, two], matrix[two, one] = -np.sin(angle), np.sin(angle)
    return matrix


def _write_phantom(root: Path, item: Phantom, seed: int) -> Entry:
    volume = phantom_volume(item, seed)
    place = f"phantoms/patient{item.patient:02d}/{item.name}"
    number = 1 + [other.name for other in PHANTOMS].index(item.name)
    identity = SeriesIdentity.fictional(item.patient, f"{item.name} {seed}", number=number)
    # names in no order of the slices, as archives have them
    order = [int(index) for index in np.random.default_rng([seed, number]).permutation(volume.slices)]
    files = write_series(volume, root / place, identity, transfer_syntax=item.syntax, order=order)
    what = f"{'x'.join(map(str, volume.voxels.shape))}, {item.spacing_mm[0]:g} mm, {UID(item.syntax).name}"
    return Entry(place, what, "ingested", len(files), volume.voxels.size)


def _copy_real(root: Path) -> tuple[list[Entry], list[str]]:
    # pydicom's own lookup would download what is not there; these come with the wheels
    dicom = Path(pydicom.__file__).parent / "data" / "test_files"
    nifti = Path(nibabel.__file__).parent / "tests" / "data"
    wanted = {f"real/{name}": (what, [dicom / file for file in files]) for name, (what, files) in PYDICOM_FILES.items()}
    wanted["real/nifti"] = (
        "; ".join(f"{k}: {v}" for k, v in NIBABEL_FILES.items()),
        [nifti / n for n in NIBABEL_FILES],
    )
    entries, absent = [], []
    for place, (what, sources) in wanted.items():
        present = [source for source in sources if source.is_file()]
        absent += [source.name for source in sources if source not in present]
        if present:
            (root / place).mkdir(parents=True)
            for source in present:
                shutil.copyfile(source, root / place / source.name)
            entries.append(Entry(place, what, EXPECTED_REAL.get(Path(place).name, "ingested"), len(present)))
    return entries, absent


def _write_broken(root: Path, seed: int) -> list[Entry]:
    small = Phantom("broken", 14, "ct-head", (8, 64, 64), (6.0, 3.4, 3.4))
    volume = phantom_volume(small, seed)

    def series(name: str) -> list[Path]:
        return write_series(volume, root / "broken" / name, SeriesIdentity.fictional(14, f"{name} {seed}"))

    series("missing-slice")[4].unlink()
    duplicate = series("duplicate-position")
    again = pydicom.dcmread(duplicate[3])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = UID(stable_uid("again", str(seed)))
    again.PixelData = bytes(len(again.PixelData))
    again.save_as(duplicate[0].parent / "again.dcm")
    truncated = series("truncated")
    for path in truncated[1:]:
        path.unlink()
    truncated[0].write_bytes(truncated[0].read_bytes()[:-1500])
    files = root / "broken" / "files"
    files.mkdir()
    (files / "text.dcm").write_text("This is a text file whose name says DICOM.\n")
    (files / "empty.dcm").write_bytes(b"")
    return [
        Entry("broken/missing-slice", "slice 5 of 8 is gone", "MISSING_SLICE", 7),
        Entry("broken/duplicate-position", "one position twice, other pixels", "DUPLICATE_POSITION", 9),
        Entry("broken/truncated", "one slice whose last 1,500 bytes are gone", "TRUNCATED", 1),
        Entry("broken/files/text.dcm", "a text file named .dcm", "NOT_DICOM", 1),
        Entry("broken/files/empty.dcm", "an empty file", "NOT_DICOM", 1),
    ]

"""A Volume as a classic single-frame DICOM series: one file per slice, whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from archive.derived import NOT_DIAGNOSTIC, Derivation, SeriesIdentity, stable_uid
from archive.errors import ConfigError, InputError
from archive.sliced import Sliced
from archive.volume import Volume

IMPLEMENTATION_UID = "2.25.268410836117361914325411963206563190851"
# What the installed packages can write; pydicom needs pyjpegls for JPEG-LS, which voxbook does not install.
WRITABLE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
)
LEAST_JPEG2000 = 32  # pylibjpeg-openjpeg always asks for six resolutions
SOP_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
DUMMY_DATE = "19000101"
LEAST_TILT_DEG = 0.01
MR_NUMBERS = {
    "flip_angle_deg": "FlipAngle",
    "magnetic_field_t": "MagneticFieldStrength",
    "pixel_bandwidth_hz": "PixelBandwidth",
}
PET_UNITS = {"Bq/ml": "BQML", "SUVbw": "GML", "counts": "CNTS"}


def write_series(
    volume: Volume | Sliced,
    folder: Path,
    identity: SeriesIdentity,
    derived: Derivation | None = None,
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    order: list[int] | None = None,
) -> list[Path]:
    """Write a volume as IM00001.dcm, IM00002.dcm ... into a new folder, one file per slice (t-major, z-minor).

    Slices are staged beside the folder and renamed at the end, so there is never half a series. CT, MR and PT become
    their own Image Storage classes, everything else Secondary Capture with a geometry. `order` permutes which slice
    gets which file name, for archives where names say nothing. Of a Sliced no more than a slab is in memory.

    Returns the files in slice order. Raises ConfigError OCCUPIED (the folder exists), BAD_VALUE (a transfer syntax that
    cannot be written, or not at this size); InputError UNSUPPORTED_PIXELS (voxels that no classic DICOM holds),
    NO_GEOMETRY (sheared within the slice).
    """
    sliced = Sliced.of(volume)
    about = sliced.header
    if transfer_syntax not in WRITABLE:
        known = ", ".join(UID(uid).name for uid in WRITABLE)
        raise ConfigError("BAD_VALUE", "this transfer syntax cannot be written", hint=f"one of: {known}")
    if transfer_syntax == JPEG2000Lossless and min(about.geometry.shape[1:]) < LEAST_JPEG2000:
        raise ConfigError("BAD_VALUE", f"JPEG 2000 needs {LEAST_JPEG2000} rows and columns", hint="another syntax")
    if folder.exists():
        raise ConfigError("OCCUPIED", "the target folder exists already")
    numbers = list(range(about.slices)) if order is None else order
    if sorted(numbers) != list(range(about.slices)):
        raise ValueError("order must be a permutation of the slices")
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.stage"
    names = [f"IM{number + 1:05d}.dcm" for number in numbers]
    stage.mkdir(mode=0o700)
    bits: int | None = about.bits_stored
    try:
        while bits is not None:  # again from the start where a slice needs more, and then every slice has more
            bits = _write_slices(sliced, stage, names, identity, derived, UID(transfer_syntax), bits)
        stage.chmod(0o755)
        stage.rename(folder)
    except OSError as error:
        if folder.exists():
            raise ConfigError("OCCUPIED", "the target folder exists already") from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already when the rename succeeded
    return [folder / name for name in names]


def _write_slices(
    sliced: Sliced,
    stage: Path,
    names: list[str],
    identity: SeriesIdentity,
    derived: Derivation | None,
    syntax: UID,
    bits: int,
) -> int | None:
    """Write every slice with so many bits in use; the number that is needed where those are too few, else None."""
    datasets = slice_datasets(sliced.header, identity, derived)
    for first, slab in sliced.slabs():
        stored, needed = _stored(slab, sliced.header)
        if needed > bits:
            return needed
        used = min(stored.dtype.itemsize * 8, bits)
        for name, pixels, dataset in zip(names[first:], stored, datasets, strict=False):
            _pixels(dataset, pixels, sliced.header, used)
            _encode(dataset, syntax)
            dataset.save_as(stage / name, enforce_file_format=True)
    return None


def slice_datasets(volume: Volume, identity: SeriesIdentity, derived: Derivation | None = None) -> Iterator[Dataset]:
    """What the slices' datasets say but for their pixels, in slice order (t-major, z-minor)."""
    geometry = volume.geometry
    matrix = geometry.matrix
    step, column, row = (matrix[:3, axis] for axis in range(3))
    across, down = row / np.linalg.norm(row), column / np.linalg.norm(column)
    if abs(across @ down) > 1e-4:
        raise InputError("NO_GEOMETRY", "rows and columns are not perpendicular, which DICOM cannot say")
    depth = geometry.shape[0]
    offsets = np.asarray(geometry.positions_mm or np.arange(depth) * np.linalg.norm(step))
    positions = matrix[:3, 3] + offsets[:, None] * step / np.linalg.norm(step)
    between = abs(np.cross(across, down) @ step)
    fill_modality = MODULES.get(volume.modality, _secondary_capture)
    slopes, intercepts = (
        numbers if len(numbers) > 1 else numbers * volume.slices for numbers in (volume.slope, volume.intercept)
    )
    for index in range(volume.slices):
        t, z = divmod(index, depth)
        dataset = Dataset()
        _patient_and_study(dataset, identity)
        dataset.SOPClassUID = SOP_CLASSES.get(volume.modality, SecondaryCaptureImageStorage)
        dataset.SOPInstanceUID = stable_uid("instance", identity.series_uid, str(index))
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [_decimal(value) for value in positions[z]]
        dataset.ImageOrientationPatient = [_decimal(value) for value in (*across, *down)]
        dataset.PixelSpacing = [_decimal(np.linalg.norm(column)), _decimal(np.linalg.norm(row))]
        thickness = volume.acquisition.get("slice_thickness_mm", between)
        dataset.SliceThickness = _decimal(float(thickness))
        if volume.modality != "PT":  # there the orientation sequences stand in its place
            dataset.PatientPosition = str(volume.acquisition.get("patient_position", ""))
        if volume.modality not in ("CT", "PT"):  # not in their modules; readers take the positions there
            dataset.SpacingBetweenSlices = _decimal(between)
        dataset.SliceLocation = _decimal(float(np.cross(across, down) @ positions[z]))
        _time(dataset, volume, t)
        fill_modality(dataset, volume, t, z)
        needs_rescale = volume.modality in ("CT", "PT") or (slopes[index], intercepts[index]) != (1.0, 0.0)
        if needs_rescale:
            dataset.RescaleIntercept, dataset.RescaleSlope = _decimal(intercepts[index]), _decimal(slopes[index])
        if volume.modality == "CT":
            dataset.RescaleType = "HU" if volume.units == "HU" else "US"
        _image_type(dataset, volume, derived)
        yield dataset


def _stored(slab: np.ndarray, about: Volume) -> tuple[np.ndarray, int]:
    """Integers [slice, y, x] or [slice, y, x, 3] of 8 or 16 bits, and how many of the bits they need."""
    if "c" in about.axes:
        if slab.dtype != np.uint8 or about.channels != 3:
            raise InputError("UNSUPPORTED_PIXELS", "only 8-bit RGB is written as DICOM", hint="decode to .nii.gz")
        return np.moveaxis(slab, 1, -1), 8
    signed = slab.dtype.kind == "i"
    low, high = int(slab.min()), int(slab.max())
    target = np.int16 if signed else np.uint16
    if slab.dtype.kind == "f" or low < np.iinfo(target).min or high > np.iinfo(target).max:
        hint = "decode to .nii.gz, which keeps them"
        raise InputError("UNSUPPORTED_PIXELS", "classic DICOM holds integers of at most 16 bits", hint=hint)
    # decoded voxels may leave the range that the source's bits spanned; a too small BitsStored would wrap them
    needed = max((low if low >= 0 else -low - 1).bit_length(), high.bit_length()) + signed
    return slab.astype(target) if slab.dtype.itemsize > 2 else slab, max(needed, 1 + signed)


def _patient_and_study(dataset: Dataset, identity: SeriesIdentity) -> None:
    dataset.PatientName, dataset.PatientID = identity.patient_name, identity.patient_id
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "fictional or pseudonymous, written by voxbook"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = identity.study_uid, identity.series_uid
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = identity.frame_of_reference_uid, ""
    dataset.StudyDate, dataset.StudyTime = identity.study_date, "120000" if identity.study_date else ""
    dataset.SeriesDate, dataset.SeriesTime = dataset.StudyDate, dataset.StudyTime
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber, dataset.Laterality = identity.series_number, ""
    if identity.description:
        dataset.SeriesDescription = identity.description
    dataset.Manufacturer, dataset.ManufacturerModelName = "voxbook", "voxbook"


def _time(dataset: Dataset, volume: Volume, t: int) -> None:
    frame = volume.frames[t] if t < len(volume.frames) else {}
    dataset.AcquisitionNumber = t + 1
    if volume.axes.startswith("t"):
        dataset.TemporalPositionIdentifier = t + 1
        dataset.NumberOfTemporalPositions = volume.timepoints
    seconds = frame.get("time_s", 0.0)
    clock = datetime(2026, 1, 1, 12) + timedelta(seconds=seconds)
    dataset.AcquisitionDate = dataset.ContentDate = dataset.StudyDate
    dataset.AcquisitionTime = dataset.ContentTime = clock.strftime("%H%M%S.%f")
    if "b_value" in frame:
        dataset.DiffusionBValue = float(frame["b_value"])


def _ct(dataset: Dataset, volume: Volume, t: int, z: int) -> None:
    dataset.Modality = "CT"
    dataset.KVP = _known(volume, "kvp")
    # As the scanner states it: the affine knows the angle, but not which way its maker counts it.
    tilt = float(volume.acquisition.get("gantry_tilt_deg", volume.geometry.tilt_degrees))
    if abs(tilt) > LEAST_TILT_DEG:
        dataset.GantryDetectorTilt = _decimal(tilt)


def _mr(dataset: Dataset, volume: Volume, t: int, z: int) -> None:
    known = volume.acquisition
    dataset.Modality = "MR"
    # Type 1 (PS3.3 C.8.3.1): where the source does not say, research mode, and 2D, which these files are slices of.
    dataset.ScanningSequence = str(known.get("scanning_sequence", "RM"))
    dataset.SequenceVariant, dataset.ScanOptions = str(known.get("sequence_variant", "NONE")), ""
    dataset.MRAcquisitionType = str(known.get("mr_acquisition", "2D"))
    dataset.EchoTime, dataset.RepetitionTime = _known(volume, "echo_time_ms"), _known(volume, "repetition_time_ms")
    length = known.get("echo_train_length", "")
    dataset.EchoTrainLength = round(float(length)) if length != "" else ""
    if "inversion_time_ms" in known or dataset.ScanningSequence == "IR":
        dataset.InversionTime = _known(volume, "inversion_time_ms")
    for key, keyword in MR_NUMBERS.items():
        if key in known:
            setattr(dataset, keyword, _known(volume, key))


def _pet(dataset: Dataset, volume: Volume, t: int, z: int) -> None:
    dataset.Modality = "PT"
    # Type 1 in the PET Series Module: a dummy where there is no date to be told (PS3.15, E.1).
    dataset.SeriesDate, dataset.SeriesTime = dataset.SeriesDate or DUMMY_DATE, dataset.SeriesTime or "000000"
    dataset.RadiopharmaceuticalInformationSequence = []
    dataset.PatientOrientationCodeSequence, dataset.PatientGantryRelationshipCodeSequence = [], []
    dataset.Units = PET_UNITS.get(volume.units, "NONE")
    if dataset.Units == "GML":
        dataset.SUVType = "BW"
    dataset.CountsSource = "EMISSION"
    dataset.SeriesType = ["DYNAMIC" if volume.timepoints > 1 else "STATIC", "IMAGE"]
    dataset.NumberOfSlices = volume.geometry.shape[0]
    if volume.timepoints > 1:
        dataset.NumberOfTimeSlices = volume.timepoints
    dataset.ImageIndex = t * volume.geometry.shape[0] + z + 1
    dataset.DecayCorrection = str(volume.acquisition.get("decay_correction", "NONE"))
    if dataset.DecayCorrection != "NONE":
        # Type 1C: factors that differ from slice to slice are not stored; 1 is the dummy, the voxels are scaled already.
        dataset.DecayFactor = _known(volume, "decay_factor") or "1"
    dataset.CorrectedImage, dataset.CollimatorType = "", "NONE"
    dataset.FrameReferenceTime = _decimal(1000 * (volume.frames[t].get("time_s", 0.0) if volume.frames else 0.0))
    dataset.ActualFrameDuration = _frame_duration_ms(volume, t)


def _frame_duration_ms(volume: Volume, t: int) -> int:
    """Type 1 (0018,1242): as stated, else until the next frame begins; 0, which no scan has, where nobody knows."""
    stated = volume.acquisition.get("frame_duration_ms")
    if stated is not None:
        return round(float(stated))
    times = [frame["time_s"] for frame in volume.frames if "time_s" in frame]
    if len(times) < 2 or len(times) != volume.timepoints:
        return 0
    return round(1000 * float(np.diff(times)[min(t, len(times) - 2)]))


def _secondary_capture(dataset: Dataset, volume: Volume, t: int, z: int) -> None:
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"


MODULES: dict[str, Callable[[Dataset, Volume, int, int], None]] = {"CT": _ct, "MR": _mr, "PT": _pet}


def _image_type(dataset: Dataset, volume: Volume, derived: Derivation | None) -> None:
    third = {"CT": ["AXIAL"], "MR": ["OTHER"]}.get(volume.modality, [])
    second = "SECONDARY" if derived is not None and volume.modality != "PT" else "PRIMARY"  # PET: PS3.3 C.8.9.4.1.1
    dataset.ImageType = ["ORIGINAL" if derived is None else "DERIVED", second, *third]
    if derived is None:
        dataset.BurnedInAnnotation = "NO"
        return
    if derived.lossless:
        dataset.LossyImageCompression = "01" if "LOSSY_SOURCE" in volume.flags else "00"
        how = "exact voxels from the volume store" if derived.tier == "volume" else "exact voxels from bounded codes"
    else:
        dataset.LossyImageCompression = "01"
        # No defined term exists for a VQ-VAE (PS3.3 C.7.6.1.1.5.1); bounded voxels are JPEG-LS near-lossless.
        dataset.LossyImageCompressionMethod = "VOXBOOK_VQVAE" if derived.max_error is None else "ISO_14495_1"
        if derived.ratio is not None:
            dataset.LossyImageCompressionRatio = _decimal(round(derived.ratio, 2))
        bound = "" if derived.max_error is None else f", no voxel off by more than {derived.max_error:g} {volume.units}"
        how = f"decoded from codebook indices of model {derived.model}{bound}"
        dataset.DerivationCodeSequence = [_code("113040", "DCM", "Lossy Compression")]
    if derived.source:
        predecessor = Dataset()
        predecessor.ReferencedSOPClassUID = dataset.SOPClassUID
        predecessor.ReferencedSOPInstanceUID = stable_uid("source", derived.source, str(dataset.InstanceNumber))
        predecessor.PurposeOfReferenceCodeSequence = [_code("121320", "DCM", "Uncompressed predecessor")]
        dataset.SourceImageSequence = [predecessor]
    dataset.DerivationDescription = f"{how}, by voxbook; {NOT_DIAGNOSTIC}"
    dataset.ImageComments = NOT_DIAGNOSTIC


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _pixels(dataset: Dataset, pixels: np.ndarray, volume: Volume, bits: int) -> None:
    colour = pixels.ndim == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else volume.photometric
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated == 16 else "OB"


def _encode(dataset: Dataset, syntax: UID) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION_UID), "VOXBOOK"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed and not syntax.is_deflated else syntax
    dataset.file_meta = meta
    if syntax.is_encapsulated:
        dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()


def _known(volume: Volume, key: str) -> str:
    """An acquisition number as a DS value; empty, which type 2 allows, where the source does not state it."""
    number = volume.acquisition.get(key)
    return "" if number is None else _decimal(float(number))


def _decimal(number: float | np.floating) -> str:
    """A DS value: at most 16 characters, exact for numbers that came from one."""
    return format_number_as_ds(float(number) + 0.0)  # + 0.0 makes -0.0 a plain 0

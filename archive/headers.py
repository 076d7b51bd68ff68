"""DICOM headers: what grouping and reading need, read once, without pixels, from one file at a time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from archive import acquisition, elements, frames, mosaic, part10
from archive.acquisition import ALLOWED, terms
from archive.errors import InputError

STORAGE = "1.2.840.10008.5.1.4.1.1."
# Defined terms of Modality (PS3.3 C.7.3.1.1.1) that come with pixels; anything else is free text, and taken for OT.
MODALITIES = terms(
    "AR AS ASMT AU BDUS BI BMD CD CR CS CT DD DF DG DM DOC DS DX EC ECG EPS ES FA FID FS GM HC HD IO IVOCT IVUS KER KO LEN "
    "LP LS MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PLAN POS PR PT PX REG RESP RF RG RTDOSE "
    "RTIMAGE RTPLAN RTRECORD RTSTRUCT RWV SC SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XA XC"
)
# Where Modality is missing, the class of the object says it, by the UID behind STORAGE.
CLASS_MODALITIES = {
    "1": "CR", "1.1": "DX", "1.2": "MG", "1.3": "IO", "2": "CT", "2.1": "CT", "2.2": "CT", "3.1": "US", "4": "MR",
    "4.1": "MR", "4.3": "MR", "4.4": "MR", "6.1": "US", "6.2": "US", "12.1": "XA", "12.1.1": "XA", "12.2": "RF",
    "12.2.1": "RF", "13.1.3": "MG", "20": "NM", "128": "PT", "128.1": "PT", "130": "PT",
}  # fmt: skip

STRINGS = {
    "sop_class": "SOPClassUID",
    "sop": "SOPInstanceUID",
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
    "series_number": "SeriesNumber",
    "patient": "PatientID",
    "issuer": "IssuerOfPatientID",
    "modality": "Modality",
    "photometric": "PhotometricInterpretation",
    "units": "Units",
    "suv_type": "SUVType",
    "burned_in": "BurnedInAnnotation",
    "lossy": "LossyImageCompression",
    "lut_type": "ModalityLUTType",
}
INTEGERS = {
    "rows": "Rows",
    "columns": "Columns",
    "samples": "SamplesPerPixel",
    "allocated": "BitsAllocated",
    "stored": "BitsStored",
    "high": "HighBit",
    "signed": "PixelRepresentation",
    "frames": "NumberOfFrames",
    "planar": "PlanarConfiguration",
}
# What may differ between the images of one file; the first keyword that is there counts.
IMAGE_STRINGS = {
    "rescale_type": ("RescaleType",),
    "kernel": ("ConvolutionKernel",),
    "component": ("ComplexImageComponent",),
    "image_type": ("FrameType", "ImageType"),
    "stack": ("StackID",),
}
IMAGE_NUMBERS = {
    "slope": ("RescaleSlope",),
    "intercept": ("RescaleIntercept",),
    "thickness": ("SliceThickness",),
    "gap": ("SpacingBetweenSlices",),
    "echo_time": ("EchoTime", "EffectiveEchoTime"),
    "energy_kev": ("MonoenergeticEnergyEquivalent",),
    "temporal": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "reference_ms": ("FrameReferenceTime",),
    "trigger_ms": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "acquisition_number": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "instance": ("InstanceNumber",),
}
IMAGE_VECTORS = {
    "position": (("ImagePositionPatient", "ImagePositionVolume"), 3),
    "orientation": (("ImageOrientationPatient", "ImageOrientationVolume"), 6),
    "spacing": (("PixelSpacing",), 2),
}
# Of projections: the spacing at the detector or in the scanned film, not in the patient.
DETECTOR_SPACINGS = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
CLOCKS = {"acquired_s": "Acquisition", "content_s": "Content"}
# Diffusion b-value: standard (0018,9087), Siemens (0019,100C), GE (0043,1039).
B_VALUES = (Tag(0x0018, 0x9087), Tag(0x0019, 0x100C), Tag(0x0043, 0x1039))
PHILIPS_MR, PHILIPS, GE_PARAMETERS = "Philips MR Imaging DD 001", "Philips Imaging DD 001", "GEMS_PARM_01"
GE_COMPONENTS = {1: "PHASE", 2: "REAL", 3: "IMAGINARY"}  # (0043,xx2F); 0 is magnitude
PRIVATE: list[Any] = [
    *elements.private_tags(0x0019, 0x0E),  # Siemens: direction of the diffusion gradient
    *elements.private_tags(0x0043, 0x2F),  # GE: which part of the complex image
    *elements.private_tags(0x0065, 0x09),  # UIH: b-value
    *elements.private_tags(0x2001, 0x03),  # Philips: b-value
    *elements.private_tags(0x2005, 0x0E, 0x0F, 0xB0, 0xB1, 0xB2),  # Philips: scale, groups, diffusion gradient
]
PET: tuple[str, ...] = ("PatientWeight", "CorrectedImage", "DecayCorrection", "SeriesDate", "SeriesTime")
PET += ("AcquisitionDate", "AcquisitionTime", "RadiopharmaceuticalInformationSequence")
PET += ("AttenuationCorrected", "DecayCorrected", "DecayCorrectionDateTime")  # of enhanced objects

WANTED: list[Any] = [
    *STRINGS.values(),
    *INTEGERS.values(),
    *(keyword for keywords in (*IMAGE_STRINGS.values(), *IMAGE_NUMBERS.values()) for keyword in keywords),
    *(keyword for keywords, _ in IMAGE_VECTORS.values() for keyword in keywords),
    *DETECTOR_SPACINGS,
    "SequenceOfUltrasoundRegions",
    *(prefix + tail for prefix in CLOCKS.values() for tail in ("Date", "Time", "DateTime")),
    *(allowed.keyword for allowed in ALLOWED.values() if allowed.keyword),
    *PET,
    *B_VALUES,
    "DiffusionGradientOrientation",
    *PRIVATE,
    *frames.FRAME_TAGS,
    *mosaic.MOSAIC_TAGS,
    "ModalityLUTSequence",
]
WANTED.remove("ContentDateTime")  # no such attribute
WANTED = sorted({Tag(name) for name in WANTED})


def read_header(path: Path) -> dict[str, Any]:
    """Everything in a DICOM file but its pixels, as a JSON-ready dict; missing values are None or empty.

    `pixels` is [tag, offset, length, big endian, 16-bit words], or None; length is -1 where encapsulated.
    `cut`: the file ends within its header. `images`: what the frames of a multi-frame object differ in, one dict each,
    or empty; `tiles`: archive.mosaic. Raises InputError NOT_DICOM, UNREADABLE, and those of part10.read_elements.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = part10.read_elements(file, WANTED)
            return {**_extract(found.dataset, found.pixels), "cut": found.cut}
    except InputError:
        raise
    except OSError:
        raise InputError("UNREADABLE") from None
    # Many kinds come out of broken headers (struct.error, RecursionError, NotImplementedError, ...): they all mean it.
    except Exception as error:
        raise InputError("NOT_DICOM", f"the header cannot be parsed ({type(error).__name__})") from None


def _extract(dataset: Dataset, pixels: list[int] | None) -> dict[str, Any]:
    meta = dataset.file_meta
    header: dict[str, Any] = {"pixels": pixels, "elements": len(dataset)}
    header["syntax"] = str(meta.get("TransferSyntaxUID", "") or "")
    header |= {key: elements.string(dataset, keyword) for key, keyword in STRINGS.items()}
    header["sop_class"] = header["sop_class"] or str(meta.get("MediaStorageSOPClassUID", "") or "")
    header["modality"] = _modality(header)
    header |= {key: elements.integer(dataset, keyword) for key, keyword in INTEGERS.items()}
    # Missing and illegal are told apart: no number means one frame, an unreadable one is not to be trusted.
    header["frames_illegal"] = elements.string(dataset, "NumberOfFrames") != "" and (header["frames"] or -1) < 0
    header["lut"] = bool(elements.get(dataset, "ModalityLUTSequence"))
    # On MONOCHROME images a palette is supplemental: it colours a rendering, the stored values stay grey.
    header["palette"] = header["photometric"] == "PALETTE COLOR"
    header["detector_spacing"], header["region_spacing"] = _detector_spacing(dataset), _region_spacing(dataset)
    header |= {"part": "", "dimension": [], "frame_ms": None, "assumed": []}
    header |= image_fields(dataset)
    header["tiles"] = mosaic.tiles(dataset, header["image_type"]) if (header["frames"] or 1) == 1 else None
    images = [image_fields(flat) for flat in frames.functional_groups(dataset)]
    for image in images:
        image["acquisition"].pop("manufacturer")  # frames do not name one
    header["images"] = frames.condensed(header, images or frames.counted_frames(dataset, header))
    if header["modality"] == "PT":
        header["pet"] = _pet(dataset)
    return header


def _modality(header: dict[str, Any]) -> str:
    """A defined term: what Modality (0008,0060) says, else what the class of the object implies, else OT."""
    stated = header["modality"].upper()
    if stated == "PET":  # not a defined term, but some write it
        return "PT"
    if not stated:
        return CLASS_MODALITIES.get(header["sop_class"].removeprefix(STORAGE), "OT")
    return stated if stated in MODALITIES else "OT"


def image_fields(dataset: Dataset) -> dict[str, Any]:
    """What a header, or the functional groups of one frame, say of one image; None or empty where they do not."""
    found: dict[str, Any] = {key: _first(elements.string, dataset, names) for key, names in IMAGE_STRINGS.items()}
    found |= {key: _first(elements.number, dataset, names) for key, names in IMAGE_NUMBERS.items()}
    for key, (names, size) in IMAGE_VECTORS.items():
        found[key] = next((value for name in names if (value := elements.vector(dataset, name, size))), None)
    if found["position"] and "ImagePositionPatient" not in dataset:
        found["assumed"] = ["NO_ORIENTATION"]  # in the space of an ultrasound volume, not of the patient
    found |= {key: _clock(dataset, prefix) for key, prefix in CLOCKS.items()}
    offset = elements.number(dataset, "TemporalPositionTimeOffset")
    if found["reference_ms"] is None and offset is not None:
        found["reference_ms"] = offset * 1000.0
    found["component"] = found["component"] or _ge_component(dataset)
    found["b_value"] = _b_value(dataset)
    found["direction"] = _direction(dataset)
    scale = elements.private_numbers(dataset, 0x2005, PHILIPS_MR, 0x0E, "<f")
    found["scale"] = scale[0] if scale and scale[0] > 0 else None
    values = getattr(dataset, "dimension_values", None)
    if values is not None:
        found["dimension"] = values
    # Missing and illegal are told apart: no slope means 1, an unreadable one means the series is not to be trusted.
    stated = [key for key in ("slope", "intercept") if elements.get(dataset, IMAGE_NUMBERS[key][0]) not in (None, "")]
    found["slope_illegal"] = any(found[key] is None for key in stated)
    found["acquisition"] = acquisition.stated(dataset)
    if found["echo_time"] is not None and 0 <= found["echo_time"] <= ALLOWED["echo_time_ms"].high:
        found["acquisition"].setdefault("echo_time_ms", found["echo_time"])
    return found


def _first(read: Any, dataset: Dataset, names: tuple[str, ...]) -> Any:
    """What the first of these keywords that has a value says; else the reader's word for nothing."""
    for name in names[:-1]:
        if (value := read(dataset, name)) not in (None, ""):
            return value
    return read(dataset, names[-1])


def _clock(dataset: Dataset, prefix: str) -> float | None:
    if prefix == "Acquisition":
        for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime"):
            joint = elements.seconds_of_datetime(elements.string(dataset, keyword))
            if joint is not None:
                return joint
    return _day_time(dataset, prefix)


def _day_time(dataset: Dataset, prefix: str) -> float | None:
    return elements.seconds_of(elements.string(dataset, prefix + "Date"), elements.string(dataset, prefix + "Time"))


def _detector_spacing(dataset: Dataset) -> list[float] | None:
    found = (elements.vector(dataset, keyword, 2) for keyword in DETECTOR_SPACINGS)
    return next((spacing for spacing in found if spacing and min(spacing) > 0), None)


def _region_spacing(dataset: Dataset) -> list[float] | None:
    """Millimetres per row and column of an ultrasound image that is calibrated in one region only (0018,6011)."""
    regions = elements.items(dataset, "SequenceOfUltrasoundRegions")
    if len(regions) != 1:
        return None
    units = [elements.integer(regions[0], f"PhysicalUnits{axis}Direction") for axis in "YX"]
    steps = [elements.number(regions[0], f"PhysicalDelta{axis}") for axis in "YX"]
    if units != [3, 3] or None in steps or 0.0 in steps:  # 3 is cm
        return None
    return [abs(step) * 10.0 for step in steps if step is not None]


def _ge_component(dataset: Dataset) -> str:
    value = elements.private_numbers(dataset, 0x0043, GE_PARAMETERS, 0x2F, "<h")
    return GE_COMPONENTS.get(int(value[0]), "") if value else ""


def _direction(dataset: Dataset) -> list[float] | None:
    """Diffusion gradient in patient space (LPS): the standard's (0018,9089), Siemens', Philips'."""
    found = elements.vector(dataset, "DiffusionGradientOrientation", 3)
    found = found or elements.private_numbers(dataset, 0x0019, mosaic.SIEMENS_MR, 0x0E, "<d", 3)
    if found is None:
        parts = [elements.private_numbers(dataset, 0x2005, PHILIPS_MR, code, "<f") for code in (0xB0, 0xB1, 0xB2)]
        found = [part[0] for part in parts if part] if all(parts) else None
    return found if found and any(found) else None


def _b_value(dataset: Dataset) -> float | None:
    for tag in B_VALUES:
        value = elements.get(dataset, tag)
        if isinstance(value, (list, MultiValue)):
            value = value[0] if value else None
        if isinstance(value, bytes):  # implicit VR leaves private values as bytes
            value = value.decode("ascii", "ignore").split("\\")[0].strip("\0 ")
        number = elements.floating(value)
        if number is not None and number >= 0:
            return number % 1e9  # GE adds multiples of 1e9
    found = elements.private_numbers(dataset, 0x2001, PHILIPS, 0x03, "<f")
    found = found or elements.private_numbers(dataset, 0x0065, mosaic.UIH, 0x09, "<d")
    return found[0] if found and found[0] >= 0 else None


def _pet(dataset: Dataset) -> dict[str, Any]:
    """What archive.suv needs of one PT header: numbers, clocks in seconds, and two enums."""
    dose = (elements.items(dataset, "RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    flags = {"ATTN": "AttenuationCorrected", "DECY": "DecayCorrected"}
    corrected = [name for name, keyword in flags.items() if elements.string(dataset, keyword) == "YES"]
    injected = elements.seconds_of_datetime(elements.string(dose, "RadiopharmaceuticalStartDateTime"))
    if injected is None:
        injected = elements.seconds_of("", elements.string(dose, "RadiopharmaceuticalStartTime"))
    return {
        "weight_kg": elements.number(dataset, "PatientWeight"),
        "dose_bq": elements.number(dose, "RadionuclideTotalDose"),
        "half_life_s": elements.number(dose, "RadionuclideHalfLife"),
        "injected_s": injected,
        "series_s": _day_time(dataset, "Series"),
        "acquired_s": _day_time(dataset, "Acquisition"),
        "corrections": elements.string(dataset, "CorrectedImage") or "\\".join(corrected),
        "decay": elements.string(dataset, "DecayCorrection"),
        "decayed_s": elements.seconds_of_datetime(elements.string(dataset, "DecayCorrectionDateTime")),
    }

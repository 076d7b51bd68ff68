"""DICOM headers: what grouping and reading need, read once, without pixels, from one file at a time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from archive import part10
from archive.errors import InputError


@dataclass(frozen=True)
class Allowed:
    """An acquisition key that a Volume may carry: a number within bounds, or one of some terms; never free text."""

    keyword: str
    low: float = 0.0
    high: float = 1e9
    terms: frozenset[str] = frozenset()


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Defined terms of Body Part Examined (PS3.16 annex L) that single-word archives use.
BODY_PARTS = _terms(
    "ABDOMEN ABDOMENPELVIS ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID "
    "CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY "
    "CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND "
    "HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MAXILLA "
    "MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA "
    "PELVIS PENIS PHARYNX PROSTATE RECTUM RIB SACRUM SCALP SCAPULA SCROTUM SELLA SHOULDER SIJOINT SINUS SKULL SPINE "
    "SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THYMUS THYROID TIBIAFIBULA TLSPINE TMJ TOE TONGUE "
    "TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)
MANUFACTURERS = ("SIEMENS", "PHILIPS", "TOSHIBA", "CANON", "HITACHI", "FUJI", "SHIMADZU", "BRUKER", "UIH", "NEUSOFT")

ALLOWED: dict[str, Allowed] = {
    "echo_time_ms": Allowed("EchoTime"),
    "repetition_time_ms": Allowed("RepetitionTime"),
    "inversion_time_ms": Allowed("InversionTime"),
    "flip_angle_deg": Allowed("FlipAngle", high=360),
    "echo_train_length": Allowed("EchoTrainLength"),
    "magnetic_field_t": Allowed("MagneticFieldStrength", high=50),
    "pixel_bandwidth_hz": Allowed("PixelBandwidth"),
    "slice_thickness_mm": Allowed("SliceThickness", high=1e4),
    "slice_gap_mm": Allowed("SpacingBetweenSlices", low=-1e4, high=1e4),
    "kvp": Allowed("KVP", high=1e4),
    "tube_current_ma": Allowed("XRayTubeCurrent"),
    "exposure_mas": Allowed("Exposure"),
    "gantry_tilt_deg": Allowed("GantryDetectorTilt", low=-90, high=90),
    "reconstruction_diameter_mm": Allowed("ReconstructionDiameter", high=1e4),
    "pitch": Allowed("SpiralPitchFactor", high=100),
    "body_part": Allowed("BodyPartExamined", terms=BODY_PARTS),
    "patient_position": Allowed("PatientPosition", terms=_terms("HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS")),
    "laterality": Allowed("Laterality", terms=_terms("L R B U")),
    "scanning_sequence": Allowed("ScanningSequence", terms=_terms("SE IR GR EP RM")),
    "mr_acquisition": Allowed("MRAcquisitionType", terms=_terms("2D 3D")),
    "manufacturer": Allowed("Manufacturer", terms=frozenset((*MANUFACTURERS, "GE", "OTHER"))),
    "decay_correction": Allowed("DecayCorrection", terms=_terms("NONE START ADMIN")),
    # measured over the series, archive/suv.py
    "suv_factor": Allowed(""),
    "suv_missing": Allowed("", terms=_terms("UNITS NOT_CORRECTED DECAY WEIGHT DOSE HALF_LIFE TIMES")),
}

STRINGS = {
    "sop_class": "SOPClassUID",
    "sop": "SOPInstanceUID",
    "series": "SeriesInstanceUID",
    "patient": "PatientID",
    "issuer": "IssuerOfPatientID",
    "modality": "Modality",
    "photometric": "PhotometricInterpretation",
    "rescale_type": "RescaleType",
    "units": "Units",
    "suv_type": "SUVType",
    "kernel": "ConvolutionKernel",
    "component": "ComplexImageComponent",
    "image_type": "ImageType",
    "burned_in": "BurnedInAnnotation",
    "lossy": "LossyImageCompression",
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
}
NUMBERS = {
    "slope": "RescaleSlope",
    "intercept": "RescaleIntercept",
    "thickness": "SliceThickness",
    "gap": "SpacingBetweenSlices",
    "echo_time": "EchoTime",
    "temporal": "TemporalPositionIdentifier",
    "reference_ms": "FrameReferenceTime",
    "trigger_ms": "TriggerTime",
    "acquisition_number": "AcquisitionNumber",
    "instance": "InstanceNumber",
}
VECTORS = {"position": ("ImagePositionPatient", 3), "orientation": ("ImageOrientationPatient", 6)}
VECTORS["spacing"] = ("PixelSpacing", 2)
CLOCKS = {"acquired_s": "Acquisition", "content_s": "Content"}
# Diffusion b-value: standard (0018,9087), Siemens (0019,100C), GE (0043,1039).
B_VALUES = (Tag(0x0018, 0x9087), Tag(0x0019, 0x100C), Tag(0x0043, 0x1039))
PET: tuple[str, ...] = ("PatientWeight", "CorrectedImage", "DecayCorrection", "SeriesDate", "SeriesTime")
PET += ("AcquisitionDate", "AcquisitionTime", "RadiopharmaceuticalInformationSequence")

WANTED: list[Any] = [
    *STRINGS.values(),
    *INTEGERS.values(),
    *NUMBERS.values(),
    *(keyword for keyword, _ in VECTORS.values()),
    *(prefix + tail for prefix in CLOCKS.values() for tail in ("Date", "Time", "DateTime")),
    *(allowed.keyword for allowed in ALLOWED.values() if allowed.keyword),
    *PET,
    *B_VALUES,
    "ModalityLUTSequence",
]
WANTED.remove("ContentDateTime")  # no such attribute
WANTED = sorted({Tag(name) for name in WANTED})


def read_header(path: Path) -> dict[str, Any]:
    """Everything in a DICOM file but its pixels, as a JSON-ready dict; missing values are None or empty.

    `pixels` is [tag, offset, length, big endian, 16-bit words], or None; length is -1 where encapsulated.
    Raises InputError NOT_DICOM, UNREADABLE.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset, pixels = part10.read_elements(file, WANTED)
            return _extract(dataset, pixels)
    except OSError:
        raise InputError("UNREADABLE") from None
    # Many kinds come out of broken headers (struct.error, RecursionError, NotImplementedError, ...): they all mean it.
    except Exception as error:
        raise InputError("NOT_DICOM", f"the header cannot be parsed ({type(error).__name__})") from None


def _extract(dataset: Dataset, pixels: list[int] | None) -> dict[str, Any]:
    meta = dataset.file_meta
    header: dict[str, Any] = {"pixels": pixels, "elements": len(dataset)}
    header["syntax"] = str(meta.get("TransferSyntaxUID", "") or "")
    header |= {key: _string(dataset, keyword) for key, keyword in STRINGS.items()}
    header["sop_class"] = header["sop_class"] or str(meta.get("MediaStorageSOPClassUID", "") or "")
    header |= {key: _integer(dataset, keyword) for key, keyword in INTEGERS.items()}
    header |= {key: _number(dataset, keyword) for key, keyword in NUMBERS.items()}
    header |= {key: _vector(dataset, keyword, size) for key, (keyword, size) in VECTORS.items()}
    header |= {key: _clock(dataset, prefix) for key, prefix in CLOCKS.items()}
    header["b_value"] = _b_value(dataset)
    header["lut"] = bool(_get(dataset, "ModalityLUTSequence"))
    # Missing and illegal are told apart: no slope means 1, an unreadable one means the series is not to be trusted.
    stated = [key for key in ("slope", "intercept") if _get(dataset, NUMBERS[key]) not in (None, "")]
    header["slope_illegal"] = any(header[key] is None for key in stated)
    header["acquisition"] = _acquisition(dataset)
    if header["modality"] == "PET":  # not a defined term, but some write it
        header["modality"] = "PT"
    if header["modality"] == "PT":
        header["pet"] = _pet(dataset)
    return header


def _get(dataset: Dataset, keyword: Any) -> Any:
    try:
        if isinstance(keyword, str):
            return dataset.get(keyword)
        return dataset[keyword].value if keyword in dataset else None
    except Exception:  # one unreadable value must not hide the others; pydicom raises whatever its converters raise
        return None


def _string(dataset: Dataset, keyword: str) -> str:
    value = _get(dataset, keyword)
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        return "\\".join(str(item).strip() for item in value)
    return "" if value is None else str(value).strip().strip("\0")


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    return _float(_get(dataset, keyword))


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = _number(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def _vector(dataset: Dataset, keyword: str, size: int) -> list[float] | None:
    value = _get(dataset, keyword)
    if not isinstance(value, (list, pydicom.multival.MultiValue)) or len(value) != size:
        return None
    numbers = [_float(item) for item in value]
    return None if None in numbers else numbers  # type: ignore[return-value]


def seconds_of(date: str, time: str) -> float | None:
    """Seconds on an absolute clock of DICOM DA (may be empty) and TM; None where the time is not legal."""
    digits, _, fraction = time.replace(":", "").strip().partition(".")
    if not digits.isdigit() or len(digits) not in (2, 4, 6):
        return None
    digits = digits.ljust(6, "0")
    clock = int(digits[:2]) * 3600.0 + int(digits[2:4]) * 60 + int(digits[4:])
    clock += float(f"0.{fraction}") if fraction.isdigit() else 0.0
    try:
        return clock + datetime.strptime(date.replace(".", ""), "%Y%m%d").toordinal() * 86400.0
    except ValueError:
        return clock


def _clock(dataset: Dataset, prefix: str) -> float | None:
    joint = _string(dataset, prefix + "DateTime") if prefix == "Acquisition" else ""
    if len(joint) >= 14:
        return seconds_of(joint[:8], joint[8:].split("+")[0].split("-")[0])
    return seconds_of(_string(dataset, prefix + "Date"), _string(dataset, prefix + "Time"))


def _b_value(dataset: Dataset) -> float | None:
    for tag in B_VALUES:
        value = _get(dataset, tag)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = value[0] if value else None
        if isinstance(value, bytes):  # implicit VR leaves private values as bytes
            value = value.decode("ascii", "ignore").split("\\")[0].strip("\0 ")
        number = _float(value)
        if number is not None and number >= 0:
            return number % 1e9  # GE adds multiples of 1e9
    return None


def _acquisition(dataset: Dataset) -> dict[str, float | str]:
    """The allow-listed numbers and terms that one file states."""
    found: dict[str, float | str] = {}
    for key, allowed in ALLOWED.items():
        if not allowed.keyword:
            continue
        if key == "manufacturer":
            found[key] = manufacturer(_string(dataset, allowed.keyword))
        elif allowed.terms:
            term = _string(dataset, allowed.keyword).upper().replace(" ", "").split("\\")[0]
            if term in allowed.terms:
                found[key] = term
        else:
            number = _number(dataset, allowed.keyword)
            if number is not None and allowed.low <= number <= allowed.high:
                found[key] = number
    return found


def _pet(dataset: Dataset) -> dict[str, Any]:
    """What archive.suv needs of one PT header: numbers, clocks in seconds, and two enums."""
    sequence = dataset.get("RadiopharmaceuticalInformationSequence") or []
    dose = sequence[0] if len(sequence) else Dataset()
    started = _string(dose, "RadiopharmaceuticalStartDateTime")
    if len(started) >= 14:
        injected = seconds_of(started[:8], started[8:].split("+")[0].split("-")[0])
    else:
        injected = seconds_of("", _string(dose, "RadiopharmaceuticalStartTime"))
    return {
        "weight_kg": _number(dataset, "PatientWeight"),
        "dose_bq": _number(dose, "RadionuclideTotalDose"),
        "half_life_s": _number(dose, "RadionuclideHalfLife"),
        "injected_s": injected,
        "series_s": seconds_of(_string(dataset, "SeriesDate"), _string(dataset, "SeriesTime")),
        "acquired_s": seconds_of(_string(dataset, "AcquisitionDate"), _string(dataset, "AcquisitionTime")),
        "corrections": _string(dataset, "CorrectedImage"),
        "decay": _string(dataset, "DecayCorrection"),
    }


def manufacturer(text: str) -> str:
    """One of a closed list of makers for whatever Manufacturer (0008,0070) says; OTHER for all else."""
    name = text.upper()
    for maker in MANUFACTURERS:
        if maker in name:
            return maker
    if "UNITED IMAGING" in name:
        return "UIH"
    return "GE" if name.startswith(("GE ", "GE_", "G.E")) or name == "GE" else "OTHER"

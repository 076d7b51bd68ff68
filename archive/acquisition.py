"""What a Volume may say of how it was acquired: an allow-list of numbers within bounds and of terms; never free text."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from archive import elements


@dataclass(frozen=True)
class Allowed:
    """An acquisition key that a Volume may carry: a number within bounds, or one of some terms; never free text."""

    keyword: str
    low: float = 0.0
    high: float = 1e9
    terms: frozenset[str] = frozenset()


def terms(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Defined terms of Body Part Examined (PS3.16 annex L) that single-word archives use.
BODY_PARTS = terms(
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
    "monoenergetic_kev": Allowed("MonoenergeticEnergyEquivalent", high=1e4),
    "tube_current_ma": Allowed("XRayTubeCurrent"),
    "exposure_mas": Allowed("Exposure"),
    "gantry_tilt_deg": Allowed("GantryDetectorTilt", low=-90, high=90),
    "reconstruction_diameter_mm": Allowed("ReconstructionDiameter", high=1e4),
    "pitch": Allowed("SpiralPitchFactor", high=100),
    "body_part": Allowed("BodyPartExamined", terms=BODY_PARTS),
    "patient_position": Allowed("PatientPosition", terms=terms("HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS")),
    "laterality": Allowed("Laterality", terms=terms("L R B U")),
    "scanning_sequence": Allowed("ScanningSequence", terms=terms("SE IR GR EP RM")),
    "sequence_variant": Allowed("SequenceVariant", terms=terms("SK MTC SS TRSS SP MP OSP TOF NONE")),
    "mr_acquisition": Allowed("MRAcquisitionType", terms=terms("2D 3D")),
    "manufacturer": Allowed("Manufacturer", terms=frozenset((*MANUFACTURERS, "GE", "OTHER"))),
    "decay_correction": Allowed("DecayCorrection", terms=terms("NONE START ADMIN")),
    "decay_factor": Allowed("DecayFactor"),
    "frame_duration_ms": Allowed("ActualFrameDuration", low=1),  # 0 says that it is not known
    # of pictures: a pseudonym of the folder's name, archive/pictures.py
    "class": Allowed("", terms=frozenset({"16 hex"})),
    # measured over the series, archive/suv.py
    "suv_factor": Allowed(""),
    "suv_missing": Allowed("", terms=terms("UNITS NOT_CORRECTED DECAY WEIGHT DOSE HALF_LIFE TIMES")),
}


def stated(dataset: Dataset) -> dict[str, float | str]:
    """The allow-listed numbers and terms that one file states."""
    found: dict[str, float | str] = {}
    for key, allowed in ALLOWED.items():
        if not allowed.keyword:
            continue
        if key == "manufacturer":
            found[key] = manufacturer(elements.string(dataset, allowed.keyword))
        elif allowed.terms:
            term = elements.string(dataset, allowed.keyword).upper().replace(" ", "").split("\\")[0]
            if term in allowed.terms:
                found[key] = term
        else:
            number = elements.number(dataset, allowed.keyword)
            if number is not None and allowed.low <= number <= allowed.high:
                found[key] = number
    return found


def manufacturer(text: str) -> str:
    """One of a closed list of makers for whatever Manufacturer (0008,0070) says; OTHER for all else."""
    name = text.upper()
    for maker in MANUFACTURERS:
        if maker in name:
            return maker
    if "UNITED IMAGING" in name:
        return "UIH"
    return "GE" if name.startswith(("GE ", "GE_", "G.E")) or name == "GE" else "OTHER"

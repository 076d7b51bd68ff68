"""What a written DICOM series says of whose it is and how it came about: pseudonyms, stable UIDs, derivation."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

NOT_DIAGNOSTIC = "not for diagnostic use"


@dataclass(frozen=True)
class SeriesIdentity:
    """Who and what a written series says it is.

    patient_id, patient_name: fictional, or pseudonyms. study_uid, series_uid, frame_of_reference_uid: DICOM UIDs.
    study_date: YYYYMMDD or empty. description: SeriesDescription (0008,103E), at most 64 characters.
    """

    patient_id: str
    patient_name: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    series_number: int = 1
    study_date: str = ""
    description: str = ""

    @classmethod
    def fictional(cls, patient: int, series: str, *, number: int = 1) -> SeriesIdentity:
        """A phantom's identity: VOXBOOK^PHANTOM<patient>, with UIDs that follow from the arguments alone."""
        who = f"phantom-{patient}"
        return cls(
            patient_id=f"VBPHANTOM{patient:03d}",
            patient_name=f"VOXBOOK^PHANTOM{patient}",
            study_uid=stable_uid("study", who),
            series_uid=stable_uid("series", who, series),
            frame_of_reference_uid=stable_uid("frame", who),
            series_number=number,
            study_date="20260101",
            description=f"voxbook phantom {series}"[:64],
        )

    @classmethod
    def pseudonymous(cls, patient: str, series: str, version: str) -> SeriesIdentity:
        """The identity of a decoded series: pseudonyms only, and the same UIDs for the same version every time."""
        return cls(
            patient_id=patient,
            patient_name=patient,
            study_uid=stable_uid("study", patient, series),
            series_uid=stable_uid("series", series, version),
            frame_of_reference_uid=stable_uid("frame", series),
            description=f"voxbook, {NOT_DIAGNOSTIC}",
        )


@dataclass(frozen=True)
class Derivation:
    """How a written series came about; it makes the images DERIVED\\SECONDARY.

    tier: "codes" (decoded by `model`) or "volume" (the stored voxels, exact).
    model: model id, 64 hex; empty for the volume tier. ratio: compression ratio to 1, where it is known.
    max_error: bound of every voxel's error in units, by a layer that owes nothing to the model (archive.bounded); 0 is
    exact, None is no bound. source: stable name of the stored version that it was derived from.
    """

    tier: str
    model: str = ""
    ratio: float | None = None
    max_error: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.tier not in ("codes", "volume") or (self.tier == "codes") != bool(self.model):
            raise ValueError("tier is codes with a model id, or volume without one")

    @property
    def lossless(self) -> bool:
        """Whether every voxel is the stored volume's."""
        return self.tier == "volume" or self.max_error == 0


def stable_uid(*parts: str) -> str:
    """A UUID-derived UID (2.25., PS3.5 B.2) that depends on the parts alone."""
    digest = hashlib.sha256("\x1f".join(("voxbook", *parts)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"

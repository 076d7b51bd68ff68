"""The images inside DICOM files: every frame of a multi-frame object, every tile of a mosaic, with its own header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from archive import elements, mosaic, pixels
from archive.plans import FileEntry

# Functional groups whose attributes say what a frame is and where it lies (PS3.3 C.7.6.16.2 and C.8).
MACROS = (
    "UnassignedSharedConvertedAttributesSequence",  # of legacy converted objects; what others say goes before it
    "UnassignedPerFrameConvertedAttributesSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PlanePositionVolumeSequence",
    "PlaneOrientationVolumeSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "ParametricMapFrameTypeSequence",
    "XRay3DFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRTimingAndRelatedParametersSequence",
    "MRImagingModifierSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
    "CTExposureSequence",
    "CTAcquisitionDetailsSequence",
    "FrameAnatomySequence",
)
PHILIPS_GROUPS = "Philips MR Imaging DD 005"  # owns (2005,xx0F), a classic header for each frame of an enhanced object
# Dimensions (0020,9165) that count positions; what is left counts time, phase, diffusion, or what splits a series.
POSITIONAL = {0x00209056, 0x00209057, 0x00200032, 0x00201041, 0x00209113, 0x0020930E, 0x00209301}
# How frames of nuclear medicine are counted (PS3.3 C.8.4.8): some vectors part them, some order them in time.
PARTS = ("EnergyWindowVector", "DetectorVector")
PHASES = ("RRIntervalVector", "TimeSlotVector", "PhaseVector", "TimeSliceVector", "RotationVector", "AngularViewVector")
LEAST_FRAME_BYTES = 8  # of an encapsulated frame: its item's header
MOST_FRAMES = 1 << 20  # in one file; each of them costs memory before a pixel is read

FRAME_TAGS: list[Any] = [
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
    "FrameIncrementPointer",
    "FrameTime",
    "FrameTimeVector",
    "DetectorInformationSequence",
    "SliceVector",
    *PARTS,
    *PHASES,
]


@dataclass(frozen=True)
class Image:
    """One two-dimensional image: a frame of a file, or a tile of a frame.

    corner: first row and column of the tile in its frame; 0, 0 for a whole frame.
    header: of this image alone: what its frame says, else what the file says.
    """

    entry: FileEntry
    frame: int
    corner: tuple[int, int]
    header: dict[str, Any] = field(repr=False)

    @property
    def place(self) -> tuple[str, int, tuple[int, int]]:
        """Where it is found; orders images of a source, and names one."""
        return self.entry.path, self.frame, self.corner


def expand(entry: FileEntry) -> list[Image]:
    """Every image of one file; its header must not be `misfit`."""
    header = entry.header
    assert header is not None
    if header["tiles"]:
        tiles = mosaic.tile_images(header)
        assert tiles is not None
        return [Image(entry, 0, (tile["corner"][0], tile["corner"][1]), {**header, **tile}) for tile in tiles]
    count = max(1, header["frames"] or 1)
    if count == 1:
        return [Image(entry, 0, (0, 0), header)]
    first = (header["instance"] or 0.0) * 1e6  # frames follow each other as files do
    stated = header["images"] or [{}] * count
    images = []
    for index, own in enumerate(stated):
        merged = {**header, "images": [], "instance": first + index, **own}
        merged["acquisition"] = {**header["acquisition"], **own.get("acquisition", {})}
        images.append(Image(entry, index, (0, 0), merged))
    return images


def misfit(header: dict[str, Any], size: int) -> str:
    """Why a file of `size` bytes, whose pixels are legal, cannot be expanded, as a reason code; empty where it can."""
    count = max(1, header["frames"] or 1)
    if header["frames_illegal"] or (header["images"] and len(header["images"]) != count):
        return "BAD_HEADER"
    if count > 1 and header["pixels"]:
        if header["pixels"][2] < 0 and count * LEAST_FRAME_BYTES > size:
            return "TRUNCATED"
        if code := pixels.damage(header, size):
            return code
        if count > MOST_FRAMES:
            return "TOO_LARGE"
    if not header["tiles"]:
        return ""
    if not header["tiles"]["count"]:
        return "MULTIFRAME"  # nobody says how many tiles there are
    return "" if mosaic.tile_images(header) else "NO_GEOMETRY"


def functional_groups(dataset: Dataset) -> list[Dataset]:
    """What the functional groups (5200,9229), (5200,9230) say of each frame, as one flat dataset for each.

    `dimension_values`, an attribute of each, holds its DimensionIndexValues without those that count positions.
    """
    shared = elements.items(dataset, "SharedFunctionalGroupsSequence")[:1]
    per_frame = elements.items(dataset, "PerFrameFunctionalGroupsSequence")
    pointers = [
        elements.tags(item, "DimensionIndexPointer")[:1] for item in elements.items(dataset, "DimensionIndexSequence")
    ]
    flats = []
    for group in per_frame or [Dataset()] * bool(shared):
        flat = Dataset()
        for source in (*shared, group):
            _flatten(flat, source)
        values = elements.numbers(flat, "DimensionIndexValues")
        if len(values) == len(pointers):
            kept = [int(value) for value, tag in zip(values, pointers, strict=True) if not POSITIONAL & set(tag)]
            flat.dimension_values = kept
        flats.append(flat)
    return flats


def _flatten(flat: Dataset, groups: Dataset) -> None:
    for macro in MACROS:
        for item in elements.items(groups, macro)[:1]:
            _merge(flat, item)
    for item in elements.items(flat, "DiffusionGradientDirectionSequence")[:1]:
        _merge(flat, item)
    private = elements.private(groups, 0x2005, PHILIPS_GROUPS, 0x0F)
    if private is not None and not isinstance(private, (str, bytes)):
        for item in list(private)[:1]:
            _merge(flat, item, group=0x2005)


def _merge(flat: Dataset, item: Dataset, group: int | None = None) -> None:
    for tag in item.keys():  # noqa: SIM118  (a Dataset iterates over its elements, and converts them)
        if group is None or tag.group == group:
            flat[tag] = item.get_item(tag)


def counted_frames(dataset: Dataset, header: dict[str, Any]) -> list[dict[str, Any]]:
    """What the frames of a multi-frame object without functional groups differ in; empty where nothing is said."""
    count = header["frames"] or 1
    if header["modality"] == "NM":
        return _nuclear(dataset, header, count)
    return _cine(dataset, count) if count > 1 else []


def _cine(dataset: Dataset, count: int) -> list[dict[str, Any]]:
    """Milliseconds since the first frame: FrameTimeVector (0018,1065) holds increments, FrameTime (0018,1063) one."""
    steps = elements.numbers(dataset, "FrameTimeVector")
    if len(steps) != count or min(steps) < 0:
        step = elements.number(dataset, "FrameTime")
        if step is None or step <= 0 or count > MOST_FRAMES:
            return []
        steps = [step] * count
    return [{"frame_ms": time} for time in accumulate([0.0, *steps[1:]])]


def _nuclear(dataset: Dataset, header: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Frames of nuclear medicine: energy window and detector part them, phases order them, slices place them."""
    vectors = {name: elements.numbers(dataset, name) for name in (*PARTS, *PHASES, "SliceVector")}
    vectors = {name: values for name, values in vectors.items() if len(values) == count}
    reconstructed = "RECON" in header["image_type"].upper()
    if count > MOST_FRAMES or (count > 1 and not vectors and not reconstructed):
        return _cine(dataset, count)
    images: list[dict[str, Any]] = [{} for _ in range(count)]
    for index, image in enumerate(images):
        image["part"] = "/".join(str(int(vectors[name][index])) for name in PARTS if name in vectors)
        image["dimension"] = [int(vectors[name][index]) for name in PHASES if name in vectors]
    if reconstructed:
        _place_slices(dataset, header, images, vectors.get("SliceVector") or [float(n + 1) for n in range(count)])
    return images


def _place_slices(
    dataset: Dataset, header: dict[str, Any], images: list[dict[str, Any]], slices: Sequence[float]
) -> None:
    """Reconstructed slices lie along the normal of the first (PS3.3 C.8.4.15); the sign of the spacing counts."""
    gap = header["gap"] or header["thickness"]
    if not gap:
        return
    detector = (elements.items(dataset, "DetectorInformationSequence") or [Dataset()])[0]
    orientation = elements.vector(detector, "ImageOrientationPatient", 6) or header["orientation"]
    origin = elements.vector(detector, "ImagePositionPatient", 3) or header["position"]
    assumed = [] if orientation and origin else ["NO_ORIENTATION"]
    orientation = orientation or [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    normal = np.cross(orientation[:3], orientation[3:])
    for image, number in zip(images, slices, strict=True):
        image["orientation"] = orientation
        image["position"] = (np.array(origin or (0.0, 0.0, 0.0)) + (number - 1) * gap * normal).tolist()
        image["assumed"] = assumed


def condensed(header: dict[str, Any], images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What differs between images; what all say alike moves into their file's header."""
    stated = [{key: value for key, value in image.items() if value not in (None, "", [], {})} for image in images]
    acquisition = _move_common([image.pop("acquisition", {}) for image in stated])
    header["acquisition"] = {**header["acquisition"], **acquisition[0]}
    common, *rest = _move_common(stated)
    header.update(common)
    for image, own in zip(rest, acquisition[1:], strict=True):
        if own:
            image["acquisition"] = own
    return rest if len(rest) > 1 else []


def _move_common(dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What all say alike, and then what each says beside that."""
    first = dicts[0] if dicts else {}
    alike = {key: value for key, value in first.items() if all(other.get(key) == value for other in dicts)}
    return [alike, *({key: value for key, value in own.items() if key not in alike} for own in dicts)]

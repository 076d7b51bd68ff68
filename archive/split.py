"""Which images of one series can share a grid: a tuple of values for each, never of ordinals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from archive.frames import Image

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURE = {STORAGE + tail for tail in ("7", "7.1", "7.2", "7.3", "7.4")}
SPATIAL = ("CT", "MR", "PT")  # a single image of these belongs to a stack, so it must say where
ENHANCED_CT = STORAGE + "2.1"


def is_placed(header: dict[str, Any]) -> bool:
    """Whether an image has, or ought to have, its place in the patient; others are pictures with a time at most."""
    if header["position"] and header["orientation"]:
        return True
    alone = (header["frames"] or 1) == 1 and header["sop_class"] not in SECONDARY_CAPTURE
    return alone and header["modality"] in SPATIAL


def split_by_values(images: Sequence[Image]) -> dict[tuple[str, ...], list[Image]]:
    """Images of one series by everything that cannot share a grid.

    An image without a place shares one only with other frames of its own object.
    """
    headers = [image.header for image in images]
    orientations = _snap([header["orientation"] for header in headers], 1e-3, 3)
    spacings = _snap([header["spacing"] for header in headers], 1e-4, 4)
    echoes = _snap([_vector(header["echo_time"]) for header in headers], 5e-2, 2)
    groups: dict[tuple[str, ...], list[Image]] = defaultdict(list)
    for image, header, orientation, spacing, echo in zip(images, headers, orientations, spacings, echoes, strict=True):
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
            # two tube voltages are two energies, not two times
            "kvp": f"{header['acquisition'].get('kvp', 0.0):g}" if modality == "CT" else "",
        }
        # Only where there is one: the keys of all other series stay what they were.
        more = {"part": header["part"], "object": "" if is_placed(header) else header["sop"]}
        split |= {name: value for name, value in more.items() if value}
        groups[tuple(f"{name}={value}" for name, value in split.items())].append(image)
    parted: dict[tuple[str, ...], list[Image]] = {}
    for split_values, members in groups.items():
        for stack, inside in _stacks(members).items():
            parted[split_values + ((f"stack={stack}",) if stack else ())] = inside
    return parted


def _stacks(members: list[Image]) -> dict[str, list[Image]]:
    """Images by their StackID (0020,9056) where stacks lie in different places; some number times by it."""
    stacks: dict[str, list[Image]] = defaultdict(list)
    for image in members:
        stacks[image.header["stack"]].append(image)
    places = {
        frozenset(tuple(round(value, 2) for value in image.header["position"] or ()) for image in inside)
        for inside in stacks.values()
    }
    return dict(stacks) if len(places) > 1 else {"": members}


def _image_type(header: dict[str, Any]) -> str:
    """The part of ImageType (0008,0008) that tells images of other meaning apart, not how they came about."""
    parts = header["image_type"].upper().split("\\")
    if header["modality"] == "MR":
        return "\\".join([*parts[2:], header["component"].upper()])
    if header["sop_class"] == ENHANCED_CT:
        return "\\".join(parts[2:])
    return "LOCALIZER" if "LOCALIZER" in parts else ""


def _vector(number: float | None) -> list[float] | None:
    return None if number is None else [number]


def _snap(vectors: Sequence[list[float] | None], tolerance: float, digits: int) -> list[str]:
    """Each vector as text, those within `tolerance` of each other as the same text: exporters round as they like.

    The text is a value of the smallest vector of its cluster, so it does not depend on the order of images.
    """
    leaders: list[tuple[float, ...]] = []
    names: dict[tuple[float, ...], str] = {}
    for known in sorted({tuple(vector) for vector in vectors if vector is not None}):
        first = next((one for one in leaders if _near(known, one, tolerance)), None)
        if first is None:
            first = known
            leaders.append(known)
        # + 0.0 makes -0.0 read as 0.0
        names[known] = ",".join(f"{round(value, digits) + 0.0:.{digits}f}" for value in first)
    return ["" if vector is None else names[tuple(vector)] for vector in vectors]


def _near(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))

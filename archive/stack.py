"""Slices of one grid in order: duplicates folded, repeated positions as time, positions as a Geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from archive.errors import InputError
from archive.frames import Image
from archive.geometry import Geometry
from archive.settings import IngestSettings
from archive.split import is_placed

# What may order images of one position, the most telling first. `sets`: every position must show the same values;
# `ranks`: values need only differ within a position; `runs`: also, either all of one time come before all of the next,
# or all of one position before all of the next position, else the key orders something else.
TIME_KEYS = (
    ("temporal", "sets"),
    ("reference_ms", "sets"),
    ("trigger_ms", "ranks"),
    ("b_value", "sets"),
    ("dimension", "sets"),
    ("frame_ms", "sets"),
    ("acquired_s", "runs"),
    ("content_s", "runs"),
    ("acquisition_number", "runs"),
    ("instance", "runs"),
    ("stack", "sets"),
    ("direction", "sets"),
)
# Numbers that a workstation hands out: they order what is already known to differ, and say nothing about time in CT.
WEAK_KEYS = ("acquisition_number", "instance")
POSITION_TOLERANCE_MM = 0.01
STORED_POSITION_MM = 1e-3  # regular positions that differ by more are stored exactly
TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Stack:
    """rows: images [t][z]; frames: one dict of numbers per t, empty for one; flags for the Volume."""

    rows: list[list[Image]]
    geometry: Geometry
    frames: list[dict[str, float]]
    flags: list[str]


def stack(members: Sequence[Image], settings: IngestSettings, digest: Callable[[Image], str]) -> Stack:
    """Order the images of one grid. All share orientation, matrix and pixel spacing.

    Raises InputError NO_GEOMETRY, MISSING_SLICE, IRREGULAR_SPACING, DUPLICATE_POSITION.
    """
    # Within their tolerance values may differ: whose counts must not depend on the names of files.
    first = min(members, key=lambda image: [image.header[key] or [] for key in ("orientation", "spacing")]).header
    if not is_placed(first):
        return _unplaced(members)
    if not first["orientation"] or not first["position"] or not first["spacing"] or min(first["spacing"]) <= 0:
        raise InputError("NO_GEOMETRY")
    along_x, along_y, normal = _axes(first["orientation"])
    kept = _with_b_zero(_one_per_uid(members))
    tolerance = min(POSITION_TOLERANCE_MM, 0.1 * min(first["spacing"]))
    columns = _columns(kept, normal, tolerance)
    if len({len(column) for column in columns}) > 1 or _time_order(columns) in (None, *WEAK_KEYS):
        columns = _folded(columns, digest)
    rows, key = _rows(columns)
    flags = [] if sum(map(len, columns)) == len(members) else ["DUPLICATES_FOLDED"]
    geometry, more = _geometry(rows, first, (along_x, along_y, normal), settings.spacing_tolerance)
    assumed = {flag for image in kept for flag in image.header["assumed"]}
    return Stack(rows, geometry, _frames(rows, key), flags + more + sorted(assumed))


def _unplaced(members: Sequence[Image]) -> Stack:
    """The frames of one object that lies nowhere in the patient: a picture, or pictures in the order they were made."""
    kept = _one_per_uid(members)
    first = kept[0].header
    flags = ["NO_ORIENTATION"] + ["DUPLICATES_FOLDED"] * (len(kept) < len(members))
    spacing = first["spacing"]
    if spacing and min(spacing) <= 0:
        raise InputError("NO_GEOMETRY", "the spacing of pixels is not positive")
    for key, flag in (("region_spacing", "REGION_SPACING"), ("detector_spacing", "DETECTOR_SPACING")):
        if not spacing and first[key]:
            spacing = first[key]
            flags.append(flag)
    if not spacing:
        flags.append("NO_SPACING")
    y, x = spacing or (1.0, 1.0)
    geometry = Geometry.pixels((1, first["rows"], first["columns"]), (first["thickness"] or 1.0, y, x))
    rows = [[image] for image in kept]
    timed = all(image.header["frame_ms"] is not None for image in kept)
    return Stack(rows, geometry, _frames(rows, "frame_ms" if timed else ""), flags)


def _axes(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of increasing column and row index (0020,0037), and the slice normal."""
    along_x, along_y = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(along_x), np.linalg.norm(along_y)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(along_x @ along_y) > 0.01:
        raise InputError("NO_GEOMETRY", "the orientation is not two perpendicular unit vectors")
    along_x, along_y = along_x / lengths[0], along_y / lengths[1]
    normal = np.cross(along_x, along_y)
    return along_x, along_y, normal / np.linalg.norm(normal)


def _one_per_uid(members: Sequence[Image]) -> list[Image]:
    """Copies of one object (known to be equal by now): the first path stays."""
    kept: dict[tuple[str, int, tuple[int, int]], Image] = {}
    for image in sorted(members, key=lambda image: image.place):
        kept.setdefault((image.header["sop"], image.frame, image.corner), image)
    return list(kept.values())


def _with_b_zero(images: list[Image]) -> list[Image]:
    """Canon, Toshiba before, states no b-value (0018,9087) for images of a diffusion series that are not weighted.

    Source: https://github.com/rordenlab/dcm2niix/tree/master/Canon
    """
    unsaid = [image.header["b_value"] is None for image in images]
    maker = images[0].header["acquisition"].get("manufacturer")
    if maker not in ("CANON", "TOSHIBA") or all(unsaid) or not any(unsaid):
        return images
    return [
        replace(image, header={**image.header, "b_value": 0.0}) if missing else image
        for image, missing in zip(images, unsaid, strict=True)
    ]


def _columns(images: Sequence[Image], normal: np.ndarray, tolerance: float) -> list[list[Image]]:
    """Files by their position along the normal, ascending."""
    placed = sorted((float(np.dot(image.header["position"], normal)), image.place, image) for image in images)
    columns: list[list[Image]] = []
    start = -np.inf
    for place, _, image in placed:
        if place - start > tolerance:
            columns.append([])
            start = place
        columns[-1].append(image)
    return columns


def _folded(columns: list[list[Image]], digest: Callable[[Image], str]) -> list[list[Image]]:
    """Positions without copies of pixels under another UID.

    Where that leaves one image each, all repetition was copying. Else only positions with more images than most are
    folded: in a time series, slices outside the body may well be equal.
    """
    unlike = [_unlike(column, digest) for column in columns]
    if all(len(column) == 1 for column in unlike):
        return unlike
    usual = Counter(len(column) for column in columns).most_common(1)[0][0]
    return [fewer if len(column) > usual else column for column, fewer in zip(columns, unlike, strict=True)]


def _unlike(column: list[Image], digest: Callable[[Image], str]) -> list[Image]:
    """The files of one position without those that repeat the pixels of another."""
    if len(column) == 1:
        return column
    kept: dict[str, Image] = {}
    for image in sorted(column, key=lambda image: image.place):
        kept.setdefault(digest(image), image)
    return list(kept.values())


def _rows(columns: list[list[Image]]) -> tuple[list[list[Image]], str]:
    """Files as [t][z], and the key that orders t (empty for one time)."""
    counts = [len(column) for column in columns]
    if max(counts) == 1:
        return [[column[0] for column in columns]], ""
    numbers: dict[str, Any] = {
        "positions": float(len(columns)),
        "least": float(min(counts)),
        "most": float(max(counts)),
    }
    if min(counts) < max(counts):
        # Most positions complete: some times miss slices. Else: some slices are there twice.
        complete = sum(count == max(counts) for count in counts) / len(counts)
        raise InputError("MISSING_SLICE" if complete >= 0.8 else "DUPLICATE_POSITION", **numbers)
    order = _time_order(columns)
    if order is None:
        raise InputError("DUPLICATE_POSITION", **numbers)
    ordered = [sorted(column, key=lambda image: _value(image, order)) for column in columns]
    return [list(row) for row in zip(*ordered, strict=True)], order


def _time_order(columns: list[list[Image]]) -> str | None:
    """The first key that orders the files of every position; empty where there is one each, None where none does."""
    depth = len(columns[0])
    if depth == 1:
        return ""
    for key, rule in TIME_KEYS:
        values = [sorted(value for image in column if (value := _value(image, key)) is not None) for column in columns]
        if any(len(set(column)) < depth for column in values):
            continue
        if key == "instance" and columns[0][0].header["modality"] != "MR":
            continue
        if rule == "sets" and any(column != values[0] for column in values):
            continue
        if rule == "runs" and not (_ascend([list(row) for row in zip(*values, strict=True)]) or _ascend(values)):
            continue
        return key
    return None


def _value(image: Image, key: str) -> Any:
    """What orders an image by this key, None where it says nothing; lists as tuples, which compare and hash."""
    value = image.header.get(key)
    if key == "direction" and value:
        return (image.header["b_value"] or 0.0, *value)
    return tuple(value) or None if isinstance(value, list) else None if value == "" else value


def _ascend(runs: list[list[float]]) -> bool:
    """Whether the runs' ranges follow each other without overlap, in some order."""
    spans = sorted((min(run), max(run)) for run in runs)
    return all(earlier[1] < later[0] for earlier, later in pairwise(spans))


def _frames(rows: list[list[Image]], key: str) -> list[dict[str, float]]:
    """Per time: seconds since the first, and the numbers that all its slices share."""
    if len(rows) == 1:
        return []
    clocks = [[[image.header[clock] for image in row] for row in rows] for clock in ("acquired_s", "content_s")]
    if key == "content_s":
        clocks.reverse()
    frames: list[dict[str, float]] = [{} for _ in rows]
    scaled = {"reference_ms": 1e-3, "trigger_ms": 1e-3, "frame_ms": 1e-3}
    if key in scaled:
        times = [min(image.header[key] for image in row) * scaled[key] for row in rows]
    else:
        times = next((found for clock in clocks if (found := _rising(clock))), [])
    for frame, time in zip(frames, times, strict=False):
        frame["time_s"] = round(time - times[0], 6)
    for name, column in (("b_value", "b_value"), ("temporal_position", "temporal"), ("trigger_ms", "trigger_ms")):
        shared = [{image.header[column] for image in row} for row in rows]
        # A b-value of 0 throughout says that there was no diffusion weighting, not that it matters.
        if all(len(values) == 1 and None not in values for values in shared) and (
            name != "b_value" or any(values != {0.0} for values in shared)
        ):
            for frame, values in zip(frames, shared, strict=True):
                frame[name] = values.copy().pop()
    for frame, row in zip(frames, rows, strict=True):
        directions = {_value(image, "direction") for image in row}
        if len(directions) == 1 and (only := directions.pop()) is not None:
            frame |= dict(zip(("direction_l", "direction_p", "direction_s"), only[1:], strict=True))
    return frames


def _rising(clock: list[list[Any]]) -> list[float]:
    """The first second of every row, where all slices have one and they rise from row to row; else nothing."""
    if any(None in row for row in clock):
        return []
    times = [min(row) for row in clock]
    return times if all(early < late for early, late in pairwise(times)) else []


def _geometry(
    rows: list[list[Image]],
    first: dict[str, Any],
    axes: tuple[np.ndarray, np.ndarray, np.ndarray],
    tolerance: float,
) -> tuple[Geometry, list[str]]:
    """The whole affine from the first and the last position, shear kept."""
    along_x, along_y, normal = axes
    positions = np.array([[image.header["position"] for image in row] for row in rows])  # [t, z, 3]
    origin, count = positions[0, 0], positions.shape[1]
    flags = []
    if count == 1:
        spacing = abs(first["gap"] or 0.0) or first["thickness"] or 1.0
        step = normal * (spacing if spacing > 0 else 1.0)
        flags.append("SINGLE_SLICE")
    else:
        step = (positions[0, -1] - origin) / (count - 1)
    places = (positions[0] - origin) @ normal
    _check_spacing(places, tolerance)
    fitted = origin + np.arange(count)[:, None] * step
    residual = positions - fitted
    across = residual - (residual @ normal)[..., None] * normal
    sideways = float(np.linalg.norm(across, axis=-1).max())
    if sideways > max(tolerance * abs(float(step @ normal)), 0.25 * min(first["spacing"])):
        raise InputError("IRREGULAR_SPACING", "slices are shifted sideways", sideways_mm=sideways)
    length = float(np.linalg.norm(step))
    exact = (positions[0] - origin) @ (step / length)
    varies = bool(np.abs(exact - np.arange(count) * length).max() > STORED_POSITION_MM)
    if varies:
        flags.append("SPACING_VARIES")
    affine = np.eye(4)
    affine[:3] = np.column_stack([step, along_y * first["spacing"][0], along_x * first["spacing"][1], origin])
    geometry = Geometry(
        (count, first["rows"], first["columns"]),
        tuple((row[0], row[1], row[2], row[3]) for row in affine.tolist()),
        tuple(exact.tolist()) if varies else None,
    )
    if geometry.tilt_degrees > TILT_DEGREES:
        flags.append("TILTED")
    return geometry, flags


def _check_spacing(places: np.ndarray, tolerance: float) -> None:
    """Raise where the steps between positions (mm, ascending from 0) are not those of a regular grid."""
    if len(places) < 3:
        return
    steps = np.diff(places)
    median, largest = float(np.median(steps)), float(steps.max())
    fitted = float(places[-1]) / (len(places) - 1)
    measured = {"median_mm": median, "gap_mm": largest, "least_mm": float(steps.min())}
    numbers: dict[str, Any] = {name: round(value, 4) for name, value in measured.items()}
    if largest >= 1.5 * median:
        raise InputError("MISSING_SLICE", **numbers)
    if np.abs(steps - fitted).max() > tolerance * fitted:
        raise InputError("IRREGULAR_SPACING", **numbers)

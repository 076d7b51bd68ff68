"""Small volumes and DICOM folders for everybody's tests; everything follows from the arguments alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from archive.derived import SeriesIdentity
from archive.dicom_write import write_series
from archive.geometry import Geometry
from archive.phantoms import phantom
from archive.volume import Volume

Shape = tuple[int, int, int]


def geometry(
    shape: Shape, spacing_mm: tuple[float, float, float], *, tilt_degrees: float = 0.0, oblique: bool = False
) -> Geometry:
    """An axial grid; sheared along y by a gantry tilt, or turned about two axes."""
    matrix = np.diag([*spacing_mm, 1.0])[:, [2, 1, 0, 3]]
    matrix[1, 0] = spacing_mm[0] * np.tan(np.radians(tilt_degrees))
    if oblique:
        one, two = np.radians(12.0), np.radians(-7.0)
        about_x = np.array([[1, 0, 0], [0, np.cos(one), -np.sin(one)], [0, np.sin(one), np.cos(one)]])
        about_z = np.array([[np.cos(two), -np.sin(two), 0], [np.sin(two), np.cos(two), 0], [0, 0, 1]])
        matrix[:3, :3] = about_z @ about_x @ matrix[:3, :3]
    matrix[:3, 3] = (-100.5, -88.25, 12.5)
    return Geometry(shape, tuple(map(tuple, matrix)))


def ct_volume(
    shape: Shape = (6, 48, 40),
    seed: int = 0,
    *,
    kind: str = "ct-chest",
    spacing_mm: tuple[float, float, float] = (5.0, 6.0, 8.0),
    signed: bool = True,
    tilt_degrees: float = 0.0,
    oblique: bool = False,
    **fields: Any,
) -> Volume:
    """A CT in HU: int16 as stored, or uint16 with intercept -1024."""
    values = phantom(kind, shape, spacing_mm, seed)
    intercept = 0.0 if signed else -1024.0
    voxels = np.rint(values - intercept).astype(np.int16 if signed else np.uint16)
    where = geometry(shape, spacing_mm, tilt_degrees=tilt_degrees, oblique=oblique)
    known: dict[str, Any] = {"intercept": (intercept,), "units": "HU", "bits_stored": 16 if signed else 12}
    return Volume(voxels, "zyx", where, "CT", **(known | fields))


def mr_volume(
    shape: Shape = (6, 48, 40),
    seed: int = 0,
    *,
    kind: str = "mr-t1",
    spacing_mm: tuple[float, float, float] = (5.0, 5.0, 5.0),
    timepoints: int = 0,
    oblique: bool = False,
    **fields: Any,
) -> Volume:
    """An MR in arbitrary units, uint16; with a t axis of `timepoints` where that is above 0."""
    phantoms = [phantom(kind, shape, spacing_mm, seed, repeat=t) for t in range(max(1, timepoints))]
    voxels = np.rint(np.stack(phantoms)).astype(np.uint16)
    known: dict[str, Any] = {"bits_stored": 12}
    if timepoints:
        known["frames"] = tuple({"time_s": 20.0 * t} for t in range(timepoints))
    where = geometry(shape, spacing_mm, oblique=oblique)
    return Volume(voxels if timepoints else voxels[0], "tzyx" if timepoints else "zyx", where, "MR", **(known | fields))


def pet_volume(
    shape: Shape = (6, 48, 40),
    seed: int = 0,
    *,
    spacing_mm: tuple[float, float, float] = (60.0, 8.0, 10.0),
    **fields: Any,
) -> Volume:
    """A PET in Bq/ml: int16 with one slope per slice, as scanners store it."""
    values = phantom("pet", shape, spacing_mm, seed)
    slopes = tuple(float(f"{max(1.0, plane.max()) / 32_000:.8g}") for plane in values)
    voxels = np.rint(values / np.asarray(slopes)[:, None, None]).astype(np.int16)
    known: dict[str, Any] = {"slope": slopes, "intercept": (0.0,) * len(slopes), "units": "Bq/ml"}
    return Volume(voxels, "zyx", geometry(shape, spacing_mm), "PT", **(known | fields))


def rgb_volume(shape: tuple[int, int] = (35, 50), seed: int = 0) -> Volume:
    """A colour picture: uint8, axes czyx (3, 1, y, x)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    waves = [127 + 90 * np.sin(y / rng.uniform(4, 9)) * np.cos(x / rng.uniform(4, 9)) for _ in range(3)]
    voxels = np.clip(np.stack(waves) + rng.normal(0, 4, (3, *shape)), 0, 255).astype(np.uint8)[:, None]
    where = Geometry.pixels((1, *shape))
    return Volume(voxels, "czyx", where, "PICTURE", units="rgb", photometric="RGB", bits_stored=8)


def write_ct_series(
    folder: Path, volume: Volume | None = None, *, patient: int = 1, name: str = "ct", **options: Any
) -> list[Path]:
    """Write a CT (or any volume given) as a DICOM folder; returns its files in slice order."""
    identity = SeriesIdentity.fictional(patient, name)
    return write_series(ct_volume() if volume is None else volume, folder, identity, **options)

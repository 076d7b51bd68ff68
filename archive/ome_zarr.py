"""A Volume as OME-Zarr 0.5: values in units, a pyramid for viewing, and the exact affine beside what 0.5 can say.

0.5 knows scale and translation along the axes only, so that of an oblique grid it shows the spacing; the 4 x 4 LPS affine
in mm is in `voxbook.geometry`, and each axis has its anatomical direction (RFC-4).
https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/rfc/4/
"""

from __future__ import annotations

import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import CHUNK, create_array, even, shard_shape

LEAST = 64  # voxels of the longest side from which on a coarser level helps nobody
MOST_LEVELS = 6
_TOWARDS = (("right-to-left", "left-to-right"), ("anterior-to-posterior", "posterior-to-anterior"),
            ("inferior-to-superior", "superior-to-inferior"))  # fmt: skip
_COLOURS = ("FF0000", "00FF00", "0000FF")


def write_ome_zarr(volume: Volume, folder: Path, about: dict[str, Any], window: tuple[float, float]) -> None:
    """Write a new folder, whole or not at all.

    Values are in `volume.units`: integers where slope and intercept are whole numbers, else float32. about: what
    further to say of them in the attribute `voxbook`, JSON-ready. window: low and high of the display.
    Raises ConfigError OCCUPIED where the folder exists; OSError.
    """
    if folder.exists():
        raise ConfigError("OCCUPIED", "the target folder exists already")
    stage = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.stage"
    try:
        _write(volume, stage, folder.name, about, window)
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already when the rename succeeded


def _write(volume: Volume, stage: Path, name: str, about: dict[str, Any], window: tuple[float, float]) -> None:
    values = _values(volume)
    plan = pyramid(volume.geometry)
    datasets = [
        {"path": str(level), "coordinateTransformations": _placed(volume, factors)}
        for level, factors in enumerate(plan)
    ]
    told = {
        "geometry": volume.geometry.as_dict(),
        "units": volume.units,
        "modality": volume.modality,
        "frames": [dict(frame) for frame in volume.frames],
        "flags": list(volume.flags),
        **about,
    }
    multiscale = {"name": name, "axes": _axes(volume), "datasets": datasets, "type": "mean"}
    ome = {"version": "0.5", "multiscales": [multiscale], "omero": _display(volume, window)}
    zarr.create_group(LocalStore(stage), attributes={"ome": ome, "voxbook": told}, zarr_format=3)
    before = (1, 1, 1)
    for level, factors in enumerate(plan):
        step = (factors[0] // before[0], factors[1] // before[1], factors[2] // before[2])
        values, before = coarser(values, step), factors
        chunks = tuple(even(size, CHUNK[axis]) for axis, size in zip(volume.axes, values.shape, strict=True))
        array = create_array(
            stage,
            str(level),
            values.shape,
            values.dtype,
            chunks,
            shard_shape(volume.axes, values.shape, chunks, values.dtype.itemsize),
            names=tuple(volume.axes),
            fill_value=0,
            compressor=ZstdCodec(level=3),
        )
        array[...] = values


def pyramid(geometry: Geometry) -> list[tuple[int, int, int]]:
    """Factors (z, y, x) of each level: the axes whose spacing is within 1.5 times the finest are halved."""
    factors, found = [1, 1, 1], [(1, 1, 1)]
    while len(found) < MOST_LEVELS:
        sizes = [math.ceil(size / factor) for size, factor in zip(geometry.shape, factors, strict=True)]
        if max(sizes) <= LEAST:
            break
        spacing = [mm * factor for mm, factor in zip(geometry.spacing_mm, factors, strict=True)]
        long = [axis for axis in range(3) if sizes[axis] > 1]
        finest = min(spacing[axis] for axis in long)
        halved = [axis for axis in long if spacing[axis] < 1.5 * finest]
        for axis in halved:
            factors[axis] *= 2
        found.append((factors[0], factors[1], factors[2]))
    return found


def coarser(values: np.ndarray, step: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks of `step` voxels along the last three axes, rounded for integers; the last block may be cut."""
    for axis, factor in zip((-3, -2, -1), step, strict=True):
        if factor == 1:
            continue
        size = values.shape[axis]
        starts = np.arange(0, size, factor)
        counts = np.minimum(factor, size - starts).reshape(-1, *[1] * (-axis - 1))
        sums = np.add.reduceat(values, starts, axis=axis, dtype=np.float64 if values.dtype.kind == "f" else np.int64)
        means = sums / counts
        values = (means if values.dtype.kind == "f" else np.rint(means)).astype(values.dtype)
    return values


def _values(volume: Volume) -> np.ndarray:
    """In units; integers stay integers where nothing is lost by it."""
    whole = len(volume.slope) == 1 and volume.slope[0].is_integer() and volume.intercept[0].is_integer()
    if volume.voxels.dtype.kind == "f" or not whole:
        return volume.values()
    if (volume.slope, volume.intercept) == ((1.0,), (0.0,)):
        return volume.voxels
    ends = [int(end) * volume.slope[0] + volume.intercept[0] for end in (volume.voxels.min(), volume.voxels.max())]
    for dtype in (np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
            return (volume.voxels.astype(np.int64) * int(volume.slope[0]) + int(volume.intercept[0])).astype(dtype)
    return volume.values()


def _axes(volume: Volume) -> list[dict[str, Any]]:
    directions = volume.geometry.matrix[:3, :3] / np.asarray(volume.geometry.spacing_mm)
    known = volume.modality != "PICTURE" and "NO_ORIENTATION" not in volume.flags
    found: list[dict[str, Any]] = []
    for name in volume.axes:
        if name == "t":
            found.append({"name": "t", "type": "time", "unit": "second"})
        elif name == "c":
            found.append({"name": "c", "type": "channel"})
        else:
            axis: dict[str, Any] = {"name": name, "type": "space", "unit": "millimeter"}
            if known:
                along = directions[:, "zyx".index(name)]
                world = int(np.abs(along).argmax())
                axis["orientation"] = {"type": "anatomical", "value": _TOWARDS[world][0 if along[world] > 0 else 1]}
            found.append(axis)
    return found


def _placed(volume: Volume, factors: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Scale, then where the middle of the first block lies along its axis."""
    spacing = volume.geometry.spacing_mm
    scale = {"t": _seconds(volume), "c": 1.0, **{n: mm * f for n, mm, f in zip("zyx", spacing, factors, strict=True)}}
    moved = {"t": 0.0, "c": 0.0, **{n: mm * (f - 1) / 2 for n, mm, f in zip("zyx", spacing, factors, strict=True)}}
    return [
        {"type": "scale", "scale": [scale[name] for name in volume.axes]},
        {"type": "translation", "translation": [moved[name] for name in volume.axes]},
    ]


def _seconds(volume: Volume) -> float:
    times = [frame["time_s"] for frame in volume.frames if "time_s" in frame]
    return (times[-1] - times[0]) / (len(times) - 1) or 1.0 if len(times) > 1 else 1.0


def _display(volume: Volume, window: tuple[float, float]) -> dict[str, Any]:
    low, high = window
    view = {"start": low, "end": high, "min": low, "max": high}
    colours = _COLOURS if volume.channels == 3 else ("FFFFFF",) * volume.channels
    model = "color" if volume.channels == 3 else "greyscale"
    labels = "RGB" if volume.channels == 3 else [volume.units] * volume.channels
    channels = [
        {"color": colour, "window": view, "label": label, "active": True}
        for colour, label in zip(colours, labels, strict=True)
    ]
    return {"channels": channels, "rdefs": {"model": model}}

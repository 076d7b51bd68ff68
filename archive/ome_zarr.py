"""A Volume as OME-Zarr 0.5: values in units, a pyramid for viewing, and the exact affine beside what 0.5 can say.

0.5 knows scale and translation along the axes only, so that of an oblique grid it shows the spacing; the 4 x 4 LPS affine
in mm is in `voxbook.geometry`, and each axis has its anatomical direction (RFC-4).
https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/rfc/4/
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from archive.arrays import blocks, create_array, even, shard_shape
from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.sliced import SLAB_BYTES, Sliced
from archive.volume import Volume
from archive.volumes import CHUNK

LEAST = 64  # voxels of the longest side from which on a coarser level helps nobody
MOST_LEVELS = 6
_TOWARDS = (("right-to-left", "left-to-right"), ("anterior-to-posterior", "posterior-to-anterior"),
            ("inferior-to-superior", "superior-to-inferior"))  # fmt: skip
_COLOURS = ("FF0000", "00FF00", "0000FF")


def write_ome_zarr(volume: Volume | Sliced, folder: Path, about: dict[str, Any], window: tuple[float, float]) -> None:
    """Write a new folder, whole or not at all.

    Values are in `volume.units`: integers where slope and intercept are whole numbers, else float32. about: what
    further to say of them in the attribute `voxbook`, JSON-ready. window: low and high of the display. Of a Sliced no
    more than a shard is in memory; it is read again where its values turn out to need a wider dtype.
    Raises ConfigError OCCUPIED where the folder exists; OSError.
    """
    if folder.exists():
        raise ConfigError("OCCUPIED", "the target folder exists already")
    stage = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.stage"
    try:
        _write(Sliced.of(volume), stage, folder.name, about, window)
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # gone already when the rename succeeded


def _write(sliced: Sliced, stage: Path, name: str, about: dict[str, Any], window: tuple[float, float]) -> None:
    volume = sliced.header
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
    finer = _finest(sliced, stage)
    before = (1, 1, 1)
    for level, factors in enumerate(plan[1:], 1):
        step = (factors[0] // before[0], factors[1] // before[1], factors[2] // before[2])
        finer, before = _coarser_level(finer, step, stage, str(level), volume.axes), factors


def _finest(sliced: Sliced, stage: Path) -> zarr.Array:
    """Level 0, in the first dtype that holds every value."""
    volume = sliced.header
    for dtype in _dtypes(volume):

        def read(t: int, start: int, stop: int, kind: np.dtype = dtype) -> np.ndarray:
            first = t * sliced.depth + start
            return _in_units(sliced, first, sliced.slab(first, first + stop - start), kind)

        array = _array(stage, "0", volume.axes, volume.voxels.shape, dtype)
        try:
            _fill(array, volume.axes, read, sliced.spans)
            return array
        except _TooNarrow:
            shutil.rmtree(stage / "0")
    raise AssertionError("the last dtype holds every value")


def _coarser_level(finer: zarr.Array, step: tuple[int, int, int], stage: Path, name: str, axes: str) -> zarr.Array:
    """The next level of the pyramid, from the one before as it lies in the stage."""
    depth = finer.shape[-3]
    shape = (
        *finer.shape[:-3],
        *(math.ceil(size / factor) for size, factor in zip(finer.shape[-3:], step, strict=True)),
    )
    rows = max(1, SLAB_BYTES // (math.prod(finer.shape[-2:]) * finer.dtype.itemsize * step[0]))

    def read(t: int, start: int, stop: int) -> np.ndarray:
        z = slice(start * step[0], min(stop * step[0], depth))
        key: Any = (t, ..., z, slice(None), slice(None)) if "t" in axes else (..., z, slice(None), slice(None))
        block = np.asarray(finer[key])
        found = coarser(block, step)
        return np.moveaxis(found, 0, 1) if "c" in axes else found

    def spans(start: int, stop: int) -> Iterator[tuple[int, int]]:
        return ((at, min(at + rows, stop)) for at in range(start, stop, rows))

    array = _array(stage, name, axes, shape, finer.dtype)
    _fill(array, axes, read, spans)
    return array


def _array(stage: Path, name: str, axes: str, shape: tuple[int, ...], dtype: np.dtype) -> zarr.Array:
    chunks = tuple(even(size, CHUNK[axis]) for axis, size in zip(axes, shape, strict=True))
    shards = shard_shape(axes, shape, chunks, dtype.itemsize)
    return create_array(
        stage, name, shape, dtype, chunks, shards, names=tuple(axes), fill_value=0, compressor=ZstdCodec(level=3)
    )


def _fill(
    array: zarr.Array,
    axes: str,
    read: Callable[[int, int, int], np.ndarray],
    spans: Callable[[int, int], Iterable[tuple[int, int]]],
) -> None:
    """Write shard by shard what `read` gives of slices of a time point: [n, (c), y, x]."""
    for region in blocks(array.shape, array.shards or array.chunks):
        part = np.empty([span.stop - span.start for span in region], array.dtype)
        times = part if "t" in axes else part[None]
        first, z = region[0].start if "t" in axes else 0, region[-3]
        for row, target in enumerate(times):
            for start, stop in spans(z.start, z.stop):
                values = read(first + row, start, stop)
                target[..., start - z.start : stop - z.start, :, :] = (
                    np.moveaxis(values, 1, 0) if "c" in axes else values
                )
        array[region] = part


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


class _TooNarrow(Exception):
    """A value does not fit the dtype."""


def _dtypes(volume: Volume) -> list[np.dtype]:
    """What values in units may be written as, in the order of trying; integers where nothing is lost by it."""
    whole = len(volume.slope) == 1 and volume.slope[0].is_integer() and volume.intercept[0].is_integer()
    if volume.voxels.dtype.kind == "f" or not whole:
        return [np.dtype(np.float32)]
    if (volume.slope, volume.intercept) == ((1.0,), (0.0,)):
        return [volume.voxels.dtype]
    return [np.dtype(kind) for kind in (np.int16, np.uint16, np.int32, np.float32)]


def _in_units(sliced: Sliced, first: int, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Slices from `first` on in units. Raises _TooNarrow."""
    slope, intercept = sliced.header.slope, sliced.header.intercept
    if dtype.kind == "f":
        return sliced.values(first, stored)
    if (slope, intercept) == ((1.0,), (0.0,)):
        return stored
    a, b = int(slope[0]), int(intercept[0])
    ends = [int(end) * a + b for end in (stored.min(), stored.max())]
    if min(ends) < np.iinfo(dtype).min or max(ends) > np.iinfo(dtype).max:
        raise _TooNarrow
    return (stored.astype(np.int64) * a + b).astype(dtype)


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

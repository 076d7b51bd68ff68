"""The volume store: stored values exactly as the source wrote them, one Zarr v3 group a version.

    volumes.zarr/<series>/<version>/
        zarr.json       attributes `ome` (NGFF 0.5 multiscales) and `voxbook` (Volume.attributes)
        0/zarr.json     the array: dimension names from t c z y x, sharded, zstd 1, crc32c
        0/c/...         shards

Arrays are made and read by archive.arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from blake3 import blake3
from zarr.storage import LocalStore

from archive import shards
from archive.arrays import blocks, create_array, even, open_array, read_attributes, read_region, shard_shape
from archive.commit import Committed, commit, fault_point
from archive.errors import InputError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume, rescaled

CHUNK = {"t": 1, "c": 4, "z": 8, "y": 256, "x": 256}
_NEEDED = {"axes", "shape", "dtype", "geometry", "modality", "slope", "intercept", "units", "frames"}
_AXIS = {
    "t": {"name": "t", "type": "time"},
    "c": {"name": "c", "type": "channel"},
    **{name: {"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"},
}


def write(volume: Volume, root: Path, series: str) -> Committed:
    """Commit a volume as a new version under `root/series`; every block is read back and compared before.

    Raises InputError NON_FINITE where an attribute is not finite; StoreError NOT_WRITABLE, DAMAGED.
    """
    return commit(root, series, lambda folder: write_folder(volume, folder))


def content_digest(volume: Volume) -> str:
    """BLAKE3 hex over attributes and voxels (little-endian, C order): equal digests are equal volumes."""
    digest = blake3(_canonical(volume.attributes()))
    little = volume.voxels.dtype.newbyteorder("<")
    for part in volume.voxels:  # one t, c or z at a time: no second copy of the whole array
        digest.update(np.ascontiguousarray(part, dtype=little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class StoredVolume:
    """One committed version, read lazily; cheap to make, safe to send to another process (only the folder goes)."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __reduce__(self) -> tuple[type[StoredVolume], tuple[Path]]:
        return StoredVolume, (self.folder,)

    def __repr__(self) -> str:
        return f"StoredVolume(axes={self.axes!r}, shape={self.shape}, dtype={self.dtype.name}, units={self.units!r})"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """What Volume.attributes wrote. Raises StoreError MISSING, DAMAGED."""
        found = read_attributes(self.folder).get("voxbook")
        if not isinstance(found, dict) or not found.keys() >= _NEEDED:
            raise StoreError("DAMAGED", "a stored version does not describe its volume")
        return found

    @cached_property
    def array(self) -> zarr.Array:
        """The Zarr array as it lies; missing shards read as zeros here, so prefer `read` and `slab`."""
        return open_array(self.folder, "0")

    @property
    def axes(self) -> str:
        """One of zyx, tzyx, czyx, tczyx."""
        return self.attributes["axes"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along `axes`."""
        return tuple(self.attributes["shape"])

    @property
    def dtype(self) -> np.dtype:
        """Of the stored values."""
        return np.dtype(self.attributes["dtype"])

    @property
    def units(self) -> str:
        """Of stored * slope + intercept."""
        return self.attributes["units"]

    @property
    def modality(self) -> str:
        """DICOM Modality (0008,0060), or NIFTI, or PICTURE."""
        return self.attributes["modality"]

    @property
    def channels(self) -> int:
        """Colour channels; 1 for grey."""
        return self.shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def timepoints(self) -> int:
        """Length of t; 1 without it."""
        return self.shape[0] if self.axes.startswith("t") else 1

    @property
    def slices(self) -> int:
        """Slices over all time points (t times z)."""
        return self.timepoints * self.shape[-3]

    @cached_property
    def geometry(self) -> Geometry:
        """Shape zyx and exact LPS affine in mm."""
        return Geometry.from_dict(self.attributes["geometry"])

    def header(self) -> Volume:
        """The Volume without its voxels: a read-only array of zeros that takes no memory stands in for them."""
        return Volume.from_attributes(np.broadcast_to(np.zeros((), self.dtype), self.shape), self.attributes)

    def read(self) -> Volume:
        """The whole series. Raises StoreError MISSING, DAMAGED."""
        voxels = read_region(self.array, self.folder / "0", tuple(slice(0, size) for size in self.shape))
        return Volume.from_attributes(voxels, self.attributes)

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Stored values of slices start to stop, counted t-major and z-minor; [n, y, x], or [n, c, y, x] in colour.

        Raises IndexError outside 0 to `slices`; StoreError MISSING, DAMAGED.
        """
        if not 0 <= start <= stop <= self.slices:
            raise IndexError(f"slices {start} to {stop} of {self.slices}")
        depth = self.shape[-3]
        parts = []
        while start < stop:
            t, z = divmod(start, depth)
            end = min(depth, z + stop - start)
            parts.append(self._slices(t, z, end))
            start += end - z
        if not parts:
            return np.empty((0, *self._slice_shape), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def slab_values(self, start: int, stop: int) -> np.ndarray:
        """What `slab` returns, in `units`, float32."""
        return rescaled(self.slab(start, stop), self.attributes["slope"], self.attributes["intercept"], start)

    @property
    def _slice_shape(self) -> tuple[int, ...]:
        return (self.channels,) * ("c" in self.axes) + self.shape[-2:]

    def _slices(self, t: int, start: int, stop: int) -> np.ndarray:
        wanted = {"t": slice(t, t + 1), "z": slice(start, stop)}
        block = read_region(
            self.array,
            self.folder / "0",
            tuple(wanted.get(name, slice(0, size)) for name, size in zip(self.axes, self.shape, strict=True)),
        )
        block = block[0] if "t" in self.axes else block
        return np.moveaxis(block, 1, 0) if "c" in self.axes else block


def write_folder(volume: Volume, folder: Path) -> None:
    """Write a volume as a Zarr group into a folder, new or empty, outside any store; `write` is for the store."""
    array = _create(volume, folder)
    for region in blocks(array.shape, array.shards or array.chunks):
        _write_region(array, folder, region, volume.voxels[region])


def write_slices(
    header: Volume, slices: Iterator[np.ndarray], root: Path, series: str, stored: str | None = None
) -> tuple[str, Committed | None]:
    """`write`, slice by slice: never more than one shard in memory. Returns content_digest and what was committed.

    header: the volume's attributes, with an array of its shape that is not looked at; axes zyx or tzyx.
    slices: [y, x] each, t-major and z-minor. stored: a digest that need not be written again (None is returned then).
    Raises as `write` does, InputError DECODE_FAILED where slices differ in dtype or shape, and what `slices` raises.
    """
    digest = blake3(_canonical(header.attributes()))  # of voxels: sha256 takes three times as long
    shape = header.voxels.shape
    little = header.voxels.dtype.newbyteorder("<")

    def fill(folder: Path) -> None:
        array = _create(header, folder)
        whole = array.shards or array.chunks
        room = np.empty(math.prod(map(min, whole, shape)), header.voxels.dtype)
        for region in blocks(shape, whole):
            sizes = [span.stop - span.start for span in region]
            part = room[: math.prod(sizes)].reshape(sizes)
            flat = part.reshape(-1, *shape[-2:])
            for index in range(len(flat)):
                one = next(slices)
                if one.dtype != part.dtype or one.shape != flat.shape[1:]:
                    raise InputError("DECODE_FAILED", "slices decode to different dtypes or shapes")
                flat[index] = one
            digest.update(np.ascontiguousarray(part, dtype=little).reshape(-1).view(np.uint8).data)
            _write_region(array, folder, region, part)
        if digest.hexdigest() == stored:
            raise _AlreadyStored

    try:
        committed = commit(root, series, fill)
        return digest.hexdigest(), committed
    except _AlreadyStored:
        return digest.hexdigest(), None


class _AlreadyStored(Exception):
    """What was written equals the stored version: the stage is thrown away."""


def _create(volume: Volume, folder: Path) -> zarr.Array:
    """The group and its empty array; shards are written behind Zarr's back (archive.shards)."""
    attributes = volume.attributes()
    _canonical(attributes)
    chunks = tuple(even(size, CHUNK[name]) for name, size in zip(volume.axes, volume.voxels.shape, strict=True))
    zarr.create_group(
        LocalStore(folder), attributes={"ome": _ome(volume), "voxbook": attributes}, zarr_format=3, overwrite=False
    )
    array = create_array(
        folder,
        "0",
        volume.voxels.shape,
        volume.voxels.dtype.newbyteorder("="),
        chunks,
        shard_shape(volume.axes, volume.voxels.shape, chunks, volume.voxels.dtype.itemsize),
        names=tuple(volume.axes),
        fill_value=0,
        compressor=shards.codec_of(volume.voxels.dtype),
    )
    fault_point("volumes.created")
    return array


def _write_region(array: zarr.Array, folder: Path, region: tuple[slice, ...], values: np.ndarray) -> None:
    shape = array.shards or array.chunks
    place = "/".join(str(span.start // size) for span, size in zip(region, shape, strict=True))
    shards.write_shard(folder / "0" / "c" / place, values, array.chunks, shape)


def _ome(volume: Volume) -> dict[str, Any]:
    """NGFF 0.5 multiscales of one level; spacing only, as 0.5 cannot say an oblique affine."""
    spacing = {"t": 1.0, "c": 1.0, **dict(zip("zyx", volume.geometry.spacing_mm, strict=True))}
    scale = [{"type": "scale", "scale": [spacing[name] for name in volume.axes]}]
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": "volume",
                "axes": [_AXIS[name] for name in volume.axes],
                "datasets": [{"path": "0", "coordinateTransformations": scale}],
            }
        ],
    }


def _canonical(attributes: dict[str, Any]) -> bytes:
    try:
        return json.dumps(attributes, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise InputError("NON_FINITE", "an attribute of the volume is not finite") from None

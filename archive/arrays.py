"""Sharded Zarr arrays whose damage shows: made, written with each block read back, opened and read by regions.

Zarr fills in silently what is missing, so a reader here first looks whether the shards that it needs are there.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from archive.errors import StoreError

SHARD_BYTES = 64 * 2**20


def read_attributes(folder: Path) -> dict[str, Any]:
    """Attributes of the Zarr node in a folder, without opening it as Zarr. Raises StoreError MISSING, DAMAGED."""
    try:
        found = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        if not isinstance(found, dict):
            raise TypeError
        return found
    except FileNotFoundError:
        raise StoreError("MISSING", "a stored version has no zarr.json") from None
    except (ValueError, KeyError, TypeError):
        raise StoreError("DAMAGED", "zarr.json of a stored version is not readable") from None


def open_array(folder: Path, path: str = "") -> zarr.Array:
    """A stored array, read-only. Raises StoreError MISSING, DAMAGED."""
    try:
        return zarr.open_array(LocalStore(folder, read_only=True), path=path, mode="r", zarr_format=3)
    except FileNotFoundError:
        raise StoreError("MISSING", "a stored version has no array") from None
    except Exception as error:  # zarr raises half a dozen kinds on metadata that is not as it wrote it
        raise StoreError("DAMAGED", f"a stored array does not open ({type(error).__name__})") from error


def read_region(array: zarr.Array, folder: Path, region: tuple[slice, ...]) -> np.ndarray:
    """Part of a stored array; `folder` is where its zarr.json lies, `region` has a start and stop for every axis.

    Zarr reads a missing shard and one of zero length as fill value without a word (measured on 3.1.6), so each one
    touched is looked for first. Raises StoreError MISSING, DAMAGED.
    """
    shards = array.shards or array.chunks
    spans = [range(part.start // size, -(-part.stop // size)) for part, size in zip(region, shards, strict=True)]
    for place in itertools.product(*spans):
        try:
            if (folder / "c" / "/".join(map(str, place))).stat().st_size == 0:
                raise StoreError("DAMAGED", "a stored shard is empty")
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError("MISSING", "a stored shard is gone") from None
    try:
        return np.asarray(array[region])
    except Exception as error:  # crc32c, zstd, shard index: each codec has its own kind
        raise StoreError("DAMAGED", f"stored bytes do not decode ({type(error).__name__})") from error


def create_array(
    folder: Path,
    path: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: tuple[int, ...],
    shards: tuple[int, ...],
    *,
    names: tuple[str, ...],
    fill_value: int,
    compressor: BloscCodec | ZstdCodec,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array:
    """A new sharded array whose damage shows: every chunk written, crc32c over each chunk and over the index."""
    return zarr.create_array(
        LocalStore(folder),
        name=path,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        serializer=BytesCodec(endian="little") if dtype.itemsize > 1 else BytesCodec(),
        compressors=[compressor, Crc32cCodec()],
        filters=None,
        fill_value=fill_value,
        dimension_names=names,
        attributes=attributes,
        zarr_format=3,
        # All-zero chunks would not be written otherwise, and could not be told from lost ones.
        config={"write_empty_chunks": True},
    )


def even(size: int, most: int) -> int:
    """A chunk length of at most `most` that cuts `size` into equal parts, the last a little shorter at most."""
    return math.ceil(size / math.ceil(size / most))


def blocks(shape: tuple[int, ...], shard: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Regions that are whole shards: one writer a shard, each written once."""
    spans = [
        [slice(at, min(at + step, size)) for at in range(0, size, step)]
        for size, step in zip(shape, shard, strict=True)
    ]
    return itertools.product(*spans)


def write_blocks(array: zarr.Array, values: np.ndarray) -> None:
    """Write shard by shard, read each back and compare its bytes. Raises StoreError DAMAGED."""
    for region in blocks(array.shape, array.shards or array.chunks):
        part = np.ascontiguousarray(values[region], dtype=array.dtype)
        array[region] = part
        if np.ascontiguousarray(array[region]).tobytes() != part.tobytes():
            raise StoreError("DAMAGED", "a block read back differs from what was written")


def shard_shape(axes: str, shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Whole slices, as many along z and then along t as fit SHARD_BYTES, in whole chunks."""
    lengths = dict(zip(axes, shape, strict=True))
    steps = dict(zip(axes, chunks, strict=True))
    shard = {name: math.ceil(lengths[name] / steps[name]) * steps[name] for name in axes}
    slice_bytes = itemsize * math.prod(shard[name] for name in axes if name in "cyx")
    fit = max(1, SHARD_BYTES // (slice_bytes * steps["z"]))
    shard["z"] = min(shard["z"], fit * steps["z"])
    if "t" in axes:
        shard["t"] = max(1, min(shard["t"], SHARD_BYTES // (slice_bytes * shard["z"])))
    return tuple(shard[name] for name in axes)

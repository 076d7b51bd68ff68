"""The code store: codebook indices and all that decoding needs, one Zarr v3 array a version.

codes.zarr/<series>/<version>/
    zarr.json       the array uint16 [level, (t), z, y, x] and, in its attributes, everything else
    c/...           shards; a chunk is a slab of z with all its levels, the coarse one first
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from archive.commit import Committed, commit, fault_point
from archive.errors import InputError, StoreError
from archive.volumes import SHARD_BYTES, create_array, even, open_array, read_attributes, read_region, write_blocks

FILL = 65535  # no legal code, so that a chunk that was never written shows
FORMAT = 1
CHUNK_CODES = 2**18
_DEFAULTS: dict[str, Any] = {
    "slope": [1.0],
    "intercept": [0.0],
    "photometric": "MONOCHROME2",
    "frames": [],
    "acquisition": {},
    "flags": [],
}


@dataclass(frozen=True)
class Codes:
    """Codebook indices of one series and what they mean.

    array: uint16 [level, z, y, x] or [level, t, z, y, x] over the code grid, coarse level first; every value is below
        `codebook_size`. Colour is folded into the model's channels.
    model: id (64 hex) of the only model that decodes them.
    levels: residual levels in `array`; fewer than were stored after a coarser read.
    downsample: voxels per code along (z, y, x).
    source: Volume.attributes() of the source; source_version and source_digest name its stored version.
    pad: voxels added at the end of (z, y, x) before encoding, cut off again by decoding.
    mapping: the intensity mapping, JSON. profile: exact or fast.
    """

    array: np.ndarray = field(repr=False)
    model: str
    levels: int
    codebook_size: int
    downsample: tuple[int, int, int]
    source: dict[str, Any] = field(repr=False)
    source_version: str = ""
    source_digest: str = ""
    pad: tuple[int, int, int] = (0, 0, 0)
    mapping: dict[str, Any] = field(default_factory=dict)
    profile: str = "exact"

    def __post_init__(self) -> None:
        if self.array.dtype != np.uint16 or self.array.ndim not in (4, 5) or 0 in self.array.shape:
            raise InputError("UNSUPPORTED_PIXELS", "codes are uint16 [level, (t), z, y, x] and not empty")
        if self.array.shape[0] != self.levels or not 2 <= self.codebook_size <= FILL:
            raise InputError("BAD_HEADER", "levels or codebook_size do not fit the codes")

    def attributes(self) -> dict[str, Any]:
        """Everything but the array, JSON-ready and short: what is at its default is left out."""
        source = {key: value for key, value in self.source.items() if _DEFAULTS.get(key, ...) != value}
        if source.get("geometry", {}).get("positions_mm", ...) is None:
            source["geometry"] = {key: value for key, value in source["geometry"].items() if key != "positions_mm"}
        return {
            "format": FORMAT,
            "model": self.model,
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "downsample": list(self.downsample),
            "pad": list(self.pad),
            "mapping": self.mapping,
            "profile": self.profile,
            "source_version": self.source_version,
            "source_digest": self.source_digest,
            "source": source,
        }


def write(codes: Codes, root: Path, series: str) -> Committed:
    """Commit codes as a new version under `root/series`. Raises InputError BAD_HEADER for a code outside the codebook.

    Also StoreError NOT_WRITABLE, DAMAGED.
    """
    if int(codes.array.max()) >= codes.codebook_size:
        raise InputError("BAD_HEADER", "a code lies outside the codebook")
    attributes = codes.attributes()
    try:
        json.dumps(attributes, allow_nan=False)
    except ValueError:
        raise InputError("NON_FINITE", "an attribute of the codes is not finite") from None
    return commit(root, series, lambda folder: _write(codes.array, attributes, folder))


class StoredCodes:
    """One committed version of codes, read lazily; safe to send to another process (only the folder goes)."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __reduce__(self) -> tuple[type[StoredCodes], tuple[Path]]:
        return StoredCodes, (self.folder,)

    def __repr__(self) -> str:
        return f"StoredCodes(shape={self.shape}, model={self.attributes['model'][:12]!r})"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """What Codes.attributes wrote, the source's defaults put back. Raises StoreError MISSING, DAMAGED, SCHEMA."""
        stored = read_attributes(self.folder).get("voxbook")
        if not isinstance(stored, dict):
            raise StoreError("DAMAGED", "a stored version says nothing about its codes")
        if stored.get("format") != FORMAT:
            raise StoreError("SCHEMA", "codes of another format", hint="use the voxbook that wrote them")
        source = {**_DEFAULTS, **stored["source"]}
        if "geometry" in source:
            source["geometry"] = {"positions_mm": None, **source["geometry"]}
        return {**stored, "source": source}

    @cached_property
    def array(self) -> zarr.Array:
        """The Zarr array as it lies; missing shards read as 65535 here, so prefer `read` and `slab`."""
        return open_array(self.folder)

    @property
    def shape(self) -> tuple[int, ...]:
        """[level, (t), z, y, x]."""
        return self.array.shape

    @property
    def levels(self) -> int:
        """Residual levels stored."""
        return self.shape[0]

    def read(self, levels: int | None = None) -> Codes:
        """All codes, or the first `levels` of them, which is a legal, coarser version. Raises as `slab` does."""
        count = self._count(levels)
        region = (slice(0, count), *(slice(0, size) for size in self.shape[1:]))
        return self._codes(self._checked(region), count)

    def slab(self, z0: int, z1: int, levels: int | None = None, t: int | None = None) -> np.ndarray:
        """Codes uint16 of rows z0 to z1 of the code grid, [level, (t), z1 - z0, y, x]; with `t`, that one only.

        Raises IndexError outside the grid; StoreError MISSING, DAMAGED.
        """
        timed = len(self.shape) == 5
        frames = self.shape[1] if timed else 1
        if not 0 <= z0 < z1 <= self.shape[-3] or (t is not None and not 0 <= t < frames):
            raise IndexError(f"z {z0} to {z1}, t {t} of codes {self.shape}")
        times = (slice(0, frames) if t is None else slice(t, t + 1),) if timed else ()
        region = (
            slice(0, self._count(levels)), *times, slice(z0, z1), *(slice(0, size) for size in self.shape[-2:])
        )  # fmt: skip
        found = self._checked(region)
        return found[:, 0] if timed and t is not None else found

    def _count(self, levels: int | None) -> int:
        if levels is not None and not 1 <= levels <= self.levels:
            raise IndexError(f"{levels} levels of {self.levels}")
        return levels or self.levels

    def _checked(self, region: tuple[slice, ...]) -> np.ndarray:
        found = read_region(self.array, self.folder, region)
        if int(found.max()) >= self.attributes["codebook_size"]:
            raise StoreError("DAMAGED", "stored codes hold a value outside the codebook")
        return found

    def _codes(self, array: np.ndarray, levels: int) -> Codes:
        data = self.attributes
        return Codes(
            array=array,
            model=data["model"],
            levels=levels,
            codebook_size=data["codebook_size"],
            downsample=tuple(data["downsample"]),
            source=data["source"],
            source_version=data["source_version"],
            source_digest=data["source_digest"],
            pad=tuple(data["pad"]),
            mapping=data["mapping"],
            profile=data["profile"],
        )


def _write(array: np.ndarray, attributes: dict[str, Any], folder: Path) -> None:
    levels, *times, depth, rows, columns = array.shape
    slab = even(depth, max(1, CHUNK_CODES // (levels * rows * columns)))
    chunks = (levels, *(1 for _ in times), slab, rows, columns)
    whole = math.ceil(depth / slab) * slab
    slab_bytes = 2 * levels * slab * rows * columns
    deep = min(whole, max(1, SHARD_BYTES // slab_bytes) * slab)
    wide = [min(length, max(1, SHARD_BYTES // (slab_bytes * (deep // slab)))) for length in times]
    stored = create_array(
        folder,
        None,
        array.shape,
        np.dtype(np.uint16),
        chunks,
        (levels, *wide, deep, rows, columns),
        names=("level", *("t" for _ in times), "z", "y", "x"),
        fill_value=FILL,
        compressor=ZstdCodec(level=9, checksum=True),
        attributes={"voxbook": attributes},
    )
    fault_point("codes.created")
    write_blocks(stored, array)
    # Zarr indents its JSON; beside the chunks a version takes at most 1.5 kB.
    metadata = folder / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()), separators=(",", ":")))

"""The code store: codebook indices and all that decoding needs, one Zarr v3 array a version.

codes.zarr/<series>/<version>/
    zarr.json       the array uint16 [level, (t), z, y, x] and, in its attributes, everything else
    c.0.0...        shards; a chunk is a slab of z with all its levels, the coarse one first, entropy-coded
    bounded/...     where a gate asks for it: voxels whose error is bounded (archive.bounded)

The coder's tables lie with the model, in the workspace's models/<model id>/ (archive.tables).
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from archive import bounded as bounded_layer
from archive import entropy, shards, tables
from archive.arrays import even, open_array, read_attributes
from archive.bounded import Bounded
from archive.codec import CodesCodec
from archive.commit import Committed, commit, fault_point
from archive.errors import InputError, StoreError
from archive.folds import spans

FILL = 65535  # no legal code, so that a chunk that was never written shows
FORMAT = 3
CHUNK_CODES = 2**17  # a slice is found behind those of its chunk before it; the first one of a chunk costs most
SHARD_CHUNKS = 256
LONG = 350  # bytes of JSON from which on what describes the source is packed: PET has a slope per slice
# What zlib knows beforehand of the JSON that it packs; part of the format.
_USUAL = b'''0.0,0.0,0.0,1.0]],"positions_mm":[[-"acquisition":{"kvp":120.0,"exposure_mas":"frames":[{"time_s":''' \
    b''',"phase":"b_value":"flags":["photometric":"RGB","intercept":[0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0],"axes":"tzyx",''' \
    b'''"dtype":"uint16","modality":"MR","units":"Bq/ml","units":"HU","shape":[1,512,512],"dtype":"int16","geometry":''' \
    b'''{"shape":[1,512,512],"affine":[[-1.0,0.0,0.0,-''' \
    b'''"modality":"CT","slope":[1.0],{"axes":"zyx","shape":['''  # fmt: skip
_NEEDED = {"model", "levels", "codebook_size", "downsample", "pad", "mapping", "profile", "source_version",
           "source_digest", "source"}  # fmt: skip
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
    bounded: the layer stored beside them that bounds every voxel's error, which decoding gives then; None without.
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
    bounded: Bounded | None = field(default=None, repr=False, compare=False)

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


def write(codes: Codes, root: Path, series: str, source: Any = None, max_error: float | None = None) -> Committed:
    """Commit codes as a new version under `root/series`; each chunk is decoded again and compared before.

    The tables are those of the model beside `root` (models/<model id>); without, codes cost their zero-order entropy.
    max_error: also a layer with the voxels of `source` (model.source.Source), none off by more, in units; 0: exact.
    Raises InputError BAD_HEADER for a code outside the codebook, NOT_BOUNDABLE; StoreError NOT_WRITABLE, DAMAGED.
    """
    if int(codes.array.max()) >= codes.codebook_size:
        raise InputError("BAD_HEADER", "a code lies outside the codebook")
    attributes = codes.attributes() | ({} if max_error is None else {"max_error": max_error})
    try:
        json.dumps(attributes, allow_nan=False)
    except ValueError:
        raise InputError("NON_FINITE", "an attribute of the codes is not finite") from None
    known = tables.of_model(root.parent / "models", codes.model)
    codec = CodesCodec(codes.codebook_size, known.name if known else "")
    attributes["source"] = _packed(attributes["source"])

    def fill(folder: Path) -> None:
        _write(codes.array, attributes, folder, codec)
        if max_error is not None:
            bounded_layer.write(source, folder, max_error)

    return commit(root, series, fill)


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
            raise StoreError(
                "SCHEMA", "codes of another format", hint="use the voxbook that wrote them, or encode again"
            )
        if not stored.keys() >= _NEEDED:
            raise StoreError("DAMAGED", "a stored version does not say all that decoding needs")
        source = {**_DEFAULTS, **_unpacked(stored["source"])}
        if "geometry" in source:
            source["geometry"] = {"positions_mm": None, **source["geometry"]}
        return {**stored, "source": source}

    @cached_property
    def array(self) -> zarr.Array:
        """The Zarr array as it lies; missing shards read as 65535 here, so prefer `read` and `slab`."""
        self.codec.known()
        return open_array(self.folder)

    @cached_property
    def codec(self) -> CodesCodec:
        """How the chunks are coded; makes the tables of the model beside the store known.

        Raises StoreError MISSING, DAMAGED, NO_TABLES.
        """
        model = self.attributes["model"]  # codes of another format end here
        try:
            codec = CodesCodec.from_dict(self._metadata["codecs"][0]["configuration"]["codecs"][0])
        except (KeyError, TypeError, IndexError):
            raise StoreError("DAMAGED", "zarr.json of a stored version does not name its codec") from None
        if codec.tables:
            tables.of_model(self.folder.parents[2] / "models", model)
            codec.known()
        return codec

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "zarr.json").read_bytes())
            whole = [found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"]]
            whole.append(found["codecs"][0]["configuration"]["chunk_shape"])
            if found["codecs"][0]["name"] != "sharding_indexed" or not found["attributes"]:
                raise KeyError
            if len({len(sizes) for sizes in whole}) != 1 or min(int(size) for sizes in whole for size in sizes) < 1:
                raise ValueError
            return found
        except FileNotFoundError:
            raise StoreError("MISSING", "a stored version has no zarr.json") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise StoreError("DAMAGED", "zarr.json of a stored version is not readable") from None

    @property
    def bounded(self) -> Bounded | None:
        """The layer that bounds every voxel's error; None where there is none."""
        most = self.attributes.get("max_error")
        return None if most is None else Bounded(self.folder, self.attributes["source"], float(most))

    @property
    def shape(self) -> tuple[int, ...]:
        """[level, (t), z, y, x]."""
        return tuple(self._metadata["shape"])

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """[level, (t = 1), z, y, x] of a chunk."""
        return tuple(self._metadata["codecs"][0]["configuration"]["chunk_shape"])

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """[level, (t), z, y, x] of a shard."""
        return tuple(self._metadata["chunk_grid"]["configuration"]["chunk_shape"])

    @property
    def levels(self) -> int:
        """Residual levels stored."""
        return self.shape[0]

    def read(self, levels: int | None = None) -> Codes:
        """All codes, or the first `levels` of them, which is a legal, coarser version. Raises as `slab` does."""
        count = self._count(levels)
        return self._codes(self.slab(0, self.shape[-3], count), count, self.bounded if levels is None else None)

    def slab(self, z0: int, z1: int, levels: int | None = None, t: int | None = None) -> np.ndarray:
        """Codes uint16 of rows z0 to z1 of the code grid, [level, (t), z1 - z0, y, x]; with `t`, that one only.

        Raises IndexError outside the grid; StoreError MISSING, DAMAGED.
        """
        timed = len(self.shape) == 5
        frames = self.shape[1] if timed else 1
        if not 0 <= z0 < z1 <= self.shape[-3] or (t is not None and not 0 <= t < frames):
            raise IndexError(f"z {z0} to {z1}, t {t} of codes {self.shape}")
        times = range(frames) if t is None else range(t, t + 1)
        count = self._count(levels)
        found = np.empty((count, len(times), z1 - z0, *self.shape[-2:]), np.uint16)
        deep = self.chunks[-3]
        for index, time in enumerate(times):
            for row in range(z0 // deep, -(-z1 // deep)):
                first, stop = max(z0, row * deep), min(z1, (row + 1) * deep, self.shape[-3])
                part = self._chunk(time, row, count, stop - row * deep)
                found[:, index, first - z0 : stop - z0] = part[:, first - row * deep :]
        if int(found.max()) >= self.attributes["codebook_size"]:
            raise StoreError("DAMAGED", "stored codes hold a value outside the codebook")
        return found if timed and t is None else found[:, 0]

    def _count(self, levels: int | None) -> int:
        if levels is not None and not 1 <= levels <= self.levels:
            raise IndexError(f"{levels} levels of {self.levels}")
        return levels or self.levels

    def _chunk(self, t: int, row: int, levels: int, stop: int) -> np.ndarray:
        """The first slices of a chunk, uint16 [levels, stop, y, x]; no more of the file is read than that needs."""
        wide, deep = (self.shards[1] if len(self.shape) == 5 else 1), self.shards[-3] // self.chunks[-3]
        place = (0, *((t // wide,) if len(self.shape) == 5 else ()), row // deep, 0, 0)
        path = self.folder / _key(place)
        with shards.Shard(path, wide * deep) as shard:
            number = (t % wide) * deep + row % deep
            about = entropy.head(shard.read(number, entropy.head_size(self.levels)))
            if len(about.sizes) != self.levels or about.depth < stop:
                raise StoreError("DAMAGED", "a chunk of codes of another shape")
            data = shard.read(number, about.end(levels))
        return entropy.decode(
            data, (self.shape[-2], self.shape[-1]), self.codec.codebook_size, self.codec.known(), levels, stop
        )

    def _codes(self, array: np.ndarray, levels: int, bounded: Bounded | None) -> Codes:
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
            bounded=bounded,
        )


def _write(array: np.ndarray, attributes: dict[str, Any], folder: Path, codec: CodesCodec) -> None:
    """The version's folder: zarr.json, and shards (archive.shards), as Zarr v3 has them."""
    levels, *times, depth, rows, columns = array.shape
    known = codec.known()
    together = sum(1 for _ in spans(levels, known.folds if known else ()))  # most codes of folded levels are nothing
    slab = even(depth, max(1, CHUNK_CODES // (together * rows * columns)))
    deep = min(math.ceil(depth / slab), SHARD_CHUNKS)
    wide = [min(length, max(1, SHARD_CHUNKS // deep)) for length in times]
    chunks = (levels, *(1 for _ in times), slab, rows, columns)
    shard = (levels, *wide, deep * slab, rows, columns)
    # By hand, as the shards are: Zarr takes 2 ms for it, and a version of a small series is written in 3.
    metadata = {
        "shape": array.shape,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        # No folders within a version: each is a write and an fsync.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": FILL,
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": chunks, "codecs": [codec.to_dict()],
                    "index_codecs": shards.INDEX_CODECS, "index_location": "end"}}],
        "attributes": {"voxbook": attributes},
        "dimension_names": ["level", *("t" for _ in times), "z", "y", "x"],
        "zarr_format": 3,
        "node_type": "array",
    }  # fmt: skip
    (folder / "zarr.json").write_text(json.dumps(metadata, separators=(",", ":")))
    fault_point("codes.created")
    frames = array if times else array[:, None]
    for first in range(0, frames.shape[1], wide[0] if wide else 1):
        for z in range(0, depth, deep * slab):
            parts: list[bytes | None] = []
            for t in range(first, first + (wide[0] if wide else 1)):
                for at in range(z, z + deep * slab, slab):
                    inside = t < frames.shape[1] and at < depth
                    parts.append(_coded(frames[:, t, at : at + slab], codec) if inside else None)
            place = (0, *([first // wide[0]] if wide else []), z // (deep * slab), 0, 0)
            shards.write_parts(folder / _key(place), parts)


def _key(place: tuple[int, ...]) -> str:
    """The file of a shard: the default key encoding of Zarr v3, with dots."""
    return "c." + ".".join(map(str, place))


def _packed(source: dict[str, Any]) -> dict[str, Any] | str:
    """As it is where it is short; else its JSON, deflated, as text."""
    text = json.dumps(source, separators=(",", ":")).encode()
    packer = zlib.compressobj(9, wbits=-15, zdict=_USUAL)
    return source if len(text) <= LONG else base64.b85encode(packer.compress(text) + packer.flush()).decode()


def _unpacked(source: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(source, dict):
        return source
    try:
        return json.loads(zlib.decompressobj(wbits=-15, zdict=_USUAL).decompress(base64.b85decode(source)))
    except (ValueError, zlib.error):
        raise StoreError("DAMAGED", "what describes the source of stored codes is not readable") from None


def _coded(slab: np.ndarray, codec: CodesCodec) -> bytes:
    slab = np.ascontiguousarray(slab)
    data = codec.encode_chunk(slab, FILL)
    if not np.array_equal(codec.decode_chunk(data, slab.shape, FILL), slab):
        raise StoreError("DAMAGED", "a chunk does not decode to what it was made of")
    return data

"""The Zarr v3 codec of code arrays, `voxbook.codes`: found by its entry point wherever voxbook is installed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from archive import entropy
from archive.errors import InputError, StoreError
from archive.tables import Tables, find

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "voxbook.codes"


@dataclass(frozen=True)
class CodesCodec(ArrayBytesCodec):
    """Chunks uint16 [level, (t = 1), z, y, x] to the bytes of archive.entropy; slices of fill value at the end go.

    codebook_size: every code is below it. tables: sha256 hex of the model's tables, "" for none; decoding looks them
    up and raises StoreError NO_TABLES where nobody made them known.
    """

    is_fixed_size = False

    codebook_size: int
    tables: str = ""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CodesCodec:
        """From zarr.json."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """For zarr.json."""
        return {"name": NAME, "configuration": {"codebook_size": self.codebook_size, "tables": self.tables}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known beforehand."""
        raise NotImplementedError

    def encode_chunk(self, chunk: np.ndarray, fill: int) -> bytes:
        """Bytes of a chunk. Raises InputError BAD_HEADER for a code outside the codebook."""
        slab = chunk if chunk.ndim == 4 else chunk[:, 0]
        depth = slab.shape[1]
        while depth > 1 and (slab[:, depth - 1] == fill).all():
            depth -= 1
        slab = np.ascontiguousarray(slab[:, :depth], np.uint16)
        if int(slab.max()) >= self.codebook_size or (chunk.ndim == 5 and chunk.shape[1] != 1):
            raise InputError("BAD_HEADER", "a code lies outside the codebook")
        return entropy.encode(slab, self.codebook_size, self.known())

    def decode_chunk(self, data: bytes, shape: tuple[int, ...], fill: int) -> np.ndarray:
        """The chunk, uint16 of `shape`."""
        found = entropy.decode(data, (shape[-2], shape[-1]), self.codebook_size, self.known())
        if len(found) != shape[0] or found.shape[1] > shape[-3]:
            raise StoreError("DAMAGED", "a chunk of codes of another shape")
        whole = np.full((shape[0], *shape[-3:]), fill, np.uint16)
        whole[:, : found.shape[1]] = found
        return whole.reshape(shape)

    def known(self) -> Tables | None:
        """The tables that the configuration names."""
        return find(self.tables) if self.tables else None

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        found = await asyncio.to_thread(
            self.encode_chunk, chunk_array.as_numpy_array(), int(np.asarray(chunk_spec.fill_value))
        )
        return chunk_spec.prototype.buffer.from_bytes(found)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        shape, fill = chunk_spec.shape, int(np.asarray(chunk_spec.fill_value))
        found = await asyncio.to_thread(self.decode_chunk, chunk_bytes.to_bytes(), shape, fill)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(found)


register_codec(NAME, CodesCodec)

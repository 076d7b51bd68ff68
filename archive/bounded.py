"""A layer beside the codes that bounds the error of every voxel: JPEG-LS near-lossless, slice by slice.

codes.zarr/<series>/<version>/bounded/
    0, 1, ...       shards (archive.shards) of 64 slices each, t-major and z-minor, one part a slice

It does not depend on the network, whose floats differ between machines (docs/decisions/0007). A part is the crc32c of
the slice that a reader gets, the colour transform, and each plane's offset and JPEG-LS stream (ISO/IEC 14495-1).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from archive import shards
from archive.commit import fault_point
from archive.errors import InputError, StoreError

FOLDER = "bounded"
SLICES = 64  # of a shard: so many coded ones are in memory at once
NEAR_MOST = 255  # ISO/IEC 14495-1, C.2.3
_HEAD = struct.Struct("<IB")  # crc32c of the slice, 1 where colours are differences to green
_PLANE = struct.Struct("<qIBI")  # value = offset + step * what the stream says; how it is coded, its bytes
_CONSTANT, _JPEG_LS, _PLAIN = range(3)
_EVERYTHING = 2**62


@dataclass(frozen=True)
class Bounded:
    """Stored values of a series, none further from the source's than `max_error` in its units; read lazily.

    folder: of the version. attributes: Volume.attributes of the source. Safe to send to another process.
    """

    folder: Path
    attributes: dict[str, Any] = field(repr=False)
    max_error: float

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in (self.folder / FOLDER).iterdir())

    @property
    def slices(self) -> int:
        """Over all time points."""
        return _slices(self.attributes)

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Stored values of slices (t-major, z-minor): [n, y, x], or [n, c, y, x] in colour.

        Raises IndexError outside 0 to `slices`; StoreError MISSING, DAMAGED, also where a slice decodes to anything
        but what was written.
        """
        if not 0 <= start <= stop <= self.slices:
            raise IndexError(f"slices {start} to {stop} of {self.slices}")
        shape, dtype = _slice_shape(self.attributes), np.dtype(self.attributes["dtype"])
        found = np.empty((stop - start, *shape), dtype)
        for number in range(start // SLICES, -(-stop // SLICES)):
            first = number * SLICES
            count = min(SLICES, self.slices - first)
            with shards.Shard(self.folder / FOLDER / str(number), count) as shard:
                for at in range(max(start, first), min(stop, first + count)):
                    found[at - start] = decode_slice(shard.read(at - first, _EVERYTHING), shape, dtype)
        return found

    def into(self, target: np.ndarray, t: int, region: tuple[slice, slice, slice]) -> None:
        """Write stored values of one time point's region (voxels z y x) into [(c), z, y, x] of the region's size."""
        z, y, x = region
        first = t * self.attributes["shape"][-3]
        for at in range(z.start, z.stop):
            target[..., at - z.start, :, :] = self.slab(first + at, first + at + 1)[0, ..., y, x]


def write(source: Any, folder: Path, max_error: float) -> float:
    """Write the layer of a source (model.source.Source) into a version's folder; the largest error, in units.

    Each slice is decoded again and held to the bound before. Raises InputError NOT_BOUNDABLE for floats and for values
    that do not fit 16 bits within a slice; StoreError DAMAGED; OSError.
    """
    dtype, shape = np.dtype(source.dtype), tuple(source.shape)
    if dtype.kind not in "iu":
        raise InputError("NOT_BOUNDABLE", "the bounded layer takes whole numbers")
    if max(shape[-2:]) > 65535:
        raise InputError("NOT_BOUNDABLE", "a slice is larger than JPEG-LS can be")
    attributes = source.attributes
    (folder / FOLDER).mkdir()
    largest = 0.0
    for number in range(-(-source.slices // SLICES)):
        parts: list[bytes | None] = []
        for at in range(number * SLICES, min((number + 1) * SLICES, source.slices)):
            one = np.ascontiguousarray(source.slab(at, at + 1)[0])
            slope, intercept = (_of(attributes[name], at) for name in ("slope", "intercept"))
            near = nearness(one, slope, intercept, max_error)
            data = encode_slice(one, near)
            again = decode_slice(data, one.shape, dtype)
            off = int(np.abs(again.astype(np.int64) - one.astype(np.int64)).max())
            if off > near:
                raise StoreError("DAMAGED", "a bounded slice does not keep its bound")
            largest = max(largest, off * abs(slope))
            parts.append(data)
        shards.write_parts(folder / FOLDER / str(number), parts)
        fault_point("codes.bounded")
    return largest


def nearness(stored: np.ndarray, slope: float, intercept: float, max_error: float) -> int:
    """Most that a stored value may be off so that no value in units, float32 as readers have it, is by more."""
    near = math.floor(max_error / abs(slope))
    if near and not (slope.is_integer() and intercept.is_integer()):
        # Both values are rounded to float32 after the rescale.
        ends = [abs(float(end) * slope + intercept) for end in (stored.min(), stored.max())]
        room = max_error - 2 * float(np.spacing(np.float32(max(ends) + max_error)))
        near = min(near, max(0, math.floor(room / abs(slope))))
    return near


def encode_slice(stored: np.ndarray, near: int) -> bytes:
    """One slice [y, x] or [c, y, x] of integers as a part; no value is off by more than `near`.

    Raises InputError NOT_BOUNDABLE where a plane's values do not fit 16 bits.
    """
    planes = stored if stored.ndim == 3 else stored[None]
    # Grey in colour's clothes is common (ultrasound); modulo 256 costs no bit, but bounds no error.
    differences = near == 0 and len(planes) == 3 and stored.dtype == np.uint8
    if differences:
        planes = np.stack([planes[0] - planes[1], planes[1], planes[2] - planes[1]])
    coded = [_encode_plane(plane, near) for plane in planes]
    body = b"".join(_PLANE.pack(*about, len(stream)) + stream for *about, stream in coded)
    decoded = _decode_planes(body, len(planes), stored.shape, stored.dtype, differences)
    return _HEAD.pack(_checksum(decoded), differences) + body


def decode_slice(part: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The slice of a part, of that shape ([y, x] or [c, y, x]) and dtype. Raises StoreError DAMAGED."""
    try:
        checksum, differences = _HEAD.unpack_from(part)
        planes = shape[0] if len(shape) == 3 else 1
        found = _decode_planes(part[_HEAD.size :], planes, shape, dtype, bool(differences))
    except StoreError:
        raise
    except Exception as error:  # struct, CharLS and numpy have a kind each
        raise StoreError("DAMAGED", f"a bounded slice does not decode ({type(error).__name__})") from error
    if _checksum(found) != checksum:
        raise StoreError("DAMAGED", "a bounded slice decodes to other values than were written")
    return found


def _encode_plane(plane: np.ndarray, near: int) -> tuple[int, int, int, bytes]:
    low, high = int(plane.min()), int(plane.max())
    if high - low <= 2 * near:
        return (low + high) // 2, 0, _CONSTANT, b""
    bits = max(2, (high - low).bit_length())  # JPEG-LS begins at two bits
    step = 1
    if near > min(NEAR_MOST, (2**bits - 1) // 2):
        # A bound that JPEG-LS cannot say, as for PET, whose slopes are small: whole steps, and those without loss.
        step = min(2 * near + 1, 2**32 - 1)
        low, bits = low + near, max(2, ((high - low) // step).bit_length())
    if (high - low) // step > 65535:
        raise InputError("NOT_BOUNDABLE", "the values of a slice do not fit 16 bits")
    from jpeg_ls import encode_buffer

    values = plane.astype(np.int64) - low
    values = ((values + near) // step if step > 1 else values).astype("<u2" if bits > 8 else "u1")
    rows, columns = plane.shape
    plain = values.tobytes()
    try:
        stream = bytes(encode_buffer(plain, rows, columns, 1, bits, near if step == 1 else 0))
    except RuntimeError:  # pyjpegls gives it no more room than the values take: noise of a few pixels
        return low, step, _PLAIN, plain
    return (low, step, _JPEG_LS, stream) if len(stream) < len(plain) else (low, step, _PLAIN, plain)


def _decode_planes(body: bytes, planes: int, shape: tuple[int, ...], dtype: np.dtype, differences: bool) -> np.ndarray:
    from jpeg_ls import decode_buffer

    limits = np.iinfo(dtype)
    found = np.empty((planes, *shape[-2:]), dtype)
    for plane in range(planes):
        offset, step, coding, length = _PLANE.unpack_from(body)
        body = body[_PLANE.size :]
        stream, body = body[:length], body[length:]
        if len(stream) != length:
            raise StoreError("DAMAGED", "a bounded slice is cut off")
        if coding == _CONSTANT:
            found[plane] = offset
            continue
        pixels = decode_buffer(stream)[0] if coding == _JPEG_LS else stream
        values = np.frombuffer(pixels, f"<u{len(pixels) // math.prod(shape[-2:])}").reshape(shape[-2:])
        # Within the bound of a value at the dtype's end lie some that the dtype does not have.
        found[plane] = np.clip(values.astype(np.int64) * step + offset, limits.min, limits.max)
    if body:
        raise StoreError("DAMAGED", "a bounded slice has bytes too many")
    if differences:
        found[0] += found[1]
        found[2] += found[1]
    return found if len(shape) == 3 else found[0]


def _checksum(stored: np.ndarray) -> int:
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    return google_crc32c.value(little.tobytes())


def _of(numbers: Any, index: int) -> float:
    return float(numbers[0] if len(numbers) == 1 else numbers[index])


def _slices(attributes: dict[str, Any]) -> int:
    shape = attributes["shape"]
    return shape[-3] * (shape[0] if attributes["axes"].startswith("t") else 1)


def _slice_shape(attributes: dict[str, Any]) -> tuple[int, ...]:
    shape = attributes["shape"]
    colours = (shape[attributes["axes"].index("c")],) if "c" in attributes["axes"] else ()
    return (*colours, *shape[-2:])

"""Stored values of DICOM slices: masked, sign-extended, in native byte order."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from archive import part10
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.geometry import Geometry
from archive.plans import SeriesPlan
from archive.settings import IngestSettings
from archive.volume import Volume

# What reading one file needs of its header; the plan carries these and no more.
TABLE = ("pixels", "syntax", "rows", "columns", "samples", "allocated", "stored", "high", "signed")
RLE = "1.2.840.10008.1.2.5"


def frame_bytes(header: dict[str, Any]) -> int:
    """Bytes of one uncompressed frame."""
    return header["rows"] * header["columns"] * (header["samples"] or 1) * header["allocated"] // 8


def is_native(header: dict[str, Any]) -> bool:
    """Whether the pixels lie in the file uncompressed (a missing transfer syntax with a length means so)."""
    return header["syntax"] in part10.NATIVE or (not header["syntax"] and header["pixels"][2] >= 0)


def read_slice(path: Path, header: dict[str, Any], decoder: PixelDecoder) -> np.ndarray:
    """Stored values of one single-frame file, [y, x], the dtype that BitsAllocated and PixelRepresentation name.

    Bits outside BitsStored (0028,0101), such as embedded overlays, are masked away, and the sign is extended.
    Raises InputError TRUNCATED, UNREADABLE, DECODE_FAILED, DECODE_LIMIT.
    """
    if is_native(header):
        return _aligned(_native(path, header), header)
    array = decoder.decode(path, header["rows"], header["columns"], header["samples"] or 1, header["allocated"])
    # Only RLE codes the bits as they lie in memory; in JPEG's family a sample is a number of BitsStored bits.
    return _aligned(array, header if header["syntax"] == RLE else {**header, "high": header["stored"] - 1})


def pixel_digest(path: Path, header: dict[str, Any], decoder: PixelDecoder) -> str:
    """sha256 over the decoded stored values: equal for two files that show the same, however they are coded."""
    array = read_slice(path, header, decoder)
    return hashlib.sha256(f"{array.shape}{array.dtype.str}".encode() + array.tobytes()).hexdigest()


def read_dicom(plan: SeriesPlan, settings: IngestSettings, decoder: PixelDecoder | None = None) -> Volume:
    """Read all slices of a plan, in its order, into one Volume. Raises InputError."""
    details = plan.details
    geometry = Geometry.from_dict(details["geometry"])
    times = max(1, len(details["frames"]))
    voxels: np.ndarray | None = None
    with ExitStack() as stack:
        decoder = decoder or stack.enter_context(PixelDecoder(settings))
        for index, (name, header) in enumerate(zip(plan.files, plan.tables, strict=True)):
            path = Path(plan.root, name)
            check_unchanged(path, header)
            array = read_slice(path, header, decoder)
            if voxels is None:
                voxels = np.empty((times * geometry.shape[0], *geometry.shape[1:]), dtype=array.dtype)
            if array.dtype != voxels.dtype:
                raise InputError("DECODE_FAILED", "slices decode to different dtypes")
            voxels[index] = array
    assert voxels is not None
    shape = (times, *geometry.shape) if details["axes"].startswith("t") else geometry.shape
    return Volume.from_attributes(voxels.reshape(shape), details)


def check_unchanged(path: Path, header: dict[str, Any]) -> None:
    """Raise UNREADABLE unless the file is the one that was scanned: a plan's offsets hold only for that."""
    try:
        status = path.stat()
    except OSError:
        raise InputError("UNREADABLE", "a file of the series is gone since the scan") from None
    if [status.st_size, status.st_mtime_ns] != header["status"]:
        raise InputError("UNREADABLE", "a file of the series has changed since the scan", hint="ingest again")


def _native(path: Path, header: dict[str, Any]) -> np.ndarray:
    """Uncompressed pixels as a view of the bytes read, native byte order."""
    _, offset, length, big_endian, words = header["pixels"]
    expected = frame_bytes(header)
    try:
        with path.open("rb") as file:
            if header["syntax"] == part10.DEFLATED:
                part10.skip_meta(file)
                source: Any = BytesIO(part10.inflate(file, offset + expected))
            else:
                source = file
            source.seek(offset)
            raw = source.read(expected)
    except OSError:
        raise InputError("UNREADABLE") from None
    if len(raw) < expected or 0 <= length < expected:
        raise InputError("TRUNCATED", found=len(raw), expected=expected)
    size = header["allocated"] // 8
    if size == 1 and big_endian and words:  # 8-bit samples in big-endian 16-bit words lie pairwise swapped (PS3.5 8.1)
        even = np.frombuffer(raw.ljust(expected + expected % 2, b"\0"), dtype=">u2")
        array = even.astype("<u2").view("u1")[:expected]
    else:
        array = np.frombuffer(raw, dtype=f"{'>' if big_endian else '<'}u{size}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native.reshape(header["rows"], header["columns"])


def _aligned(array: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """The BitsStored bits that end at HighBit, sign-extended where PixelRepresentation (0028,0103) is 1."""
    bits, stored = header["allocated"], header["stored"]
    high = header["high"] if header["high"] is not None else stored - 1
    unsigned = np.dtype(f"u{bits // 8}")
    signed = np.dtype(f"i{bits // 8}")
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise InputError("DECODE_FAILED", "the decoded frame is not a grey integer image")
    if array.dtype.itemsize != unsigned.itemsize:
        # A decoder may give the dtype of the codestream's precision instead of BitsAllocated's.
        array = array.astype(signed if array.dtype.kind == "i" else unsigned)
    array = array.view(unsigned)
    if stored == bits:
        return array.view(signed) if header["signed"] else array
    array = array << (bits - 1 - high)
    return array.view(signed) >> (bits - stored) if header["signed"] else array >> (bits - stored)

"""NIfTI in and out: stored values, scale, and affine, neither resampled nor reoriented."""

from __future__ import annotations

import gzip
import os
import secrets
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from archive.errors import InputError
from archive.geometry import Geometry
from archive.plans import FileEntry, SeriesPlan, fingerprint, group_of
from archive.settings import IngestSettings
from archive.volume import Volume

SUFFIXES = (".nii", ".nii.gz")
MAX_DIM = 32767  # NIfTI-1 counts voxels of an axis in an int16
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SCANNER = 1  # sform and qform code: coordinates of the scanner
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def read_nifti_header(path: Path, size: int) -> dict[str, Any]:
    """What planning and reading need of a NIfTI-1 or -2 header, JSON-ready.

    Raises InputError UNKNOWN_FORMAT, TRUNCATED, UNREADABLE, UNSUPPORTED_PIXELS, NO_GEOMETRY, NON_FINITE.
    """
    try:
        image: Any = nibabel.load(path, mmap=False)
        header: Any = image.header
        if not isinstance(image, nibabel.nifti1.Nifti1Image):  # NIfTI-2 is a kind of it
            raise InputError("UNKNOWN_FORMAT")
        affine = np.asarray(header.get_best_affine(), dtype=float)
        stored: Any = image.dataobj
        slope, intercept = stored.slope, stored.inter
        shape = [int(length) for length in header.get_data_shape()]
        dtype, offset = header.get_data_dtype(), int(stored.offset)
        unit = header.get_xyzt_units()[1]
    except InputError:
        raise
    except (EOFError, zlib.error):
        raise InputError("TRUNCATED") from None
    except PermissionError:
        raise InputError("UNREADABLE") from None
    except (ImageFileError, HeaderDataError, OSError, ValueError, KeyError, OverflowError) as error:
        raise InputError("UNKNOWN_FORMAT", f"no NIfTI header ({type(error).__name__})") from None
    return {
        "shape": _squeeze(shape),
        "dtype": _storable(dtype).str,
        "affine": _usable(affine).tolist(),
        "slope": float(slope),
        "intercept": float(intercept),
        "time_step_s": _step(header, shape, unit),
        "oriented": int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0,
        "truncated": path.suffix != ".gz" and size < offset + int(np.prod(shape, dtype=object)) * dtype.itemsize,
    }


def _squeeze(shape: list[int]) -> list[int]:
    """Three or four axes (x, y, z, t); trailing ones go, missing ones come."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = shape + [1] * (3 - len(shape))
    if len(shape) > 4 or min(shape) < 1:
        raise InputError("UNSUPPORTED_PIXELS", "only three or four axes are read", axes=len(shape))
    return shape


def _storable(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError("UNSUPPORTED_PIXELS", "complex, colour and extended floats are not read")
    return dtype


def _usable(affine: np.ndarray) -> np.ndarray:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError("NO_GEOMETRY", "the affine is not finite or not invertible")
    return affine


def _step(header: Any, shape: list[int], unit: str) -> float | None:
    """Seconds from one time point to the next, where the header states a plausible number."""
    if len(shape) < 4:
        return None
    step = float(header["pixdim"][4]) * SECONDS.get(unit, 1.0)
    return step if np.isfinite(step) and step > 0 and unit in (*SECONDS, "unknown") else None


def plan_nifti(
    entry: FileEntry, root: str, identity: tuple[str, ...], pseudonyms: Any, settings: IngestSettings
) -> SeriesPlan:
    """One NIfTI file as one series of one patient. Raises InputError TRUNCATED, TOO_LARGE, NON_FINITE."""
    header = entry.header
    assert header is not None
    if header["truncated"]:
        raise InputError("TRUNCATED")
    voxels = int(np.prod(header["shape"], dtype=object))
    if voxels * np.dtype(header["dtype"]).itemsize > settings.max_series_bytes:
        raise InputError("TOO_LARGE", voxels=float(voxels))
    if not np.isfinite([header["slope"], header["intercept"]]).all():
        raise InputError("NON_FINITE")
    return SeriesPlan(
        kind="nifti",
        series=pseudonyms.series(*identity),
        patient=pseudonyms.patient(*identity),
        modality="NIFTI",
        group=group_of("nifti"),
        voxels=voxels,
        source_bytes=entry.size,
        fingerprint=fingerprint([entry]),
        identity=identity,
        patient_identity=identity,
        root=root,
        files=(entry.path,),
        details={},
        tables=({**header, "status": [entry.size, entry.mtime_ns]},),
    )


def read_nifti(path: Path, header: dict[str, Any]) -> Volume:
    """A NIfTI file as a Volume, [z, y, x] or [t, z, y, x]: (i, j, k) = (x, y, z), stored values, native byte order.

    Raises InputError TRUNCATED, UNREADABLE, NON_FINITE, UNSUPPORTED_PIXELS.
    """
    try:
        image: Any = nibabel.load(path, mmap=False)
        stored = np.asarray(image.dataobj.get_unscaled())
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError("TRUNCATED") from None
    except (OSError, ValueError) as error:  # nibabel: fewer bytes than expected is either of them
        raise InputError("UNREADABLE" if isinstance(error, PermissionError) else "TRUNCATED") from None
    voxels = _native(stored.reshape(header["shape"]).T)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise InputError("NON_FINITE", share=float(1 - np.isfinite(voxels).mean()))
    step, flags = header["time_step_s"], [] if header["oriented"] else ["NO_ORIENTATION"]
    frames: tuple[dict[str, float], ...] = ()
    if voxels.ndim == 4:
        frames = tuple({"time_s": index * step} if step else {} for index in range(len(voxels)))
    if voxels.shape[-3] == 1:
        flags.append("SINGLE_SLICE")
    # A slope of 0 means that there is no scale (NIfTI-1); nibabel has made it 1 by now.
    return Volume(
        voxels=np.ascontiguousarray(voxels),
        axes="tzyx" if voxels.ndim == 4 else "zyx",
        geometry=Geometry.from_nifti(np.asarray(header["affine"]), tuple(header["shape"][:3])),
        modality="NIFTI",
        slope=(header["slope"],),
        intercept=(header["intercept"],),
        bits_stored=voxels.dtype.itemsize * 8,
        frames=frames,
        flags=tuple(flags),
    )


def _native(array: np.ndarray) -> np.ndarray:
    """Native byte order; 64-bit integers as 32-bit ones where they fit."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8:
        return array
    for smaller in (np.int32, np.uint32):
        limits = np.iinfo(smaller)
        if array.min() >= limits.min and array.max() <= limits.max:
            return array.astype(smaller)
    raise InputError("UNSUPPORTED_PIXELS", "64-bit integers beyond 32 bits are not read")


def write_nifti(volume: Volume, path: Path, description: str = "") -> None:
    """Write .nii or .nii.gz: stored values with scl_slope and scl_inter; float32 in units where they vary by slice.

    Time is the fourth axis; colour is RGB24 (8 bit, without time), else the fifth axis. sform and qform are scanner
    coordinates (a sheared affine fits the sform only). The file appears complete or not at all.
    """
    path = Path(path)
    slope, intercept = volume.slope[0], volume.intercept[0]
    data = volume.voxels
    if len(volume.slope) > 1:
        data, slope, intercept = _scaled(volume), 1.0, 0.0
    data = _for_nifti(data, volume.axes)
    kind = nibabel.Nifti1Header if max(data.shape) <= MAX_DIM else nibabel.Nifti2Header
    header: Any = kind()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    affine = volume.geometry.to_nifti()
    header.set_qform(affine, SCANNER, strip_shears=True)
    header.set_sform(affine, SCANNER)
    header.set_xyzt_units("mm", "sec")
    if data.ndim > 3:
        header["pixdim"][4] = _time_step(volume)
    header.set_slope_inter(slope, intercept)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["magic"] = header.single_magic
    start = header.single_vox_offset
    header["vox_offset"] = start
    _write_whole(path, header.binaryblock.ljust(start, b"\0"), data)


def _scaled(volume: Volume) -> np.ndarray:
    """Values in units, computed in float32 throughout, so that they are dcm2niix's to the last bit."""
    shape = [volume.timepoints] * volume.axes.startswith("t") + [1] * ("c" in volume.axes)
    slope, intercept = (
        np.asarray(numbers, dtype=np.float32).reshape(*shape, -1, 1, 1) for numbers in (volume.slope, volume.intercept)
    )
    return volume.voxels.astype(np.float32) * slope + intercept


def _for_nifti(data: np.ndarray, axes: str) -> np.ndarray:
    """Axes x, y, z, (t), (c) and a dtype that NIfTI knows."""
    if "c" in axes:
        channel = axes.index("c")
        if data.dtype == np.uint8 and data.shape[channel] == 3 and "t" not in axes:
            return np.ascontiguousarray(np.moveaxis(data, channel, -1)).view(RGB24)[..., 0].transpose(2, 1, 0)
        data = np.moveaxis(data, channel, 0)
        if "t" not in axes:
            data = data[:, None]
    return data.T  # every numpy integer and float dtype up to 64 bit is legal in NIfTI


def _time_step(volume: Volume) -> float:
    """Mean seconds between time points; 0 where they are not known."""
    times = [frame["time_s"] for frame in volume.frames if "time_s" in frame]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def _write_whole(path: Path, header: bytes, data: np.ndarray) -> None:
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as raw:
            if path.suffix == ".gz":
                # No name and no time inside, so that equal volumes make equal files.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                    packed.write(header)
                    packed.write(data.tobytes(order="F"))
            else:
                raw.write(header)
                raw.write(data.tobytes(order="F"))
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)

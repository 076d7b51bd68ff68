"""NIfTI in and out: stored values, scale, and affine, neither resampled nor reoriented."""

from __future__ import annotations

import gzip
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from archive.errors import InputError
from archive.geometry import Geometry
from archive.plans import FileEntry, SeriesPlan, fingerprint, group_of
from archive.settings import IngestSettings
from archive.sliced import Sliced
from archive.volume import Volume

SUFFIXES = (".nii", ".nii.gz")
PAIR_MAGIC = (b"ni1\0", b"ni2\0")  # of a header whose voxels lie in a file of their own
MAX_DIM = 32767  # NIfTI-1 counts voxels of an axis in an int16
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SCANNER = 1  # sform and qform code: coordinates of the scanner
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
PARTS = ("magnitude", "phase")  # what a complex image becomes: two series


def is_pair_header(start: bytes) -> bool:
    """Whether a .hdr file that begins so (512 bytes) is half of a NIfTI pair; Analyze and others say no orientation."""
    return start[344:348] == PAIR_MAGIC[0] or start[4:8] == PAIR_MAGIC[1]


def read_nifti_header(path: Path, size: int, *, pair: bool = False) -> dict[str, Any]:
    """What planning and reading need of a NIfTI-1 or -2 header, JSON-ready. pair: the voxels lie in an .img file.

    Raises InputError UNKNOWN_FORMAT, TRUNCATED, UNREADABLE, UNSUPPORTED_PIXELS, NO_GEOMETRY, NON_FINITE.
    """
    try:
        image: Any = _open(path, path if pair else None)
        header: Any = image.header
        if not isinstance(image, nibabel.nifti1.Nifti1Pair):  # all others are kinds of it
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
    kind = _storable(dtype)
    needed = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    return {
        "shape": _squeeze(shape),
        "dtype": kind.str,
        "colours": len(dtype.names or ()),
        "affine": _usable(affine).tolist(),
        "slope": float(slope) if not dtype.names else 1.0,
        "intercept": float(intercept) if not dtype.names else 0.0,
        "time_step_s": _step(header, shape, unit),
        "oriented": int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0,
        "truncated": not pair and path.suffix != ".gz" and size < needed,
        "needed": needed if pair else 0,
    }


def _open(path: Path, image: Path | None) -> Any:
    """By nibabel, without reading voxels; image: the other file of a pair."""
    if image is None:
        return nibabel.load(path, mmap=False)
    with path.open("rb") as file:
        second = file.read(8)[4:] == PAIR_MAGIC[1]
    kind = nibabel.nifti2.Nifti2Pair if second else nibabel.nifti1.Nifti1Pair
    files = {"header": nibabel.FileHolder(str(path)), "image": nibabel.FileHolder(str(image))}
    return kind.from_file_map(files, mmap=False)


def _squeeze(shape: list[int]) -> list[int]:
    """Three or four axes (x, y, z, t); trailing ones go, missing ones come."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = shape + [1] * (3 - len(shape))
    if len(shape) > 4 or min(shape) < 1:
        raise InputError("UNSUPPORTED_PIXELS", "only three or four axes are read", axes=len(shape))
    return shape


def _storable(dtype: np.dtype) -> np.dtype:
    """What is read of it: colour as its bytes, complex numbers as they are."""
    if dtype.names in (("R", "G", "B"), ("R", "G", "B", "A")):
        return np.dtype("u1")
    if dtype.kind not in "iufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise InputError("UNSUPPORTED_PIXELS", "extended floats and complex numbers of them are not read")
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
    entry: FileEntry,
    root: str,
    identity: tuple[str, ...],
    pseudonyms: Any,
    settings: IngestSettings,
    image: FileEntry | None = None,
) -> list[SeriesPlan]:
    """One NIfTI file as one series of one patient, a complex one as two. image: the .img file of a pair.

    Raises InputError TRUNCATED (also where a pair's .img is missing), TOO_LARGE, NON_FINITE.
    """
    header = entry.header
    assert header is not None
    if header["truncated"] or (header["needed"] and (image is None or image.size < header["needed"])):
        raise InputError("TRUNCATED")
    voxels = int(np.prod(header["shape"], dtype=object)) * max(1, min(3, header["colours"]))
    dtype = np.dtype(header["dtype"])
    if voxels * dtype.itemsize > settings.max_series_bytes:
        raise InputError("TOO_LARGE", voxels=float(voxels))
    if not np.isfinite([header["slope"], header["intercept"]]).all():
        raise InputError("NON_FINITE")
    files = [entry] if image is None else [entry, image]
    pair = {} if image is None else {"pair": image.path, "pair_status": [image.size, image.mtime_ns]}
    plans = []
    for part in PARTS if dtype.kind == "c" else ("",):
        names = (*identity, part) if part else identity
        plans.append(
            SeriesPlan(
                kind="nifti",
                series=pseudonyms.series(*names),
                patient=pseudonyms.patient(*identity),
                modality="NIFTI",
                group=group_of("nifti", header["colours"]),
                voxels=voxels,
                source_bytes=sum(file.size for file in files),
                fingerprint=fingerprint(files),
                identity=names,
                patient_identity=identity,
                root=root,
                files=(entry.path,),
                details={},
                tables=({**header, **pair, "part": part, "status": [entry.size, entry.mtime_ns]},),
                folded=tuple(file.path for file in files[1:]),
            )
        )
    return plans


def read_nifti(path: Path, header: dict[str, Any]) -> Volume:
    """A NIfTI file as a Volume, [(t), (c), z, y, x]: (i, j, k) = (x, y, z), stored values, native byte order.

    Of complex numbers the magnitude or the phase (radians) of the scaled values. Alpha is left out of colour. Raises
    InputError TRUNCATED, UNREADABLE, NON_FINITE, UNSUPPORTED_PIXELS.
    """
    image_path = None
    if header.get("pair"):
        pair = Path(header["pair"])
        image_path = pair if pair.is_absolute() else path.parent / pair.name
    try:
        if image_path is not None:
            status = image_path.stat()
            if [status.st_size, status.st_mtime_ns] != header["pair_status"]:
                raise InputError("UNREADABLE", "a file of the series has changed since the scan", hint="ingest again")
        image: Any = _open(path, image_path)
        stored = np.asarray(image.dataobj.get_unscaled())
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError("TRUNCATED") from None
    except (OSError, ValueError) as error:  # nibabel: fewer bytes than expected is either of them
        raise InputError("UNREADABLE" if isinstance(error, PermissionError) else "TRUNCATED") from None
    slope, intercept = header["slope"], header["intercept"]
    voxels = stored.reshape(header["shape"]).T
    if header["part"]:
        scaled = voxels * slope + intercept
        voxels = np.abs(scaled) if header["part"] == PARTS[0] else np.angle(scaled)
        voxels = voxels.astype(stored.real.dtype.newbyteorder("="))
        slope, intercept = 1.0, 0.0
    elif header["colours"]:
        voxels = np.stack([voxels[name] for name in "RGB"], axis=-4)  # in front of z, behind t
    voxels = _native(voxels)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise InputError("NON_FINITE", share=float(1 - np.isfinite(voxels).mean()))
    step, flags = header["time_step_s"], [] if header["oriented"] else ["NO_ORIENTATION"]
    axes = "t" * (len(header["shape"]) == 4) + "c" * bool(header["colours"]) + "zyx"
    frames: tuple[dict[str, float], ...] = ()
    if axes.startswith("t"):
        frames = tuple({"time_s": index * step} if step else {} for index in range(len(voxels)))
    if voxels.shape[-3] == 1:
        flags.append("SINGLE_SLICE")
    # A slope of 0 means that there is no scale (NIfTI-1); nibabel has made it 1 by now.
    return Volume(
        voxels=np.ascontiguousarray(voxels),
        axes=axes,
        geometry=Geometry.from_nifti(np.asarray(header["affine"]), tuple(header["shape"][:3])),
        modality="NIFTI",
        slope=(slope,),
        intercept=(intercept,),
        units="rgb" if header["colours"] else "a.u.",
        photometric="RGB" if header["colours"] else "MONOCHROME2",
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


def write_nifti(volume: Volume | Sliced, path: Path, description: str = "") -> None:
    """Write .nii or .nii.gz: stored values with scl_slope and scl_inter; float32 in units where they vary by slice.

    Time is the fourth axis; colour is RGB24 (8 bit, without time), else the fifth axis. sform and qform are scanner
    coordinates (a sheared affine fits the sform only). The file appears complete or not at all; of a Sliced no more
    than a slab is in memory.
    """
    path = Path(path)
    sliced = Sliced.of(volume)
    about = sliced.header
    slope, intercept = about.slope[0], about.intercept[0]
    dtype, shape = about.voxels.dtype, [*about.geometry.shape[::-1]]
    if len(about.slope) > 1:
        dtype, slope, intercept = np.dtype(np.float32), 1.0, 0.0
    packed = dtype == np.uint8 and about.channels == 3 and "c" in about.axes and "t" not in about.axes
    if "t" in about.axes or ("c" in about.axes and not packed):
        shape += [about.timepoints]
    if "c" in about.axes and not packed:
        shape += [about.channels]
    kind = nibabel.Nifti1Header if max(shape) <= MAX_DIM else nibabel.Nifti2Header
    header: Any = kind()
    header.set_data_dtype(RGB24 if packed else dtype)
    header.set_data_shape(shape)
    affine = about.geometry.to_nifti()
    header.set_qform(affine, SCANNER, strip_shears=True)
    header.set_sform(affine, SCANNER)
    header.set_xyzt_units("mm", "sec")
    if len(shape) > 3:
        header["pixdim"][4] = _time_step(about)
    header.set_slope_inter(slope, intercept)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["magic"] = header.single_magic
    start = header.single_vox_offset
    header["vox_offset"] = start
    _write_whole(path, header.binaryblock.ljust(start, b"\0"), _laid(sliced, packed))


def _laid(sliced: Sliced, packed: bool) -> Iterator[np.ndarray]:
    """The file's voxels in its order, first x, then y, z, t and at last colour, unless it is packed into the voxel."""
    if packed:
        for _, slab in sliced.slabs():
            yield np.moveaxis(slab, 1, -1)
        return
    # Of colour every channel is read for itself: the file has all of one before the next.
    for channel in range(sliced.header.channels):
        for first, slab in sliced.slabs():
            grey = slab[:, channel] if "c" in sliced.header.axes else slab
            yield grey if len(sliced.header.slope) == 1 else _scaled(sliced.header, first, grey)


def _scaled(about: Volume, first: int, slab: np.ndarray) -> np.ndarray:
    """Values in units, computed in float32 throughout, so that they are dcm2niix's to the last bit."""
    slope, intercept = (
        np.asarray(numbers[first : first + len(slab)], np.float32).reshape(-1, 1, 1)
        for numbers in (about.slope, about.intercept)
    )
    return slab.astype(np.float32) * slope + intercept


def _time_step(volume: Volume) -> float:
    """Mean seconds between time points; 0 where they are not known."""
    times = [frame["time_s"] for frame in volume.frames if "time_s" in frame]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def _write_whole(path: Path, header: bytes, slabs: Iterator[np.ndarray]) -> None:
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as raw:
            if path.suffix.lower() == ".gz":
                # No name and no time inside, so that equal volumes make equal files.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                    _write_to(packed, header, slabs)
            else:
                _write_to(raw, header, slabs)
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_to(file: IO[bytes] | gzip.GzipFile, header: bytes, slabs: Iterator[np.ndarray]) -> None:
    file.write(header)
    for slab in slabs:
        for one in slab:  # slice by slice: the slab is not in memory twice
            file.write(np.ascontiguousarray(one).tobytes())

"""The frames of a DICOM series, read into one Volume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from archive import mosaic
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.frames import Image
from archive.geometry import Geometry
from archive.pixels import pixel_digest, read_frame
from archive.plans import SeriesPlan
from archive.settings import IngestSettings
from archive.volume import Volume


def read_dicom(plan: SeriesPlan, settings: IngestSettings, decoder: PixelDecoder | None = None) -> Volume:
    """Read all slices of a plan, in its order, into one Volume. Raises InputError."""
    details = plan.details
    geometry = Geometry.from_dict(details["geometry"])
    times, slices = max(1, len(details["frames"])), geometry.shape[0]
    voxels: np.ndarray | None = None  # [t, z, y, x], or [t, c, z, y, x]
    with ExitStack() as stack:
        decoder = decoder or stack.enter_context(PixelDecoder(settings))
        for index, array in enumerate(read_slices(plan, decoder)):
            if voxels is None:
                shape = (times, *array.shape[:-2], slices, *geometry.shape[1:])
                voxels = np.empty(shape, dtype=array.dtype)
            if array.dtype != voxels.dtype or array.shape != (*voxels.shape[1:-3], *voxels.shape[-2:]):
                raise InputError("DECODE_FAILED", "slices decode to different dtypes or shapes")
            voxels[index // slices, ..., index % slices, :, :] = array
    assert voxels is not None
    bits = details["bits_stored"] or voxels.dtype.itemsize * 8  # a table's output is as wide as its dtype
    volume = voxels if details["axes"].startswith("t") else voxels[0]
    return Volume.from_attributes(volume, {**details, "bits_stored": bits})


def read_slices(plan: SeriesPlan, decoder: PixelDecoder) -> Iterator[np.ndarray]:
    """Every slice of a plan, t-major, z-minor: stored values [y, x], or [c, y, x] of colour. Raises InputError."""
    height, width = plan.details["geometry"]["shape"][1:]
    checked: set[int] = set()
    last: tuple[int, int] | None = None
    frame = np.empty(0)
    for file, number, row, column in plan.images or [(index, 0, 0, 0) for index in range(len(plan.files))]:
        path, header = Path(plan.root, plan.files[file]), plan.tables[file]
        if file not in checked:
            check_unchanged(path, header)
            checked.add(file)
        if (file, number) != last:  # the tiles of a mosaic come one after the other
            frame, last = read_frame(path, header, number, decoder), (file, number)
        yield frame[..., row : row + height, column : column + width]


def image_digest(image: Image, path: Path, decoder: PixelDecoder) -> str:
    """Pixel digest of one image: equal for two that show the same, however coded. Kept in its file's header."""
    header = image.entry.header
    assert header is not None
    digests = header.setdefault("digests", {})  # so that a rescan need not read pixels
    key = f"{image.frame}:{image.corner[0]}:{image.corner[1]}"
    if key not in digests and header["tiles"]:
        frame = read_frame(path, header, image.frame, decoder)
        for tile in mosaic.tile_images(header) or ():
            row, column = tile["corner"]
            part = frame[..., row : row + tile["rows"], column : column + tile["columns"]]
            digest = hashlib.sha256(f"{part.shape}{part.dtype.str}".encode() + part.tobytes()).hexdigest()
            digests[f"{image.frame}:{row}:{column}"] = digest
    elif key not in digests:
        digests[key] = pixel_digest(path, header, image.frame, decoder)
    return str(digests[key])


def check_unchanged(path: Path, header: dict[str, Any]) -> None:
    """Raise UNREADABLE unless the file is the one that was scanned: a plan's offsets hold only for that."""
    try:
        status = path.stat()
    except OSError:
        raise InputError("UNREADABLE", "a file of the series is gone since the scan") from None
    if [status.st_size, status.st_mtime_ns] != header["status"]:
        raise InputError("UNREADABLE", "a file of the series has changed since the scan", hint="ingest again")

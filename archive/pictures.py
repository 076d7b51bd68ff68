"""Pictures (PNG, JPEG, TIFF) as single-slice volumes without patient space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from archive.errors import InputError
from archive.geometry import Geometry
from archive.plans import FileEntry, SeriesPlan, fingerprint, group_of
from archive.settings import IngestSettings
from archive.volume import Volume

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "TIFF")
# Pillow's mode -> what is kept of it; alpha goes, palettes become the colours they name.
GREY = {"1": "L", "L": "L", "LA": "L", "La": "L"}
WIDE = {"I;16": "u2", "I;16L": "u2", "I;16B": "u2", "I;16N": "u2", "I": "i4", "F": "f4"}
COLOUR = {"RGB": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "P": "RGB", "PA": "RGB", "CMYK": "RGB"}
COLOUR |= {"YCbCr": "RGB", "LAB": "RGB"}


def read_picture_header(path: Path) -> dict[str, Any]:
    """Size and mode of a picture, without its pixels, JSON-ready. Raises InputError UNKNOWN_FORMAT, UNREADABLE."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            layout = [str(tile[3]) for tile in image.tile[:1]]
            return {
                "width": image.width,
                "height": image.height,
                "mode": image.mode,
                "format": image.format,
                "pages": _pages(image),
                "layout": layout,
            }
    except PermissionError:
        raise InputError("UNREADABLE") from None
    except UnidentifiedImageError:
        raise InputError("UNKNOWN_FORMAT") from None
    except Image.DecompressionBombError:
        raise InputError("TOO_LARGE") from None
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, KeyError, ... on broken headers
        raise InputError("UNKNOWN_FORMAT", f"no picture header ({type(error).__name__})") from None


def _pages(image: Image.Image) -> int:
    """Pages that are pictures of their own: a TIFF's reduced-resolution ones (NewSubfileType bit 0) are not.

    A JPEG counts as one: the further pages of an MPO are previews.
    """
    if image.format != "TIFF":
        return 1 if image.format == "JPEG" else int(getattr(image, "n_frames", 1))
    pages = 0
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        pages += not int(getattr(image, "tag_v2", {}).get(254, 0)) & 1
        if pages > 1:
            break
    image.seek(0)
    return pages


def plan_picture(
    entry: FileEntry, root: str, identity: tuple[str, ...], pseudonyms: Any, settings: IngestSettings
) -> SeriesPlan:
    """One picture as one series of one patient. Raises InputError MULTIFRAME, UNSUPPORTED_PIXELS, TOO_LARGE."""
    header = entry.header
    assert header is not None
    mode = header["mode"]
    if header["pages"] > 1:
        raise InputError("MULTIFRAME")
    if mode not in GREY | WIDE | COLOUR:
        raise InputError("UNSUPPORTED_PIXELS")
    if mode not in WIDE and "16" in "".join(header["layout"]):
        raise InputError("UNSUPPORTED_PIXELS", "16-bit colour would lose half of its bits")
    channels = 3 if mode in COLOUR else 1
    voxels = header["width"] * header["height"] * channels
    if voxels * np.dtype(WIDE.get(mode, "u1")).itemsize > settings.max_series_bytes:
        raise InputError("TOO_LARGE", voxels=float(voxels))
    return SeriesPlan(
        kind="picture",
        series=pseudonyms.series(*identity),
        patient=pseudonyms.patient(*identity),
        modality="PICTURE",
        group=group_of("picture", channels),
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


def read_picture(path: Path, header: dict[str, Any]) -> Volume:
    """A picture as a Volume: grey [1, y, x], colour uint8 [3, 1, y, x]. Raises InputError TRUNCATED, DECODE_FAILED."""
    mode = header["mode"]
    try:
        with Image.open(path, formats=FORMATS) as image:
            if mode in WIDE:
                array = np.asarray(image).astype(WIDE[mode])
            else:
                # Mode 1 counts 0 and 1 in memory and 0 and 255 as L: it is a picture, so the latter.
                array = np.asarray(image.convert((GREY | COLOUR)[mode]))
    except PermissionError:
        raise InputError("UNREADABLE") from None
    except OSError as error:
        raise InputError("TRUNCATED" if "truncated" in str(error) else "DECODE_FAILED") from None
    except Exception as error:  # as in read_picture_header
        raise InputError("DECODE_FAILED", f"the picture cannot be decoded ({type(error).__name__})") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("NON_FINITE")
    colour = mode in COLOUR
    voxels = np.ascontiguousarray(np.moveaxis(array, -1, 0)[:, None] if colour else array[None])
    return Volume(
        voxels=voxels,
        axes="czyx" if colour else "zyx",
        geometry=Geometry.pixels((1, header["height"], header["width"])),
        modality="PICTURE",
        units="rgb" if colour else "a.u.",
        photometric="RGB" if colour else "MONOCHROME2",
        bits_stored=voxels.dtype.itemsize * 8,
        flags=("LOSSY_SOURCE", "SINGLE_SLICE") if header["format"] == "JPEG" else ("SINGLE_SLICE",),
    )

"""Pictures (PNG, JPEG, TIFF) as volumes without patient space: one slice each, or one per page of a TIFF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from archive.errors import InputError
from archive.geometry import Geometry
from archive.keys import Pseudonyms
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

# 16-bit colour, which Pillow halves to 8 bits: read once for the high bytes and once, with this order, for the low ones.
LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA", "RGBX") for order, other in ("BL", "LB")
}
# 16-bit grey with alpha, which Pillow halves as well: four bytes a pixel, as RGBA has them.
WIDE_ALPHA, FOUR_BYTES = "LA;16B", "RGBA"
MAX_PAGES = 65_536


def read_picture_header(path: Path) -> dict[str, Any]:
    """Size and mode of a picture, without its pixels, JSON-ready. Raises InputError UNKNOWN_FORMAT, UNREADABLE."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            layout = [str(tile[3]) for tile in image.tile[:1]]
            return {
                "width": image.width,
                "height": image.height,
                "mode": "LA" if _raw_mode(image) == WIDE_ALPHA else image.mode,
                "format": image.format,
                "pages": _pages(image),
                "layout": layout,
                "wide": _raw_mode(image) in (*LOW_BYTES, WIDE_ALPHA),
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

    0 where they differ in size or mode, and so are no slices of one stack. A JPEG counts as one: the further pages of
    an MPO are previews.
    """
    if image.format != "TIFF":
        return 1 if image.format == "JPEG" else int(getattr(image, "n_frames", 1))
    kinds = []
    for index in range(min(getattr(image, "n_frames", 1), MAX_PAGES)):
        image.seek(index)
        if not _is_preview(image):
            kinds.append((image.size, image.mode))
    image.seek(0)
    return len(kinds) if len(set(kinds)) == 1 else 0


def _raw_mode(image: Any) -> str:
    """How the file packs its samples, in Pillow's words: the last word of its first tile."""
    arguments = image.tile[0][3] if image.tile else ""
    found = arguments[0] if isinstance(arguments, tuple) else arguments
    order = "L" if sys.byteorder == "little" else "B"
    return str(found).replace(";16N", ";16" + order)


def _is_preview(image: Image.Image) -> bool:
    return bool(int(getattr(image, "tag_v2", {}).get(254, 0)) & 1)


def plan_picture(
    entry: FileEntry, root: str, identity: tuple[str, ...], pseudonyms: Pseudonyms, settings: IngestSettings
) -> SeriesPlan:
    """One picture as one series of one patient. Raises InputError MULTIFRAME, UNSUPPORTED_PIXELS, TOO_LARGE."""
    header = entry.header
    assert header is not None
    mode = header["mode"]
    if header["pages"] != 1 and (header["format"] != "TIFF" or not header["pages"]):
        raise InputError("MULTIFRAME", "pages of different kinds, or an animation")
    if mode not in GREY | WIDE | COLOUR:
        raise InputError("UNSUPPORTED_PIXELS")
    if mode not in WIDE and not header["wide"] and "16" in "".join(header["layout"]):
        raise InputError("UNSUPPORTED_PIXELS", "16-bit colour would lose half of its bits")
    channels = 3 if mode in COLOUR else 1
    voxels = header["width"] * header["height"] * channels * header["pages"]
    if voxels * np.dtype("u2" if header["wide"] else WIDE.get(mode, "u1")).itemsize > settings.max_series_bytes:
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
        tables=({**header, "status": [entry.size, entry.mtime_ns], "class": _class(entry.path, pseudonyms)},),
    )


def _class(path: str, pseudonyms: Pseudonyms) -> str:
    """The class of a picture, 16 hex for the name of the folder that it lies in, as ImageFolder has it; empty at the top.

    The name itself, which may be anybody's, is in the linkage only.
    """
    folder = path.rpartition("/")[0].rpartition("/")[2]
    return pseudonyms.of("class", folder)[:16] if folder and not folder.endswith("!") else ""


def read_picture(path: Path, header: dict[str, Any]) -> Volume:
    """A picture as a Volume: grey [z, y, x], colour uint8 or uint16 [3, z, y, x], z counting pages.

    Raises InputError TRUNCATED, DECODE_FAILED, UNREADABLE, NON_FINITE.
    """
    try:
        slices = [_read_page(path, page, header) for page in _page_numbers(path, header)]
    except PermissionError:
        raise InputError("UNREADABLE") from None
    except OSError as error:
        raise InputError("TRUNCATED" if "truncated" in str(error) else "DECODE_FAILED") from None
    except Exception as error:  # as in read_picture_header
        raise InputError("DECODE_FAILED", f"the picture cannot be decoded ({type(error).__name__})") from None
    stacked = np.stack(slices)
    if stacked.dtype.kind == "f" and not np.isfinite(stacked).all():
        raise InputError("NON_FINITE")
    colour = header["mode"] in COLOUR
    voxels = np.ascontiguousarray(np.moveaxis(stacked, -1, 0) if colour else stacked)
    flags = ["LOSSY_SOURCE"] if header["format"] == "JPEG" else []
    return Volume(
        voxels=voxels,
        axes="czyx" if colour else "zyx",
        geometry=Geometry.pixels((len(slices), header["height"], header["width"])),
        modality="PICTURE",
        units="rgb" if colour else "a.u.",
        photometric="RGB" if colour else "MONOCHROME2",
        bits_stored=voxels.dtype.itemsize * 8,
        acquisition={"class": header["class"]} if header.get("class") else {},
        flags=tuple(flags + ["SINGLE_SLICE"] * (len(slices) == 1)),
    )


def _page_numbers(path: Path, header: dict[str, Any]) -> list[int]:
    if header["pages"] == 1 and header["format"] != "TIFF":
        return [0]
    numbers = []
    with Image.open(path, formats=FORMATS) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            if not _is_preview(image):
                numbers.append(index)
    return numbers[: header["pages"]]


def _read_page(path: Path, page: int, header: dict[str, Any]) -> np.ndarray:
    """One page, [y, x] or [y, x, 3]."""
    mode = header["mode"]
    with Image.open(path, formats=FORMATS) as image:
        image.seek(page)
        if header["wide"]:
            return _read_wide(path, page)
        if mode in WIDE:
            return np.asarray(image).astype(WIDE[mode])
        # Mode 1 counts 0 and 1 in memory and 0 and 255 as L: it is a picture, so the latter.
        return np.asarray(image.convert((GREY | COLOUR)[mode]))


def _read_wide(path: Path, page: int) -> np.ndarray:
    """16-bit colour, uint16 [y, x, 3]; with alpha beside grey [y, x]."""
    with Image.open(path, formats=FORMATS) as image:
        if _raw_mode(image) == WIDE_ALPHA:
            image.tile = [tile._replace(args=FOUR_BYTES) for tile in image.tile]
            return np.asarray(image)[..., :2].copy().view(">u2")[..., 0].astype(np.uint16)
    halves = []
    for low in (False, True):
        with Image.open(path, formats=FORMATS) as image:
            image.seek(page)
            if low:
                image.tile = [_swapped(tile, _raw_mode(image)) for tile in image.tile]
            halves.append(np.asarray(image)[..., :3].astype(np.uint16))
    return (halves[0] << 8) | halves[1]


def _swapped(tile: Any, raw_mode: str) -> Any:
    arguments = tile[3]
    low = LOW_BYTES[raw_mode]
    return tile._replace(args=(low, *arguments[1:]) if isinstance(arguments, tuple) else low)

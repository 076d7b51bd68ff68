"""Images that hold a whole volume tiled into one frame: Siemens mosaics and the grids of United Imaging (UIH)."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from archive import elements

SIEMENS_MR, SIEMENS_CSA, UIH = "SIEMENS MR HEADER", "SIEMENS CSA HEADER", "Image Private Header"
MOSAIC_TAGS: list[Any] = [
    *elements.private_tags(0x0019, 0x0A, 0x29),  # NumberOfImagesInMosaic, MosaicRefAcqTimes
    *elements.private_tags(0x0029, 0x10),  # CSA image header
    *elements.private_tags(0x0065, 0x50, 0x51),  # slices in the volume, a sequence with one item for each
]
CSA_LIMIT = 1 << 20  # bytes; real ones have 10 to 20 thousand
CSA_TAGS = 1000
MOST_TILES = 4096


def tiles(dataset: Dataset, image_type: str) -> dict[str, Any] | None:
    """How a frame is tiled, or None where it shows one image.

    count, across, down: tiles, row by row, the last row may be short; count is 0 where nobody says how many.
    positions: ImagePositionPatient (0020,0032) of each tile; else normal: the direction in which tiles follow each
    other, None where it is not known. Sources: UIH's private tags (0065,xx50) and (0065,xx51); Siemens (0019,xx0A)
    and the CSA header (0029,xx10), described at https://nipy.org/nibabel/dicom/siemens_csa.html.
    """
    kinds = image_type.upper().split("\\")
    if "VFRAME" in kinds or elements.private(dataset, 0x0065, UIH, 0x51) is not None:
        return _grid(dataset)
    if "MOSAIC" not in kinds:
        return None
    csa = csa_header(elements.private(dataset, 0x0029, SIEMENS_CSA, 0x10))
    stated = elements.private_numbers(dataset, 0x0019, SIEMENS_MR, 0x0A, "<H") or csa.get("NumberOfImagesInMosaic")
    if not stated:  # one time for each slice tells as much
        times = elements.private(dataset, 0x0019, SIEMENS_MR, 0x29)
        stated = [len(times)] if isinstance(times, (list, tuple)) or hasattr(times, "append") else [0]
    count = int(stated[0])
    if not 0 < count <= MOST_TILES:
        return {"count": 0, "across": 1, "down": 1, "normal": None}
    across = math.ceil(math.sqrt(count))
    normal = csa.get("SliceNormalVector")
    usable = normal is not None and len(normal) == 3 and 0.9 < float(np.linalg.norm(normal)) < 1.1
    return {"count": count, "across": across, "down": across, "normal": normal if usable else None}


def _grid(dataset: Dataset) -> dict[str, Any]:
    """Of a UIH grid: every tile has an item of its own with its position."""
    stated = elements.private_numbers(dataset, 0x0065, UIH, 0x50)
    sequence = elements.private(dataset, 0x0065, UIH, 0x51)
    found = list(sequence) if sequence is not None and not isinstance(sequence, (str, bytes)) else []
    positions = [elements.vector(item, "ImagePositionPatient", 3) for item in found if isinstance(item, Dataset)]
    count = int(stated[0]) if stated else len(positions)
    if not 0 < count <= MOST_TILES or len(positions) != count or None in positions:
        return {"count": 0, "across": 1, "down": 1, "normal": None}
    across = math.ceil(math.sqrt(count))
    return {"count": count, "across": across, "down": math.ceil(count / across), "positions": positions}


def tile_images(header: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What each tile's header says otherwise than its frame's, with `corner`, its first row and column there.

    None where the frame does not divide into tiles, or its own place is not known.
    """
    layout = header["tiles"]
    rows, columns = header["rows"] or 0, header["columns"] or 0
    if not layout["count"] or rows % layout["down"] or columns % layout["across"] or not rows or not columns:
        return None
    height, width = rows // layout["down"], columns // layout["across"]
    places = layout.get("positions") or _siemens_positions(header, height, width)
    if places is None:
        return None
    known = layout.get("positions") or layout["normal"] is not None
    return [
        {
            "position": list(place),
            "rows": height,
            "columns": width,
            "corner": [index // layout["across"] * height, index % layout["across"] * width],
            "assumed": [] if known else ["SLICE_ORDER_ASSUMED"],
        }
        for index, place in enumerate(places)
    ]


def _siemens_positions(header: dict[str, Any], height: int, width: int) -> list[list[float]] | None:
    """ImagePositionPatient is that of the mosaic laid over the slice as if it were one large image about its centre."""
    layout, spacing = header["tiles"], header["spacing"]
    gap = abs(header["gap"] or 0.0) or header["thickness"]
    if not header["position"] or not header["orientation"] or not spacing or not gap:
        return None
    along_x, along_y = np.array(header["orientation"][:3]), np.array(header["orientation"][3:])
    normal = np.cross(along_x, along_y)
    if layout["normal"] is not None and float(normal @ layout["normal"]) < 0:
        normal = -normal  # sagittal and coronal mosaics run against the cross product
    corner = np.array(header["position"])
    corner = corner + along_x * spacing[1] * (header["columns"] - width) / 2
    corner = corner + along_y * spacing[0] * (header["rows"] - height) / 2
    return [(corner + index * gap * normal).tolist() for index in range(layout["count"])]


def csa_header(raw: Any) -> dict[str, list[float]]:
    """Numbers of a Siemens CSA header (SV10, or the older format without that mark); empty where it is none."""
    if not isinstance(raw, bytes) or not 84 < len(raw) <= CSA_LIMIT:
        return {}
    try:
        return _csa_elements(raw)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError):
        return {}


def _csa_elements(raw: bytes) -> dict[str, list[float]]:
    at = 8 if raw[:4] == b"SV10" else 0
    count, _ = struct.unpack_from("<2I", raw, at)
    at += 8
    if not 0 < count <= CSA_TAGS:
        return {}
    found: dict[str, list[float]] = {}
    for _ in range(count):
        name, multiplicity, _, _, values, _ = struct.unpack_from("<64si4s3i", raw, at)
        at += 84
        texts = []
        if not 0 <= values <= CSA_TAGS:
            return {}
        for _ in range(values):
            _, length, _, _ = struct.unpack_from("<4i", raw, at)
            at += 16
            if not 0 <= length <= len(raw) - at:
                return {}
            texts.append(raw[at : at + length].split(b"\0")[0].decode("latin-1").strip())
            at += (length + 3) // 4 * 4
        used = [elements.floating(text) for text in texts[: max(multiplicity, 0) or len(texts)] if text]
        if used and None not in used:
            found[name.split(b"\0")[0].decode("ascii", "ignore")] = used  # type: ignore[assignment]
    return found

"""A part of a series: which voxels, and what of the series' description stays true of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.stack import STORED_POSITION_MM

Region = tuple[slice, slice, slice]
_SPAN = re.compile(r"(\d*):(\d*)")


def parse(text: str, shape: tuple[int, ...]) -> Region:
    """`z0:z1,y0:y1,x0:x1` in voxels of a grid whose last three sizes are z, y, x; an end left out is the grid's.

    Raises ConfigError BAD_USAGE for anything else, and for what lies outside the grid or is empty.
    """
    z, y, x = shape[-3:]
    hint = f"z0:z1,y0:y1,x0:x1 within 0:{z},0:{y},0:{x}; an end may be left out"
    parts = text.replace(" ", "").split(",")
    if len(parts) != 3:
        raise ConfigError("BAD_USAGE", f"the region {text!r} is not three spans", hint=hint)
    spans = []
    for part, size in zip(parts, (z, y, x), strict=True):
        found = _SPAN.fullmatch(part)
        if found is None:
            raise ConfigError("BAD_USAGE", f"{part!r} in the region is not a span", hint=hint)
        span = slice(int(found[1] or 0), int(found[2] or size))
        if not span.start < span.stop <= size:
            raise ConfigError("BAD_USAGE", f"{part!r} in the region is empty or outside the volume", hint=hint)
        spans.append(span)
    return spans[0], spans[1], spans[2]


def whole(shape: tuple[int, ...]) -> Region:
    """All of a grid."""
    z, y, x = (slice(0, size) for size in shape[-3:])
    return z, y, x


def cropped(attributes: dict[str, Any], region: Region) -> dict[str, Any]:
    """Volume.attributes of the region: its shape, where it lies in the patient, its slices' slopes, flags."""
    geometry = Geometry.from_dict(attributes["geometry"])
    shape = tuple(attributes["shape"])
    if region == whole(shape):
        return attributes
    part = _placed(geometry, region)
    flags = [flag for flag in attributes["flags"] if flag != "SPACING_VARIES"]
    flags += ["SPACING_VARIES"] * (part.positions_mm is not None)
    flags += ["SINGLE_SLICE"] * (part.shape[0] == 1 and "SINGLE_SLICE" not in flags)
    depth = shape[-3]
    frames = shape[0] if attributes["axes"].startswith("t") else 1

    def of_slices(numbers: list[float]) -> list[float]:
        if len(numbers) == 1:
            return numbers
        return [number for t in range(frames) for number in numbers[t * depth : (t + 1) * depth][region[0]]]

    return {
        **attributes,
        "shape": [*shape[:-3], *part.shape],
        "geometry": part.as_dict(),
        "slope": of_slices(attributes["slope"]),
        "intercept": of_slices(attributes["intercept"]),
        "flags": flags,
    }


def _placed(geometry: Geometry, region: Region) -> Geometry:
    """Where the region lies: of slices at exact positions the affine again meets its own first and last one."""
    z, y, x = (span.stop - span.start for span in region)
    matrix, positions = geometry.matrix, geometry.positions_mm
    start = np.array([span.start for span in region], float)
    if positions is None:
        matrix[:3, 3] += matrix[:3, :3] @ start
    else:
        along = matrix[:3, 0] / np.linalg.norm(matrix[:3, 0])
        matrix[:3, 3] += matrix[:3, 1:3] @ start[1:] + along * positions[region[0].start]
        own = np.array(positions[region[0]]) - positions[region[0].start]
        if z > 1:
            matrix[:3, 0] = along * own[-1] / (z - 1)
        regular = np.linspace(0.0, own[-1], z)
        positions = tuple(own.tolist()) if np.abs(own - regular).max() > STORED_POSITION_MM else None
    return Geometry((z, y, x), tuple(map(tuple, matrix)), positions)

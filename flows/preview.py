"""A volume as one picture: the middle slices of three planes, side by side, in the window of its modality."""

from __future__ import annotations

import math
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from archive.errors import ConfigError
from archive.planes import Plane, planes_of
from archive.sliced import Sliced
from archive.volume import Volume
from flows.slices import HU_WINDOWS

HEIGHT = 384  # pixels of each plane
SLICES, SAMPLED = 16, 2**16  # of a window's percentiles
GAP = 8
LABEL = "Pixels are patient data. Research use, not for diagnosis."


def window_of(volume: Volume | Sliced) -> tuple[float, float]:
    """Low and high of the display, in units: soft tissue for CT, the whole of 8-bit pictures, else 0.5 to 99.5 %."""
    sliced = Sliced.of(volume)
    if sliced.header.units == "HU":
        centre, width = HU_WINDOWS["soft tissue"]
        return centre - width / 2, centre + width / 2
    if sliced.header.voxels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = (float(value) for value in np.percentile(_sample(sliced), (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def _sample(sliced: Sliced) -> np.ndarray:
    """Values in units, float64 [n], of SLICES slices evenly apart over all times: at most some SAMPLED of each."""
    slices, slope, intercept = sliced.header.slices, sliced.header.slope, sliced.header.intercept
    some = []
    for index in np.unique(np.rint(np.linspace(0, slices - 1, min(SLICES, slices))).astype(int)).tolist():
        (plane,) = sliced.slab(index, index + 1)
        step = max(1, math.isqrt(plane.size // SAMPLED))
        a, b = (numbers[index if len(numbers) > 1 else 0] for numbers in (slope, intercept))
        some.append((plane[..., ::step, ::step] * np.float64(a) + b).ravel())
    return np.concatenate(some)


def write_png(volume: Volume | Sliced, path: Path, about: dict[str, Any]) -> None:
    """Write an 8-bit PNG, grey or RGB; PET is inverse grey. The file appears complete or not at all.

    about: what its text chunks say. Raises ConfigError OCCUPIED where the file exists; OSError.
    """
    if path.exists():
        raise ConfigError("OCCUPIED", "the target exists already")
    sliced = Sliced.of(volume)
    header = sliced.header
    low, high = window_of(sliced)
    middles = _middle_values(sliced)
    panels = [_panel(header, plane, middles[plane.axis], low, high) for plane in planes_of(header.geometry).values()]
    sheet = Image.new(panels[0].mode, (sum(p.width for p in panels) + GAP * (len(panels) - 1), HEIGHT), 0)
    at = 0
    for panel in panels:
        sheet.paste(panel, (at, (HEIGHT - panel.height) // 2))
        at += panel.width + GAP
    text = PngInfo()
    text.add_text("Comment", LABEL)
    text.add_text("Software", "voxbook")
    text.add_text("Description", ", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    text.add_text("Window", f"{low:g} to {high:g} {header.units}")
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            sheet.save(file, "PNG", pnginfo=text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _panel(volume: Volume, plane: Plane, values: np.ndarray, low: float, high: float) -> Image.Image:
    picture = plane.lay(values)
    grey = np.clip((picture - low) / (high - low), 0, 1)
    if volume.modality == "PT" or volume.photometric == "MONOCHROME1":
        grey = 1 - grey
    pixels = np.rint(255 * grey).astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    spacing = volume.geometry.spacing_mm
    tall, wide = pixels.shape[0] * spacing[plane.rows], pixels.shape[1] * spacing[plane.columns]
    scale = HEIGHT / max(tall, wide)
    return image.resize((max(1, round(wide * scale)), max(1, round(tall * scale))), Image.Resampling.BILINEAR)


def _middle_values(sliced: Sliced) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values in units in the middle of z, of y and of x of the middle time point: float32 [z, y, x, c], 1 along the axis."""
    depth = sliced.depth
    z, y, x = (size // 2 for size in sliced.header.geometry.shape)
    first = sliced.header.timepoints // 2 * depth
    planes: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
    for start, stop in sliced.spans(0, depth):
        stored = sliced.slab(first + start, first + stop)
        stored = np.moveaxis(stored, 1, -1) if "c" in sliced.header.axes else stored[..., None]
        if start <= z < stop:
            planes[0].append(sliced.values(first + z, stored[z - start : z - start + 1]))
        planes[1].append(sliced.values(first + start, stored[:, y : y + 1]))
        planes[2].append(sliced.values(first + start, stored[:, :, x : x + 1]))
    return np.concatenate(planes[0]), np.concatenate(planes[1]), np.concatenate(planes[2])

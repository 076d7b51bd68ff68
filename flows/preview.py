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
from archive.planes import planes_of
from archive.volume import Volume
from flows.slices import HU_WINDOWS

HEIGHT = 384  # pixels of each plane
SLICES, SAMPLED = 16, 2**16  # of a window's percentiles
GAP = 8
LABEL = "Pixels are patient data. Research use, not for diagnosis."


def window_of(volume: Volume) -> tuple[float, float]:
    """Low and high of the display, in units: soft tissue for CT, the whole of 8-bit pictures, else 0.5 to 99.5 %."""
    if volume.units == "HU":
        centre, width = HU_WINDOWS["soft tissue"]
        return centre - width / 2, centre + width / 2
    if volume.voxels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = (float(value) for value in np.percentile(_sample(volume), (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def _sample(volume: Volume) -> np.ndarray:
    """Values in units, float64 [n], of SLICES slices evenly apart over all times: at most some SAMPLED of each."""
    depth = volume.geometry.shape[0]
    some = []
    for index in np.unique(np.rint(np.linspace(0, volume.slices - 1, min(SLICES, volume.slices))).astype(int)):
        t, z = divmod(int(index), depth)
        plane = (volume.voxels[t] if volume.axes.startswith("t") else volume.voxels)[..., z, :, :]
        step = max(1, math.isqrt(plane.size // SAMPLED))
        slope, intercept = (n[index if len(n) > 1 else 0] for n in (volume.slope, volume.intercept))
        some.append((plane[..., ::step, ::step] * np.float64(slope) + intercept).ravel())
    return np.concatenate(some)


def write_png(volume: Volume, path: Path, about: dict[str, Any]) -> None:
    """Write an 8-bit PNG, grey or RGB; PET is inverse grey. The file appears complete or not at all.

    about: what its text chunks say. Raises ConfigError OCCUPIED where the file exists; OSError.
    """
    if path.exists():
        raise ConfigError("OCCUPIED", "the target exists already")
    low, high = window_of(volume)
    panels = [_panel(volume, name, low, high) for name in planes_of(volume.geometry)]
    sheet = Image.new(panels[0].mode, (sum(p.width for p in panels) + GAP * (len(panels) - 1), HEIGHT), 0)
    at = 0
    for panel in panels:
        sheet.paste(panel, (at, (HEIGHT - panel.height) // 2))
        at += panel.width + GAP
    text = PngInfo()
    text.add_text("Comment", LABEL)
    text.add_text("Software", "voxbook")
    text.add_text("Description", ", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    text.add_text("Window", f"{low:g} to {high:g} {volume.units}")
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            sheet.save(file, "PNG", pnginfo=text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _panel(volume: Volume, name: str, low: float, high: float) -> Image.Image:
    plane = planes_of(volume.geometry)[name]
    picture = plane.lay(_middle_values(volume, plane.axis))
    grey = np.clip((picture - low) / (high - low), 0, 1)
    if volume.modality == "PT" or volume.photometric == "MONOCHROME1":
        grey = 1 - grey
    pixels = np.rint(255 * grey).astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    spacing = volume.geometry.spacing_mm
    tall, wide = pixels.shape[0] * spacing[plane.rows], pixels.shape[1] * spacing[plane.columns]
    scale = HEIGHT / max(tall, wide)
    return image.resize((max(1, round(wide * scale)), max(1, round(tall * scale))), Image.Resampling.BILINEAR)


def _middle_values(volume: Volume, axis: int) -> np.ndarray:
    """Values in units of the middle along an axis of the middle time point: float32 [z, y, x, c], 1 along the axis."""
    frame, depth = volume.timepoints // 2, volume.geometry.shape[0]
    stored = volume.voxels[frame] if volume.axes.startswith("t") else volume.voxels
    stored = np.moveaxis(stored, 0, -1) if "c" in volume.axes else stored[..., None]
    middle = stored.shape[axis] // 2
    at = slice(middle, middle + 1)
    slices = range(depth)[at] if axis == 0 else range(depth)

    def of(numbers: tuple[float, ...]) -> np.ndarray:
        chosen = numbers if len(numbers) == 1 else [numbers[frame * depth + z] for z in slices]
        return np.asarray(chosen, np.float64).reshape(-1, 1, 1, 1)

    plane = stored[(slice(None),) * axis + (at,)]
    return (plane * of(volume.slope) + of(volume.intercept)).astype(np.float32)

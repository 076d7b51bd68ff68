"""A volume as one picture: the middle slices of three planes, side by side, in the window of its modality."""

from __future__ import annotations

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
GAP = 8
LABEL = "Pixels are patient data. Research use, not for diagnosis."


def window_of(volume: Volume) -> tuple[float, float]:
    """Low and high of the display, in units: soft tissue for CT, the whole of 8-bit pictures, else 0.5 to 99.5 %."""
    if volume.units == "HU":
        centre, width = HU_WINDOWS["soft tissue"]
        return centre - width / 2, centre + width / 2
    if volume.voxels.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, volume.slices // 16)
    some = volume.values()[..., ::step, ::2, ::2]
    low, high = (float(value) for value in np.percentile(some, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


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
    block = _middle_values(volume)
    middle = block.shape[plane.axis] // 2
    index: list[Any] = [slice(None)] * 4
    index[plane.axis] = slice(middle, middle + 1)
    picture = plane.lay(block[tuple(index)])
    grey = np.clip((picture - low) / (high - low), 0, 1)
    if volume.modality == "PT" or volume.photometric == "MONOCHROME1":
        grey = 1 - grey
    pixels = np.rint(255 * grey).astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    spacing = volume.geometry.spacing_mm
    tall, wide = pixels.shape[0] * spacing[plane.rows], pixels.shape[1] * spacing[plane.columns]
    scale = HEIGHT / max(tall, wide)
    return image.resize((max(1, round(wide * scale)), max(1, round(tall * scale))), Image.Resampling.BILINEAR)


def _middle_values(volume: Volume) -> np.ndarray:
    """Values in units of the middle time point, float32 [z, y, x, c]."""
    frame, depth = volume.timepoints // 2, volume.geometry.shape[0]
    stored = volume.voxels[frame] if volume.axes.startswith("t") else volume.voxels

    def of(numbers: tuple[float, ...]) -> np.ndarray:
        chosen = numbers if len(numbers) == 1 else numbers[frame * depth : (frame + 1) * depth]
        return np.asarray(chosen, np.float32).reshape(-1, 1, 1)

    values = (stored * of(volume.slope) + of(volume.intercept)).astype(np.float32)
    return np.moveaxis(values, 0, -1) if "c" in volume.axes else values[..., None]

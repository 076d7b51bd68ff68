"""Pictures for the report: original, decoded and their difference, side by side, as PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

GAP = 6
LEAST_HEIGHT, MOST_HEIGHT = 128, 384


@dataclass(frozen=True)
class Window:
    """How values become grey: from low (black) to high (white), or the other way round."""

    low: float
    high: float
    inverse: bool = False

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values, float [...], as grey, uint8 of the same shape."""
        share = np.clip((np.nan_to_num(values) - self.low) / (self.high - self.low), 0, 1)
        return np.rint(255 * (1 - share if self.inverse else share)).astype(np.uint8)


SOFT_TISSUE, LUNG = Window(-160, 240), Window(-1250, 250)


def windows_of(original: np.ndarray, modality: str) -> tuple[Window, ...]:
    """The windows a reader would choose: CT soft tissue, and lung where there is lung; MR percentiles;
    PET inverse grey."""
    if modality == "CT":
        lung = np.mean((original > -950) & (original < -600)) > 0.04
        return (SOFT_TISSUE, LUNG) if lung else (SOFT_TISSUE,)
    low, high = (float(value) for value in np.percentile(original, (0.5, 99.5)))
    if modality == "PT":
        return (Window(0.0, max(high, 1e-6), inverse=True),)
    return (Window(low, high if high > low else low + 1),)


def triptych(original: np.ndarray, decoded: np.ndarray, modality: str) -> bytes:
    """PNG of original, decoded and difference, left to right; one row for each window of the modality.

    original, decoded: float32 [y, x], or [3, y, x] for colour (0 to 255), in the volume's units. The difference is
    grey where nothing differs, amplified so that a tenth of the window (or its largest value) is full black or white.
    """
    if original.ndim == 3:
        rows = [_row(original.mean(0), decoded.mean(0), Window(0, 255), colour=(original, decoded))]
    else:
        rows = [_row(original, decoded, window) for window in windows_of(original, modality)]
    picture = Image.fromarray(np.concatenate([rows[0], *(part for row in rows[1:] for part in (_gap(row), row))]))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _row(
    original: np.ndarray, decoded: np.ndarray, window: Window, colour: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    reach = (window.high - window.low) / 10
    difference = Window(-reach, reach).apply(decoded - original)
    panels = [
        np.repeat(panel[..., None], 3, -1) for panel in (window.apply(original), window.apply(decoded), difference)
    ]
    if colour is not None:
        panels[:2] = [np.moveaxis(np.clip(np.rint(part), 0, 255).astype(np.uint8), 0, -1) for part in colour]
    panels = [_sized(panel) for panel in panels]
    gap = np.zeros((panels[0].shape[0], GAP, 3), np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def _gap(row: np.ndarray) -> np.ndarray:
    return np.zeros((GAP, *row.shape[1:]), np.uint8)


def _sized(panel: np.ndarray) -> np.ndarray:
    """Small images enlarged by whole factors, large ones reduced: readable, and a page of modest size."""
    longest = max(panel.shape[:2])
    if longest > MOST_HEIGHT:
        scale = MOST_HEIGHT / longest
        size = (max(1, round(panel.shape[1] * scale)), max(1, round(panel.shape[0] * scale)))
        return np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BOX))
    factor = max(1, LEAST_HEIGHT // longest)
    return panel.repeat(factor, axis=0).repeat(factor, axis=1)

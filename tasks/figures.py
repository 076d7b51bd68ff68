"""Pictures for the report: original, decoded and their difference in three planes, side by side, under a window."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from archive.geometry import Geometry
from archive.planes import Plane, planes_of
from model.intensity import HU

GAP = 6
SIDE = 256  # pixels of the longer side of a panel
THIN = 32  # pixels: a plane across the slices that is less high shows nothing
TINY = 1e-6
QUALITY = 90  # WebP: a page with 20 series in three planes and up to three windows stays under 15 MiB
SLAB = 32  # slices in memory at once
MOST_VOXELS = (
    2**22
)  # of a series that are decoded: of one with more, the planes across are made of slices at a distance


@dataclass(frozen=True)
class Window:
    """How values become grey: from low (black) to high (white), or the other way round."""

    name: str
    low: float
    high: float
    inverse: bool = False

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values, float [...], as grey, uint8 of the same shape."""
        share = np.clip((np.nan_to_num(values) - self.low) / (self.high - self.low), 0, 1)
        return np.rint(255 * (1 - share if self.inverse else share)).astype(np.uint8)


SOFT_TISSUE = Window("soft tissue", -160, 240)
LUNG = Window("lung", -1350, 150)
BONE = Window("bone", -770, 1730)


def windows_of(values: np.ndarray, modality: str) -> tuple[Window, ...]:
    """The windows a reader would choose: CT soft tissue, lung and bone where there is any; PET inverse; percentiles."""
    if modality == "CT":
        lung = np.mean((values > -950) & (values < -600)) > 0.04
        bone = np.mean(values > 300) > 0.01
        return (SOFT_TISSUE, *(LUNG,) * bool(lung), *(BONE,) * bool(bone))
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    if modality == "PT":
        return (Window("inverse grey", 0.0, max(high, 1e-6), inverse=True),)
    return (Window("0.5 to 99.5 %", low, high if high > low else low + 1),)


def figures(original: Any, decoded: Any, modality: str) -> list[dict[str, Any]]:
    """The planes through the largest error, under each window: [{"window", "largest", "reach", "planes": [...]}].

    original, decoded: StoredVolume and DecodedVolume of one series. largest: that error, in units, of the slices that
    are decoded (of CT clipped to the range that PSNR counts); where there is none, the middle planes are shown. reach:
    the difference that is full black or white, of all windows alike. Each plane is {"plane", "slice" (from 1), "of",
    "every", "picture"}; picture: WebP in base64. Of a series over time the middle time point is shown. every: planes
    across the slices show every so manyth of them, each as thick as that, so that 20 large series do not take an hour
    to decode; those that would be strips are left out.
    """
    geometry: Geometry = original.geometry
    planes = planes_of(geometry)
    sizes = {name: _size(geometry, plane) for name, plane in planes.items()}
    planes = {name: plane for name, plane in planes.items() if not plane.axis or min(sizes[name]) >= THIN} or planes
    shown = sampled(geometry.shape)
    before, after = _read(original, shown, modality), _read(decoded, shown, modality)
    far = np.abs(after - before).max(-1)
    largest = float(far.max())
    place = np.unravel_index(far.argmax(), far.shape) if largest else [np.abs(shown - geometry.shape[0] // 2).argmin()]
    at = (int(shown[place[0]]), *(map(int, place[1:]) if largest else (size // 2 for size in geometry.shape[1:])))
    nearest = np.abs(np.arange(geometry.shape[0])[:, None] - shown).argmin(axis=1)
    pairs = {
        name: (_plane(before, plane, at, nearest), _plane(after, plane, at, nearest)) for name, plane in planes.items()
    }
    every = math.ceil(geometry.shape[0] / len(shown))
    reach = _reach(pairs.values())
    colour = "c" in original.axes
    whole = np.concatenate([pair[0].ravel() for pair in pairs.values()])
    windows = (Window("8 bit", 0, 255),) if colour else windows_of(whole, modality)
    return [
        {
            "window": window.name,
            "largest": largest,
            "reach": reach,
            "planes": [
                {
                    "plane": name,
                    "slice": at[plane.axis] + 1,
                    "of": geometry.shape[plane.axis],
                    "every": every if plane.axis else 1,
                    "picture": base64.b64encode(triptych(*pairs[name], window, sizes[name], reach)).decode(),
                }
                for name, plane in planes.items()
            ],
        }
        for window in windows
    ]


def triptych(original: np.ndarray, decoded: np.ndarray, window: Window, size: tuple[int, int], reach: float) -> bytes:
    """WebP of original, decoded and difference, left to right, each `size` (width, height).

    original, decoded: float32 [y, x], or [y, x, 3] for colour. The difference is grey where nothing differs, and full
    black or white where decoded is lower or higher by `reach`, in units.
    """
    difference = Window("", -max(reach, TINY), max(reach, TINY)).apply(decoded - original)
    if difference.ndim == 3:
        difference = difference.mean(-1).astype(np.uint8)
    panels = [_rgb(window.apply(original)), _rgb(window.apply(decoded)), _rgb(difference)]
    sheet = Image.new("RGB", (3 * size[0] + 2 * GAP, size[1]))
    for place, panel in enumerate(panels):
        larger = size[0] >= panel.shape[1]
        method = Image.Resampling.NEAREST if larger and size[0] >= 3 * panel.shape[1] else Image.Resampling.BOX
        sheet.paste(Image.fromarray(panel).resize(size, method), (place * (size[0] + GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def sampled(shape: tuple[int, int, int]) -> np.ndarray:
    """Slices z that are read for planes across them, evenly apart: all, or as many as hold MOST_VOXELS."""
    depth, rows, columns = shape
    count = min(depth, max(2, MOST_VOXELS // (rows * columns)))
    return np.unique(np.append(np.rint(np.linspace(0, depth - 1, count)).astype(int), depth // 2))


def _read(source: Any, shown: np.ndarray, modality: str) -> np.ndarray:
    """The slices `shown` of the middle time point in units, float32 [n, y, x, c], finite; CT within the range of HU."""
    first = (source.shape[0] // 2 if source.axes.startswith("t") else 0) * source.geometry.shape[0]
    parts = [source.slab_values(first + at, first + stop) for at, stop in _runs(shown)]  # [n, (c), y, x]
    block = np.nan_to_num(np.concatenate(parts).astype(np.float32, copy=False), posinf=0, neginf=0)
    block = np.clip(block, *HU) if modality == "CT" else block  # padding outside the scanner's circle is no error
    return np.moveaxis(block, 1, -1) if "c" in source.axes else block[..., None]


def _plane(block: np.ndarray, plane: Plane, at: tuple[int, ...], nearest: np.ndarray) -> np.ndarray:
    """The plane through the voxel `at` as a reader sees it: float32 [y, x] or [y, x, 3].

    block: float32 [n, y, x, c]; nearest: int [z], which of the n slices stands for each.
    """
    whole = block[nearest[at[0]]][None] if plane.axis == 0 else block.take([at[plane.axis]], axis=plane.axis)[nearest]
    picture = plane.lay(whole)
    return picture if picture.shape[-1] == 3 else picture[..., 0]


def _reach(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The difference that 99.5 % of the pixels stay within, so that a few that are far off do not hide the others."""
    far = np.concatenate([np.abs(after - before).ravel() for before, after in pairs])
    return float(np.percentile(far, 99.5)) or float(far.max())


def _runs(shown: np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers as spans of neighbours, start and stop, of at most SLAB each."""
    runs: list[tuple[int, int]] = []
    for z in shown.tolist():
        if runs and runs[-1][1] == z and z - runs[-1][0] < SLAB:
            runs[-1] = (runs[-1][0], z + 1)
        else:
            runs.append((z, z + 1))
    return runs


def _size(geometry: Geometry, plane: Plane) -> tuple[int, int]:
    """Width and height in pixels, true to millimetres."""
    wide = geometry.shape[plane.columns] * geometry.spacing_mm[plane.columns]
    tall = geometry.shape[plane.rows] * geometry.spacing_mm[plane.rows]
    scale = SIDE / max(wide, tall)
    return max(8, round(wide * scale)), max(8, round(tall * scale))


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)

"""Slices of one series in anatomical planes, of the volume and of its codes, as windowed 8-bit PNG."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from archive.geometry import Geometry
from archive.volumes import read_region
from archive.workspace import Workspace, open_codes, open_volumes
from model.intensity import percentiles
from model.source import rescaled

TIERS = ("volume", "codes", "difference")
PLANES = ("axial", "coronal", "sagittal")
KEPT = 48  # planes in memory, float32
STEP = 8  # slices decoded together
PATIENCE_S = 1.0  # a request decodes for so long and shows what there is; the page asks again
HU_WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (40, 400),
    "lung": (-600, 1500),
    "bone": (480, 2500),
    "brain": (40, 80),
}
UNKNOWN = 48  # grey of what is not decoded yet


@dataclass(frozen=True)
class Plane:
    """How one anatomical plane lies in an array [z, y, x].

    axis: the array axis that the slider walks along; rows, columns: those that make up the picture; flip_rows,
    flip_columns: so that L (patient's left) is on the right, P below, and S on top, as radiologists look at them.
    """

    axis: int
    rows: int
    columns: int
    flip_rows: bool
    flip_columns: bool

    def lay(self, block: np.ndarray) -> np.ndarray:
        """A block [z, y, x, ...] of length 1 along `axis` as a picture [rows, columns, ...]."""
        picture = np.moveaxis(block, (self.rows, self.columns, self.axis), (0, 1, 2))[:, :, 0]
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def planes_of(geometry: Geometry) -> dict[str, Plane]:
    """The three planes by the array axes that lie nearest to L, P and S; oblique grids are shown along their own axes.

    Left out: planes that are one voxel high or wide (of a single slice, and of pictures).
    """
    directions = geometry.matrix[:3, :3] / np.asarray(geometry.spacing_mm)  # rows L, P, S; columns z, y, x
    left, back, up = max(
        itertools.permutations(range(3)), key=lambda axes: sum(abs(directions[w, a]) for w, a in enumerate(axes))
    )
    to_left, to_back, to_up = (bool(directions[w, a] > 0) for w, a in enumerate((left, back, up)))
    found = {
        "axial": Plane(up, back, left, not to_back, not to_left),
        "coronal": Plane(back, up, left, to_up, not to_left),
        "sagittal": Plane(left, up, back, to_up, not to_back),
    }
    shape = geometry.shape
    thick = {name: plane for name, plane in found.items() if min(shape[plane.rows], shape[plane.columns]) > 1}
    return thick or {"axial": found["axial"]}


@dataclass(frozen=True)
class Wanted:
    """One picture: centre and width in the series' units; levels: the first so many, None for all; gain: of the
    difference, whose range is the window's divided by it."""

    tier: str
    plane: str
    index: int
    t: int
    levels: int | None
    centre: float
    width: float
    gain: float

    @classmethod
    def parse(cls, query: Mapping[str, str], series: Series) -> Wanted:
        """From the query of a URL. Raises KeyError, ValueError for what is missing or out of range."""
        centre, width = (float(part) for part in query["window"].split(","))
        levels = int(query["levels"]) if query.get("levels") else None
        wanted = cls(
            query["tier"], query["plane"], int(query["index"]), int(query.get("t", "0")), levels, centre, width,
            float(query.get("gain", "1")),
        )  # fmt: skip
        plane = series.planes[wanted.plane]
        fits = (
            wanted.tier in TIERS[: 3 if series.levels else 1]
            and 0 <= wanted.index < series.geometry.shape[plane.axis]
            and 0 <= wanted.t < series.timepoints
            and (levels is None or 1 <= levels <= series.levels)
            and np.isfinite([centre, width, wanted.gain]).all()
            and width > 0
            and wanted.gain > 0
        )
        if not fits:
            raise ValueError("no such slice")
        return wanted


@dataclass(frozen=True)
class Picture:
    """A slice as PNG. low, high: what black and white stand for; missing: slices of it not decoded yet."""

    png: bytes
    low: float
    high: float
    missing: int


class Series:
    """One series of a workspace, read where it is looked at; safe to use from several threads.

    Decoded slices of one time point and level count are kept once made: the size of the series in memory at most.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.row = workspace.catalog.one(name)
        self.name = self.row.series
        self.volume = open_volumes(workspace)[self.name]
        self.attributes = self.volume.attributes
        self.geometry = self.volume.geometry
        self.planes = planes_of(self.geometry)
        self.axes, self.timepoints = self.volume.axes, self.volume.timepoints
        codes = open_codes(workspace).get(self.name)
        # Codes of an earlier version of the source have another grid, perhaps, and nothing to be compared with.
        self.outdated = codes is not None and codes.attributes["source_version"] != self.row.volume_version
        self.levels = 0 if codes is None or self.outdated else codes.levels
        certificates = {row.series: row for row in workspace.catalog.certificates()} if self.levels else {}
        self.certificate = certificates.get(self.name)
        self._kept: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()
        self._keeping, self._decoding = threading.Lock(), threading.Lock()
        self._held = _Held()

    @cached_property
    def windows(self) -> list[dict[str, Any]]:
        """Presets: of CT as radiologists set them; else by percentiles of the volume, or the whole of 8 bits."""
        found: dict[str, tuple[float, float]] = {}
        if self.volume.units == "HU":
            found |= HU_WINDOWS
        elif self.volume.dtype == np.uint8 and self.attributes["slope"] == [1.0]:
            found["0 to 255"] = (127.5, 255.0)
        else:
            for name, percent in (("1 to 99 %", (1, 99)), ("0.1 to 99.9 %", (0.1, 99.9))):
                low, high = percentiles(self.volume, percent)
                found[name] = ((low + high) / 2, high - low)
        return [{"name": name, "centre": centre, "width": width} for name, (centre, width) in found.items()]

    def values(self, wanted: Wanted, tier: str) -> tuple[np.ndarray, int]:
        """Float32 [rows, columns, (c)] in units, NaN where it is not decoded yet, and how many slices that are."""
        key = (tier, wanted.plane, wanted.index, wanted.t, wanted.levels if tier == "codes" else None)
        with self._keeping:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], 0
        plane = self.planes[wanted.plane]
        region = [slice(0, size) for size in self.geometry.shape]
        region[plane.axis] = slice(wanted.index, wanted.index + 1)
        stored, known = (self._read if tier == "volume" else self._decode)(region, wanted)
        slope, intercept = self.attributes["slope"], self.attributes["intercept"]
        first = wanted.t * self.geometry.shape[0] + region[0].start
        block = rescaled(stored, slope, intercept, first)
        block[~known] = np.nan
        picture = plane.lay(block)
        missing = int((~known).sum())
        if not missing:
            with self._keeping:
                self._kept[key] = picture
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return picture, missing

    def _read(self, region: list[slice], wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """Stored values [z, y, x, (c)] of a region of the volume tier: only the chunks that it touches are read."""
        named = dict(zip("zyx", region, strict=True)) | {"t": slice(wanted.t, wanted.t + 1)}
        named["c"] = slice(0, self.volume.channels)
        part = tuple(named[name] for name in self.axes)
        block = read_region(self.volume.array, self.volume.folder / "0", part)
        block = block[0] if "t" in self.axes else block
        block = np.moveaxis(block, 0, -1) if "c" in self.axes else block
        return block, np.ones(len(block), bool)

    def _decode(self, region: list[slice], wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """The same of the codes: decodes what is missing for a second at most, and says which slices are there."""
        with self._decoding:
            self._held.of(self, wanted.levels or self.levels, wanted.t)
            self._held.fill(region[0], time.monotonic() + PATIENCE_S)
            block, known = self._held.array[..., region[0], region[1], region[2]], self._held.known[region[0]].copy()
            return (np.moveaxis(block, 0, -1) if "c" in self.axes else block).copy(), known

    def about(self) -> dict[str, Any]:
        """What the page says and asks for: pseudonym, numbers and enums only."""
        shape, spacing = self.geometry.shape, self.geometry.spacing_mm
        return {
            "series": self.name,
            "modality": self.row.modality,
            "group": self.row.group,
            "state": self.row.state,
            "axes": self.axes,
            "shape": list(self.volume.shape),
            "dtype": self.volume.dtype.name,
            "units": self.volume.units,
            "spacing_mm": list(spacing),
            "oblique": bool((np.abs(self.geometry.matrix[:3, :3] / spacing).max(axis=0) < 0.995).any()),
            "timepoints": self.timepoints,
            "levels": self.levels,
            "outdated": self.outdated,
            "windows": self.windows,
            "planes": [
                {
                    "name": name,
                    "scanned": plane.axis == 0,
                    "count": shape[plane.axis],
                    "step_mm": spacing[plane.axis],
                    "width_mm": shape[plane.columns] * spacing[plane.columns],
                    "height_mm": shape[plane.rows] * spacing[plane.rows],
                }
                for name, plane in self.planes.items()
            ],
            "certificate": None
            if self.certificate is None
            else {**self.certificate.data, "expired": self.certificate.expired},
        }


class _Held:
    """Decoded slices of one time point at one level count; asking for another lets them go."""

    def __init__(self) -> None:
        self.key: tuple[int, int] | None = None
        self.decoded: dict[int, Any] = {}
        self.array = np.empty(0)
        self.known = np.empty(0, bool)

    def of(self, series: Series, levels: int, t: int) -> None:
        """Make room for a time point."""
        if self.key == (levels, t):
            return
        if levels not in self.decoded:
            from model.decode import open_decoded  # torch takes seconds to import

            device = series.workspace.settings.encode.device
            self.decoded[levels] = open_decoded(series.workspace, device=device, levels=levels)[series.name]
        found = self.decoded[levels]
        shape = found.shape[1:] if "t" in found.axes else found.shape
        self.array, self.known = np.zeros(shape, found.dtype), np.zeros(shape[-3], bool)  # pages are taken when written
        self.key = (levels, t)

    def fill(self, wanted: slice, deadline: float) -> None:
        """Decode what is missing among slices `wanted`, a few together, until the deadline; at least once."""
        assert self.key is not None
        levels, t = self.key
        found = self.decoded[levels]
        for start in range(wanted.start // STEP * STEP, wanted.stop, STEP):
            part = slice(start, min(start + STEP, len(self.known)))
            if self.known[max(start, wanted.start) : min(part.stop, wanted.stop)].all():
                continue
            self.array[..., part, :, :] = found[t, ..., part, :, :] if "t" in found.axes else found[..., part, :, :]
            self.known[part] = True
            if time.monotonic() > deadline:
                return


def draw(series: Series, wanted: Wanted) -> Picture:
    """One picture. The difference is decoded minus original, blue below and red above, dark where they agree."""
    if wanted.tier == "difference":
        decoded, missing = series.values(wanted, "codes")
        original, _ = series.values(wanted, "volume")
        error = decoded - original
        error = error.mean(axis=-1) if error.ndim == 3 else error
        reach = wanted.width / (2 * wanted.gain)
        return Picture(_png(_diverging(error / reach), np.isnan(error)), -reach, reach, missing)
    values, missing = series.values(wanted, wanted.tier)
    low, high = wanted.centre - wanted.width / 2, wanted.centre + wanted.width / 2
    shares = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    if series.attributes["photometric"] == "MONOCHROME1":  # (0028,0004): its least value is shown white
        shares = 1 - shares
    unknown = np.isnan(values).any(axis=-1) if values.ndim == 3 else np.isnan(values)
    return Picture(_png(np.rint(shares * 255).astype(np.uint8), unknown), low, high, missing)


def _diverging(shares: np.ndarray) -> np.ndarray:
    """-1 to 1 as blue over dark to red, uint8 [rows, columns, 3]; beside a dark page white would glare."""
    x = np.clip(np.nan_to_num(shares), -1, 1)[..., None]
    red, blue, dark = np.array([255, 104, 84]), np.array([92, 160, 255]), np.array([20, 20, 22])
    ends = np.where(x > 0, red, blue)
    return np.rint(dark + (ends - dark) * np.abs(x)).astype(np.uint8)


def _png(pixels: np.ndarray, unknown: np.ndarray) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    pixels[unknown] = UNKNOWN
    drawn = io.BytesIO()
    Image.fromarray(pixels[..., :3] if pixels.ndim == 3 else pixels).save(drawn, "PNG", compress_level=1)
    return drawn.getvalue()

"""Slices of one series in anatomical planes, of the volume and of its codes, as values in the series' units."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from archive.codes import StoredCodes
from archive.errors import StoreError
from archive.planes import planes_of
from archive.volume import rescaled
from archive.volumes import StoredVolume
from archive.workspace import Workspace
from flows.tiers import Held, Region, Tier
from model.intensity import percentiles

TIERS = ("volume", "codes")
BOUNDED = "bounded"
PATIENCE_S = 0.4  # a request reads for so long and gives what there is; the page asks again
HU_WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (40, 400),
    "lung": (-600, 1500),
    "bone": (480, 2500),
    "brain": (40, 80),
}


@dataclass(frozen=True)
class Wanted:
    """One plane of one tier. levels: of the codes the first so many, BOUNDED for the layer that bounds the error, None
    for what a reader is given: that layer where there is one, else all levels."""

    tier: str
    plane: str
    index: int
    t: int = 0
    levels: int | str | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str], series: Series) -> Wanted:
        """From the query of a URL. Raises KeyError, ValueError for what is missing or out of range."""
        said = query.get("levels", "")
        levels = said if said == BOUNDED else int(said) if said else None
        wanted = cls(query["tier"], query["plane"], int(query["index"]), int(query.get("t", "0")), levels)
        plane = series.planes[wanted.plane]
        fits = (
            wanted.tier in TIERS[: 2 if series.levels else 1]
            and 0 <= wanted.index < series.geometry.shape[plane.axis]
            and 0 <= wanted.t < series.timepoints
            and (levels is None or (series.bounded if isinstance(levels, str) else 1 <= levels <= series.levels))
        )
        if not fits:
            raise ValueError("no such slice")
        return wanted


@dataclass(frozen=True)
class Picture:
    """A plane: values [rows, columns, (c)] in units; uint8 as stored, or float32, NaN where nothing is read yet.

    share: of its voxels that are there, 0 to 1.
    """

    values: np.ndarray
    share: float


class Series:
    """One series of a workspace, read where it is looked at; safe to use from several threads.

    What was read of a time point is kept, once for the volume and once for the codes at one level count: each the size
    of the time point at most.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.row = workspace.catalog.one(name)
        self.name = self.row.series
        self._codes = self._stored_codes()
        # Codes of an earlier version of the source have another grid, perhaps, and nothing to be compared with.
        self.outdated = self._codes is not None and self._codes.attributes["source_version"] != self.row.volume_version
        self._show(StoredVolume(self._folder(workspace.volumes, self.row.volume_version)))
        certificates = workspace.catalog.certificates(series=self.name) if self.levels else []
        self.certificate = certificates[0] if certificates else None

    def _show(self, volume: StoredVolume) -> None:
        self.volume = volume
        self.attributes, self.geometry = volume.attributes, volume.geometry
        self.planes = planes_of(self.geometry)
        shown = None if self._codes is None or self.outdated else self._codes
        self.levels = 0 if shown is None else shown.levels
        self.bounded = shown is not None and shown.bounded is not None
        self._held: dict[str, tuple[Any, Held]] = {}
        self._decoded: dict[int, Tier] = {}
        self._opening = {tier: threading.Lock() for tier in TIERS}

    def _folder(self, root: Any, version: str) -> Any:
        folder = root / self.name / version
        if not folder.is_dir():
            raise StoreError("MISSING", "the catalog names a version that is not in the store", series=self.name)
        return folder

    def _stored_codes(self) -> StoredCodes | None:
        version = self.row.codes_version
        return None if version is None else StoredCodes(self._folder(self.workspace.codes, version))

    @property
    def timepoints(self) -> int:
        """Length of t; 1 without it."""
        return self.volume.timepoints

    @property
    def identity(self) -> bool:
        """Whether stored values are the values, as bytes."""
        return (
            self.volume.dtype == np.uint8
            and self.attributes["slope"] == [1.0]
            and self.attributes["intercept"] == [0.0]
        )

    def look(self, wanted: Wanted) -> Picture:
        """One plane, or what of it can be read within PATIENCE_S. Raises StoreError, MismatchError."""
        plane = self.planes[wanted.plane]
        z, y, x = (slice(0, size) for size in self.geometry.shape)
        region: Region = (z, y, x)
        at = slice(wanted.index, wanted.index + 1)
        region = (at if plane.axis == 0 else z, at if plane.axis == 1 else y, at if plane.axis == 2 else x)
        stored, known, share = self._hold(wanted).look(region, PATIENCE_S)
        if self.identity and share == 1.0:
            return Picture(plane.lay(stored), share)
        first = wanted.t * self.geometry.shape[0] + region[0].start
        block = rescaled(stored, self.attributes["slope"], self.attributes["intercept"], first)
        block[~known] = np.nan
        return Picture(plane.lay(block), share)

    def warm(self) -> None:
        """Load the network before the first slice asks for it; what fails is told when a slice fails."""
        try:
            if self.levels:
                with self._opening["codes"]:
                    self._network(self.levels)
        except Exception:
            return

    def _hold(self, wanted: Wanted) -> Held:
        """What is kept of the tier; another time point or level count takes its place."""
        levels = None if wanted.tier == "volume" else wanted.levels or (BOUNDED if self.bounded else self.levels)
        key = (levels, wanted.t)
        with self._opening[wanted.tier]:
            found = self._held.get(wanted.tier)
            if found is None or found[0] != key:
                self._held.pop(wanted.tier, None)
                found = self._held[wanted.tier] = (key, Held(self._tier(wanted.tier, levels), wanted.t))
            return found[1]

    def _tier(self, tier: str, levels: int | str | None) -> Tier:
        if tier == "volume":
            return Tier.of_volume(self.volume)
        if not isinstance(levels, int):
            assert self._codes is not None and self._codes.bounded is not None
            return Tier.of_bounded(self._codes.bounded)
        return self._network(levels)

    def _network(self, levels: int) -> Tier:
        if levels not in self._decoded:
            from model.bundle import load  # torch takes seconds to import
            from model.decoded import DecodedVolume

            assert self._codes is not None
            name = self._codes.attributes["model"]
            device = self.workspace.settings.encode.device
            model = load(self.workspace.models / name, model=name, device=device)
            self._decoded[levels] = Tier.of_decoded(DecodedVolume(model, self._codes, levels))
        return self._decoded[levels]

    @cached_property
    def windows(self) -> list[dict[str, Any]]:
        """Presets: of CT as radiologists set them; of PET inverse grey from 0; else percentiles, or the 8 bits."""
        found: dict[str, tuple[float, float]] = {}
        if self.volume.units == "HU":
            found |= HU_WINDOWS
        elif self.identity:
            found["0 to 255"] = (127.5, 255.0)
        elif self.row.modality == "PT":
            if self.volume.units == "SUVbw":
                found["SUV 0 to 10"], found["SUV 0 to 5"] = (5.0, 10.0), (2.5, 5.0)
            high = max(percentiles(self.volume, (0.1, 99.9))[1], 1e-6)
            found["0 to 99.9 %"], found["0 to a third"] = (high / 2, high), (high / 6, high / 3)
        else:
            for name, percent in (("1 to 99 %", (1, 99)), ("0.1 to 99.9 %", (0.1, 99.9))):
                low, high = percentiles(self.volume, percent)
                found[name] = ((low + high) / 2, high - low)
        return [{"name": name, "centre": centre, "width": width} for name, (centre, width) in found.items()]

    def about(self) -> dict[str, Any]:
        """What the page says and asks for: pseudonym, numbers and enums only."""
        shape, spacing = self.geometry.shape, self.geometry.spacing_mm
        layer = self._codes.bounded if self._codes is not None and self.bounded else None
        return {
            "series": self.name,
            "modality": self.row.modality,
            "group": self.row.group,
            "state": self.row.state,
            "reason": self.row.reason,
            "axes": self.volume.axes,
            "shape": list(self.volume.shape),
            "dtype": self.volume.dtype.name,
            "units": self.volume.units,
            "spacing_mm": list(spacing),
            "grid": list(shape),
            "affine": self.geometry.matrix.tolist(),
            "placed": self.row.modality != "PICTURE",
            "oblique": bool((np.abs(self.geometry.matrix[:3, :3] / spacing).max(axis=0) < 0.995).any()),
            "timepoints": self.timepoints,
            "frames": [dict(frame) for frame in self.attributes["frames"]],
            "levels": self.levels,
            "bound": None if layer is None else layer.max_error,
            "outdated": self.outdated,
            # MONOCHROME1 (0028,0004): its least value is shown white; PET is read so.
            "inverse": (self.attributes["photometric"] == "MONOCHROME1") != (self.row.modality == "PT"),
            "windows": self.windows,
            "planes": [
                {
                    "name": name,
                    "axis": plane.axis,
                    "rows": plane.rows,
                    "columns": plane.columns,
                    "flip_rows": plane.flip_rows,
                    "flip_columns": plane.flip_columns,
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

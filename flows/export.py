"""Give a series back: NIfTI, DICOM, OME-Zarr or a picture, from the codes or from the lossless volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archive import region as regions
from archive.arrays import read_region
from archive.catalog_schema import SeriesRow
from archive.codes import StoredCodes
from archive.derived import Derivation, SeriesIdentity
from archive.dicom_write import write_series
from archive.errors import ConfigError, StoreError
from archive.sliced import Sliced
from archive.volume import Volume
from archive.volumes import StoredVolume
from archive.workspace import Workspace

Tier = Literal["auto", "codes", "volume"]
DISCLAIMER = "not for diagnostic use"
SUFFIXES = (".nii.gz", ".nii", ".ome.zarr", ".zarr", ".png")


@dataclass(frozen=True)
class Exported:
    """What was written: from which tier and version, by which model (none for the volume tier).

    roi: z0:z1,y0:y1,x0:x1 of the source's grid, none for all of it. lossless: every voxel is the stored volume's.
    """

    series: str
    tier: str
    version: str
    model: str | None
    levels: int | None
    roi: str | None
    lossless: bool
    shape: tuple[int, ...]
    dtype: str
    units: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `voxbook decode`."""
        return {**self.__dict__, "shape": list(self.shape)}


@dataclass(frozen=True)
class Opened:
    """A series as it will be given back; nothing of its voxels is read yet.

    source: StoredVolume, or a model.decoded.DecodedVolume. derived: what DICOM says of how it came about.
    """

    row: SeriesRow
    version: str
    source: Any
    derived: Derivation
    levels: int | None = None

    @property
    def model(self) -> str | None:
        """Id of the model that decodes it; None for the volume tier."""
        return self.derived.model or None

    def sliced(self, roi: str | None) -> Sliced:
        """All of it, or a region; what is written of it is read and decoded then. Raises ConfigError BAD_USAGE."""
        region = regions.parse(roi, self.source.shape) if roi else regions.whole(self.source.shape)
        attributes = regions.cropped(self.source.attributes, region)
        shape = tuple(attributes["shape"])
        nothing = np.broadcast_to(np.zeros((), self.source.dtype), shape)
        depth, z0 = shape[-3], region[0].start

        def slab(start: int, stop: int) -> np.ndarray:
            t, z = divmod(start, depth)
            named = dict(zip("zyx", (slice(z0 + z, z0 + z + stop - start), *region[1:]), strict=True))
            named |= {"t": slice(t, t + 1), "c": slice(0, None)}
            return self._block(tuple(named[axis] for axis in self.source.axes))

        return Sliced(Volume.from_attributes(nothing, attributes), slab, self._together, z0 % self._together)

    @property
    def _together(self) -> int:
        stored = self.source
        return stored.array.chunks[-3] if isinstance(stored, StoredVolume) else stored.together

    def _block(self, place: tuple[slice, ...]) -> np.ndarray:
        """Stored values of one time point [n, (c), y, x]."""
        if isinstance(self.source, StoredVolume):
            place = tuple(slice(*part.indices(size)[:2]) for part, size in zip(place, self.source.shape, strict=True))
            block = read_region(self.source.array, self.source.folder / "0", place)
        else:
            block = self.source[place]
        block = block[0] if "t" in self.source.axes else block
        return np.moveaxis(block, 1, 0) if "c" in self.source.axes else block

    def about(self, roi: str | None) -> dict[str, Any]:
        """What a file further says of itself: pseudonyms and figures only."""
        return {
            "series": self.row.series,
            "tier": self.derived.tier,
            "version": self.version,
            "model": self.model,
            "levels": self.levels,
            "roi": roi,
            "ratio": self.derived.ratio,
            "lossless": self.derived.lossless,
            "note": DISCLAIMER,
        }


def export(
    workspace: Workspace,
    series: str,
    out: Path,
    tier: Tier = "auto",
    levels: int | None = None,
    roi: str | None = None,
) -> Exported:
    """Write one series to `out`; the suffix chooses the format, none means a DICOM folder.

    tier auto: the codes where they passed their gate, else the volume. levels: only the first so many of the codes.
    roi: `z0:z1,y0:y1,x0:x1` in voxels. Raises ConfigError OCCUPIED where `out` exists, BAD_USAGE; StoreError
    NOT_FOUND, DAMAGED.
    """
    row = workspace.catalog.one(series)
    if out.exists():
        raise ConfigError("OCCUPIED", f"{out} exists already", hint="choose another name, or remove it first")
    if not out.absolute().parent.is_dir():
        raise ConfigError("BAD_USAGE", f"there is no folder {out.parent}", hint="make it first")
    if "." in out.name and not out.name.lower().endswith(SUFFIXES):
        raise ConfigError("BAD_USAGE", f"no format is known for {out.suffix!r}", hint=_FORMATS)
    opened = opened_series(workspace, row, tier, levels)
    volume = opened.sliced(roi)
    write(volume, out, opened, roi)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.is_dir() else out.stat().st_size
    return Exported(
        series=row.series,
        tier=opened.derived.tier,
        version=opened.version,
        model=opened.model,
        levels=levels,
        roi=roi,
        lossless=opened.derived.lossless,
        shape=tuple(volume.header.voxels.shape),
        dtype=volume.header.voxels.dtype.name,
        units=volume.header.units,
        bytes=size,
    )


_FORMATS = ".nii.gz, .nii, .ome.zarr, .png, or a name without a suffix for a DICOM folder"


def opened_series(workspace: Workspace, row: SeriesRow, tier: Tier = "auto", levels: int | None = None) -> Opened:
    """What a reader gets of a series. Raises ConfigError BAD_USAGE; StoreError NOT_FOUND, MISSING, DAMAGED."""
    use = choose_tier(row, tier)
    if use == "volume":
        if levels is not None:
            raise ConfigError("BAD_USAGE", "--levels is for codes; the volume tier has none", hint="--tier codes")
        version = row.volume_version or ""
        derived = Derivation("volume", source=f"{row.series}/{version}")
        return Opened(row, version, StoredVolume(workspace.volumes / row.series / version), derived)
    from model.bundle import load
    from model.decoded import DecodedVolume

    version = row.codes_version or ""
    stored = StoredCodes(workspace.codes / row.series / version)
    if levels is not None and levels > stored.levels:
        raise ConfigError("BAD_USAGE", f"these codes have {stored.levels} levels, not {levels}")
    model = stored.attributes["model"]
    bound = stored.bounded.max_error if levels is None and stored.bounded is not None else None
    source = f"{row.series}/{stored.attributes['source_version']}"
    # The certificate's ratio is that of all levels.
    ratio = _ratio(workspace, row.series, version) if levels in (None, stored.levels) else None
    derived = Derivation("codes", model, ratio, bound, source)
    return Opened(row, version, DecodedVolume(load(workspace.models / model, model), stored, levels), derived, levels)


def choose_tier(row: SeriesRow, tier: Tier) -> Literal["codes", "volume"]:
    """Which tier a reader gets; raises StoreError NO_MODEL or NOT_FOUND where the one asked for is not there."""
    if tier == "auto":
        tier = "codes" if row.codes_version and row.state == "encoded" else "volume"
    if tier == "codes" and not row.codes_version:
        raise StoreError("NOT_FOUND", "this series has no codes", hint="voxbook encode, or --tier volume")
    if tier == "volume" and not row.volume_version:
        raise StoreError("NOT_FOUND", "this series has no stored volume", hint="voxbook ingest")
    return tier


def write(volume: Sliced, out: Path, opened: Opened, roi: str | None = None) -> None:
    """Write a volume, slab by slab, in the format that the name of `out` asks for; never a half-written target."""
    name, about = out.name.lower(), opened.about(roi)
    if name.endswith((".nii", ".nii.gz")):
        from archive.nifti import write_nifti

        write_nifti(volume, out, _description(opened))
    elif name.endswith(".zarr"):
        from archive.ome_zarr import write_ome_zarr
        from flows.preview import window_of

        write_ome_zarr(volume, out, about, window_of(volume))
    elif name.endswith(".png"):
        from flows.preview import write_png

        write_png(volume, out, about)
    else:
        part = f"{opened.version}/{roi}/{opened.levels}" if roi or opened.levels else opened.version
        identity = SeriesIdentity.pseudonymous(opened.row.patient, opened.row.series, part)
        write_series(volume, out, identity, opened.derived)


def _description(opened: Opened) -> str:
    """At most 79 characters for NIfTI's `descrip`: tier, model, ratio, and what it is not for."""
    if opened.model is None:
        return "voxbook volume, lossless"
    ratio = opened.derived.ratio
    kind = "lossless" if opened.derived.lossless else f"ratio {ratio:.3g}" if ratio else ""
    kind = kind or (f"levels 1 to {opened.levels}" if opened.levels else "lossy")
    return f"voxbook codes {opened.model[:12]}, {kind}, {DISCLAIMER}"


def _ratio(workspace: Workspace, series: str, version: str) -> float | None:
    """The compression ratio that the certificate of these codes states."""
    rows = workspace.catalog.certificates(series=series, current_only=False)
    return next((row.data["ratio"] for row in rows if row.version == version), None)


def largest_difference(left: Volume, right: Volume) -> float:
    """Largest absolute difference of two volumes of one shape, in units; 0 for identical stored values."""
    if np.array_equal(left.voxels, right.voxels):
        return 0.0
    return float(np.abs(left.values() - right.values()).max())

"""Give a series back: NIfTI, a DICOM folder or Zarr, from the codes or from the lossless volume."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archive.catalog_schema import SeriesRow
from archive.codes import StoredCodes
from archive.dicom_write import Derivation, SeriesIdentity, write_series
from archive.errors import ConfigError, StoreError
from archive.volume import Volume
from archive.volumes import StoredVolume
from archive.workspace import Workspace

Tier = Literal["auto", "codes", "volume"]
DISCLAIMER = "not for diagnostic use"


@dataclass(frozen=True)
class Exported:
    """What was written: from which tier and version, by which model (none for the volume tier)."""

    series: str
    tier: str
    version: str
    model: str | None
    levels: int | None
    shape: tuple[int, ...]
    dtype: str
    units: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `voxbook decode`."""
        return {**self.__dict__, "shape": list(self.shape)}


def export(workspace: Workspace, series: str, out: Path, tier: Tier = "auto", levels: int | None = None) -> Exported:
    """Write one series to `out`; the suffix chooses the format, none means a DICOM folder.

    auto: the codes where they passed their gate, else the volume. Raises ConfigError OCCUPIED where `out` exists,
    StoreError NOT_FOUND, DAMAGED.
    """
    row = workspace.catalog.one(series)
    if out.exists():
        raise ConfigError("OCCUPIED", f"{out} exists already")
    if not out.absolute().parent.is_dir():
        raise ConfigError("BAD_USAGE", f"there is no folder {out.parent}", hint="make it first")
    use = choose_tier(row, tier)
    if levels is not None and use == "volume":
        raise ConfigError("BAD_USAGE", "--levels is for codes; the volume tier has none", hint="--tier codes")
    ratio = None
    if use == "volume":
        version = row.volume_version or ""
        volume, model = StoredVolume(workspace.volumes / row.series / version).read(), None
        description = "voxbook volume"
    else:
        from model.bundle import load
        from model.decode import decode_codes

        version = row.codes_version or ""
        codes = StoredCodes(workspace.codes / row.series / version).read()
        if levels is not None and levels > codes.levels:
            raise ConfigError("BAD_USAGE", f"these codes have {codes.levels} levels, not {levels}")
        model, ratio = codes.model, _ratio(workspace, version)
        volume = decode_codes(load(workspace.models / model, model), codes, levels=levels)
        description = f"voxbook codes {model[:12]}, {DISCLAIMER}"
    write(volume, out, row, version, Derivation("codes", model, ratio) if model else Derivation("volume"), description)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.is_dir() else out.stat().st_size
    return Exported(
        series=row.series,
        tier=use,
        version=version,
        model=model,
        levels=levels,
        shape=tuple(volume.voxels.shape),
        dtype=volume.voxels.dtype.name,
        units=volume.units,
        bytes=size,
    )


def choose_tier(row: SeriesRow, tier: Tier) -> Literal["codes", "volume"]:
    """Which tier a reader gets; raises StoreError NO_MODEL or NOT_FOUND where the one asked for is not there."""
    if tier == "auto":
        tier = "codes" if row.codes_version and row.state == "encoded" else "volume"
    if tier == "codes" and not row.codes_version:
        raise StoreError("NOT_FOUND", "this series has no codes", hint="voxbook encode, or --tier volume")
    if tier == "volume" and not row.volume_version:
        raise StoreError("NOT_FOUND", "this series has no stored volume", hint="voxbook ingest")
    return tier


def write(volume: Volume, out: Path, row: SeriesRow, version: str, derived: Derivation, description: str) -> None:
    """Write a volume in the format that the name of `out` asks for; never a half-written target."""
    name = out.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from archive.nifti import write_nifti

        write_nifti(volume, out, description)
    elif name.endswith(".zarr"):
        _write_zarr(volume, out)
    elif "." in name:
        raise ConfigError("BAD_USAGE", f"no format is known for {out.suffix!r}", hint=".nii.gz, .zarr, or a folder")
    else:
        write_series(volume, out, SeriesIdentity.pseudonymous(row.patient, row.series, version), derived)


def _write_zarr(volume: Volume, out: Path) -> None:
    from archive.volumes import write_folder

    stage = out.with_name(f".{out.name}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    write_folder(volume, stage)
    stage.rename(out)


def _ratio(workspace: Workspace, version: str) -> float | None:
    """The lossy ratio that the certificate of these codes states."""
    found = [row.data["ratio"] for row in workspace.catalog.certificates(current_only=False) if row.version == version]
    return found[0] if found else None


def largest_difference(left: Volume, right: Volume) -> float:
    """Largest absolute difference of two volumes of one shape, in units; 0 for identical stored values."""
    if np.array_equal(left.voxels, right.voxels):
        return 0.0
    return float(np.abs(left.values() - right.values()).max())

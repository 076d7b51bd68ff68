"""Small volumes, codes and commits that the store and catalog tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from archive import codes as code_store
from archive import volumes as volume_store
from archive.catalog import EncodingCommit, ModelRow, VolumeCommit
from archive.codes import Codes
from archive.geometry import Geometry
from archive.volume import Volume
from archive.workspace import Workspace

SERIES = "a" * 32
MODEL = "1" * 64
SETTINGS = "s" * 16


def volume(shape: tuple[int, ...] = (5, 24, 20), axes: str = "zyx", dtype: str = "int16", seed: int = 0) -> Volume:
    """A volume of noise in native byte order."""
    values = np.random.default_rng(seed).integers(0, 100, shape)
    return Volume(values.astype(dtype), axes, Geometry.pixels(shape[-3:], (2.5, 0.7, 0.7)), "CT", units="HU")


def codes(source: Volume, version: str = "v", model: str = MODEL, seed: int = 0, levels: int = 2) -> Codes:
    """Codes as a model with a codebook of 64 might give; not made from the volume."""
    depth, rows, columns = (-(-size // 4) for size in source.geometry.shape)
    array = np.random.default_rng(seed).integers(0, 64, (levels, depth, rows, columns)).astype(np.uint16)
    return Codes(array, model, levels, 64, (4, 4, 4), source.attributes(), version, "d" * 64, (3, 0, 0), {"kind": "hu"})


def volume_commit(root: Path, item: Volume, series: str = SERIES, source: str = "src", fingerprint: str = "f1"):
    """Write a volume and return what the catalog takes."""
    return VolumeCommit.of(
        item,
        volume_store.write(item, root, series),
        series=series,
        patient="p" * 32,
        group="ct",
        source=source,
        fingerprint=fingerprint,
        content_digest=volume_store.content_digest(item),
        source_bytes=item.voxels.nbytes,
    )


def encoding_commit(
    root: Path, item: Codes, series: str = SERIES, passed: bool = True, settings: str = SETTINGS, bounded=None
):
    """Write codes and return what the catalog takes. bounded: the source (model.source) of an exact layer beside."""
    return EncodingCommit(
        series=series,
        source_version=item.source_version,
        model=item.model,
        settings_digest=settings,
        profile="exact",
        committed=code_store.write(item, root, series, bounded, None if bounded is None else 0.0),
        psnr=40.0,
        ssim=0.9,
        passed=passed,
        certificate={"psnr": 40.0, "max_error": float("inf")},
        reason="" if passed else "BELOW_MIN_PSNR",
    )


def encoded_workspace(root: Path, series: str = SERIES, database: str | None = None) -> Workspace:
    """A workspace with one series, ingested and encoded."""
    workspace = Workspace.open(root, create=True)
    if database is not None:
        (root / "voxbook.toml").write_text(f'database = "{database}"\n')
        workspace = Workspace.open(root)
    item = volume()
    version = workspace.catalog.commit_volumes([volume_commit(workspace.volumes, item, series)])[0].version
    workspace.catalog.add_model(ModelRow(MODEL, "ct", "tiny"))
    workspace.catalog.commit_encodings([encoding_commit(workspace.codes, codes(item, version), series)])
    return workspace

"""An archive of many small series, made without DICOM, and the same work on it without an archive."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from archive import volumes as volume_store
from archive.catalog import ModelRow, VolumeCommit
from archive.geometry import Geometry
from archive.settings_file import FILENAME
from archive.volume import Volume
from archive.workspace import Workspace

SHAPE = (8, 32, 32)
GROUP = "ct"
AT_ONCE = 1000
DISTINCT = 1000  # volumes; further series hold copies of these, bytes and all


def volume(number: int) -> Volume:
    """The volume of that number: a slope and noise, int16 HU."""
    noise = np.random.default_rng(number).normal(0, 20, SHAPE)
    values = noise + np.linspace(-400, 400, SHAPE[1])[:, None] + 50 * np.arange(SHAPE[0])[:, None, None]
    return Volume(values.astype(np.int16), "zyx", Geometry.pixels(SHAPE, (2.5, 0.7, 0.7)), "CT", units="HU")


def name_of(number: int) -> str:
    """A series' pseudonym: spread like real ones, so that databases and folders are filled as by real ones."""
    return hashlib.sha256(f"scale {number}".encode()).hexdigest()[:32]


def fill(root: Path, series: int, workers: int, database: str | None = None) -> None:
    """A workspace of that many series, and an untrained model with its codebooks started. Nothing is synced to disk."""
    import torch

    from model.bundle import save
    from model.config import resolve
    from model.vqvae import VQVAE

    workspace = Workspace.open(root, create=True)
    if database:
        (root / FILENAME).write_text(f'database = "{database}"\n')
        workspace = Workspace.open(root)
    torch.manual_seed(0)
    model = VQVAE(resolve("tiny", channels=1, intensity="hu"))
    model.quantizer.start(torch.randn(200, model.config.code_dim))
    model_id = save(model.eval(), model.config, workspace.models, {})
    workspace.catalog.add_model(ModelRow(model_id, GROUP, "tiny"))
    distinct = min(series, DISTINCT)
    each = -(-distinct // workers)
    parts = [range(at, min(distinct, at + each)) for at in range(0, distinct, each)]
    with multiprocessing.get_context("spawn").Pool(workers, _no_sync) as pool:
        found = pool.map(partial(_store, folder=workspace.volumes), parts)
    first = [commit for part in found for commit in part]
    workspace.catalog.commit_volumes(first)
    for at in range(distinct, series, AT_ONCE):
        numbers = range(at, min(series, at + AT_ONCE))
        workspace.catalog.commit_volumes([_copy(first[n % distinct], n, workspace.volumes) for n in numbers])
    workspace.close()


def _no_sync() -> None:
    os.fsync = lambda descriptor: None  # nobody misses this archive after a power cut


def _store(numbers: Sequence[int], folder: Path) -> list[VolumeCommit]:
    commits = []
    for number in numbers:
        item, name = volume(number), name_of(number)
        commits.append(
            VolumeCommit.of(
                item,
                volume_store.write(item, folder, name),
                series=name,
                patient=name_of(-number),
                group=GROUP,
                source="scale",
                fingerprint=name_of(number),
                content_digest=volume_store.content_digest(item),
                source_bytes=item.voxels.nbytes,
            )
        )
    return commits


def _copy(commit: VolumeCommit, number: int, folder: Path) -> VolumeCommit:
    """The same volume under another series."""
    assert commit.committed is not None  # it was just written
    name, version = name_of(number), secrets.token_hex(8)
    shutil.copytree(folder / commit.series / commit.committed.version, folder / name / version)
    stored = replace(commit.committed, series=name, version=version)
    return replace(commit, series=name, patient=name_of(-number), fingerprint=name, committed=stored)


def pure(numbers: Sequence[int], *, root: Path) -> float:
    """Seconds to encode and certify these volumes in memory, by what `encode` itself uses; in a worker."""
    import torch

    from model.bundle import load
    from model.certificate import certify
    from model.decoded import DecodedVolume
    from model.encode import Request, encode_volumes

    torch.set_num_threads(1)
    (folder,) = (path for path in (root / "models").iterdir() if len(path.name) == 64)
    model = load(folder, folder.name)
    made = [volume(number) for number in numbers]
    began = time.monotonic()
    requests = (Request(number, partial(_itself, item)) for number, item in enumerate(made))
    for found in encode_volumes(model, requests, model_id=folder.name):
        if found.codes is None:
            raise RuntimeError("a volume in memory was not encoded") from found.error
        certify(found.volume, DecodedVolume(model, found.codes), found.codes, 1000).as_dict()
    return time.monotonic() - began


def _itself(item: Volume) -> Volume:
    return item


def count_files(root: Path) -> dict[str, Any]:
    """Files, folders and bytes per series in both stores; bytes as they lie on disk, in blocks, too."""
    files, folders, size, blocks, series = 0, 0, 0, 0, 0
    for store in ("volumes.zarr", "codes.zarr"):
        names = sorted(path for path in (root / store).iterdir() if not path.name.startswith("."))[:2000]
        series = max(series, len(names))
        for name in names:
            for here, _, inner in os.walk(name):
                folders += 1
                for file in inner:
                    found = (Path(here) / file).stat()
                    files, size, blocks = files + 1, size + found.st_size, blocks + 512 * found.st_blocks
    return {
        "files_per_series": files / series,
        "folders_per_series": folders / series,
        "bytes_per_series": size / series,
        "disk_bytes_per_series": blocks / series,
    }


def database_bytes(root: Path, database: str | None) -> int:
    """The catalog's size, its log written back first."""
    workspace = Workspace.open(root)
    try:
        with workspace.catalog.engine.connect() as connection:
            if database:
                return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
            connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.exec_driver_sql("BEGIN")
    finally:
        workspace.close()
    return (root / "catalog.sqlite").stat().st_size

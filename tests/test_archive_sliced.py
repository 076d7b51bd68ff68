"""archive/sliced.py: slices in order, cut where reading costs least; writers make of them what they make of the whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from archive import ome_zarr, sliced
from archive.derived import SeriesIdentity
from archive.dicom_write import write_series
from archive.geometry import Geometry
from archive.nifti import write_nifti
from archive.ome_zarr import write_ome_zarr
from archive.sliced import Sliced
from archive.volume import Volume
from flows.preview import write_png

IDENTITY = SeriesIdentity.fictional(1, "sliced")


def noisy(shape: tuple[int, ...], axes: str = "zyx", dtype: type = np.int16, **about) -> Volume:
    top = 255 if dtype == np.uint8 else 3000
    voxels = np.random.default_rng(len(shape)).integers(0, top, shape).astype(dtype)
    return Volume(voxels, axes, Geometry.pixels(shape[-3:]), about.pop("modality", "MR"), **about)


def volumes() -> dict[str, Volume]:
    deep = noisy((21, 40, 48))
    return {
        "grey": deep,
        "CT whose values need int32 in the end": replace(
            deep, modality="CT", units="HU", slope=(11.0,), intercept=(-1024.0,), bits_stored=12
        ),
        "CT that leaves the bits of its source late": replace(
            deep, voxels=np.where(np.arange(21)[:, None, None] < 20, deep.voxels, deep.voxels * 8), bits_stored=12
        ),
        "a slope for each slice": phantoms.pet_volume(),
        "time": noisy((3, 9, 40, 44), "tzyx", frames=({"time_s": 0.0}, {"time_s": 2.0}, {"time_s": 4.0})),
        "colour": noisy((3, 5, 40, 36), "czyx", np.uint8, units="rgb", photometric="RGB"),
        "colour over time": noisy((2, 3, 5, 40, 36), "tczyx", np.uint8, units="rgb", photometric="RGB"),
    }


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", list(volumes()))
def test_every_format_is_the_same_whatever_is_read_at_once(name, tmp_path, monkeypatch):
    volume, made = volumes()[name], []
    one = volume.voxels.dtype.itemsize * volume.channels * volume.geometry.shape[1] * volume.geometry.shape[2]
    for number, (budget, together, before) in enumerate(((2**40, 1, 0), (one, 1, 0), (one * 4, 2, 1), (1, 5, 3))):
        monkeypatch.setattr(sliced, "SLAB_BYTES", budget)
        monkeypatch.setattr(ome_zarr, "SLAB_BYTES", budget)
        out = tmp_path / str(number)
        out.mkdir()
        source = replace(Sliced.of(volume), together=together, before=before)
        write_nifti(source, out / "a.nii.gz", "x")
        write_ome_zarr(source, out / "a.ome.zarr", {}, (0.0, 1.0))
        write_png(source, out / "a.png", {})
        if name != "colour over time":
            write_series(source, out / "dicom", IDENTITY)
        made.append(digests(out))
    assert all(each == made[0] for each in made[1:]) and len(made[0]) >= 5


@pytest.mark.parametrize(("together", "before"), [(1, 0), (4, 0), (4, 3), (16, 5)])
def test_slabs_are_everything_once_and_cut_where_reading_costs_least(together, before):
    volume = noisy((2, 11, 8, 8), "tzyx")
    source = replace(Sliced.of(volume), together=together, before=before)
    slabs = list(source.slabs(3 * 8 * 8 * 2))
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in slabs]), volume.voxels.reshape(-1, 8, 8))
    assert [first for first, _ in slabs] == np.cumsum([0, *(len(slab) for _, slab in slabs[:-1])]).tolist()
    ends = [first % 11 + len(slab) for first, slab in slabs]
    assert all(end == 11 or (end + before) % together == 0 for end in ends)
    assert max(len(slab) for _, slab in slabs) <= max(3, together)


@pytest.mark.parametrize("format", ["a.nii", "dicom", "a.ome.zarr", "a.png"])
def test_no_writer_asks_for_more_of_a_longer_series(format, tmp_path, monkeypatch):
    """What is asked for at once bounds the memory: with today's budget it must not follow the series' length."""
    budget = 6 * 64 * 64 * 2
    monkeypatch.setattr(sliced, "SLAB_BYTES", budget)
    asked: list[int] = []

    def slab(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return np.full((stop - start, 64, 64), start, np.int16)

    nothing = np.broadcast_to(np.zeros((), np.int16), (100, 64, 64))
    source = Sliced(Volume(nothing, "zyx", Geometry.pixels((100, 64, 64)), "MR"), slab)
    write = {
        "a.nii": lambda path: write_nifti(source, path),
        "dicom": lambda path: write_series(source, path, IDENTITY),
        "a.ome.zarr": lambda path: write_ome_zarr(source, path, {}, (0.0, 1.0)),
        "a.png": lambda path: write_png(source, path, {}),
    }
    write[format](tmp_path / format)
    assert max(asked) <= 6 and sum(asked) >= 100

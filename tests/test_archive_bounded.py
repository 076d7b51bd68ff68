"""The bounded layer: no voxel is off by more than was promised, whatever the volume; damage shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive import bounded
from archive.bounded import Bounded
from archive.errors import InputError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume
from model.source import as_source

CASES = [
    ("zyx", (3, 24, 31), "int16"),
    ("zyx", (70, 5, 4), "uint16"),
    ("zyx", (1, 1, 1), "uint8"),
    ("zyx", (2, 9, 1), "int8"),
    ("zyx", (2, 16, 16), "int32"),
    ("tzyx", (3, 2, 12, 10), "int16"),
    ("czyx", (3, 2, 20, 18), "uint8"),
    ("tczyx", (2, 3, 2, 8, 9), "uint8"),
]


def volume(axes: str, shape: tuple[int, ...], dtype: str, seed: int = 0, **about) -> Volume:
    generator = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    # Smooth with noise, and the dtype's own ends: a reconstruction beyond them must not wrap around.
    low, high = (limits.min, limits.max) if np.dtype(dtype).itemsize < 4 else (-2000, 60000)
    ramp = np.linspace(low, high, int(np.prod(shape))).reshape(shape)
    voxels = np.clip(ramp + generator.normal(0, (high - low) / 50, shape), low, high).astype(dtype)
    return Volume(voxels, axes, Geometry.pixels(shape[-3:]), "MR", **about)


def stored(source: Volume, folder: Path, max_error: float) -> Bounded:
    folder.mkdir(parents=True, exist_ok=True)
    bounded.write(as_source(source), folder, max_error)
    return Bounded(folder, source.attributes(), max_error)


def read(layer: Bounded, source: Volume) -> np.ndarray:
    out = np.empty_like(source.voxels)
    z, y, x = (slice(0, size) for size in source.voxels.shape[-3:])
    for t in range(source.timepoints):
        layer.into(out[t] if source.axes.startswith("t") else out, t, (z, y, x))
    return out


@pytest.mark.parametrize(("axes", "shape", "dtype"), CASES)
@pytest.mark.parametrize("max_error", [0, 1, 5, 300, 1e9])
def test_every_kind_of_volume_keeps_its_bound(tmp_path: Path, axes: str, shape, dtype: str, max_error: float) -> None:
    source = volume(axes, shape, dtype)
    layer = stored(source, tmp_path, max_error)
    found = read(layer, source)
    off = np.abs(found.astype(np.int64) - source.voxels.astype(np.int64))
    assert off.max() <= max_error
    assert max_error or np.array_equal(found, source.voxels)
    assert layer.bytes == sum(path.stat().st_size for path in (tmp_path / "bounded").iterdir())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int16", "uint16", "uint8", "int8"]),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.7, 2.0, 5.0, 10.0, 400.0]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_the_bound_holds_in_units_as_float32(
    tmp_path_factory: pytest.TempPathFactory, dtype, depth, rows, columns, max_error, slopes, seed
) -> None:
    generator = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    shape = (depth, rows, columns)
    voxels = generator.integers(limits.min, limits.max, shape, endpoint=True, dtype=dtype)
    # PET: a slope of its own for every slice.
    about = {
        "slope": tuple(generator.uniform(0.001, 9, depth)) if slopes else (1.0,),
        "intercept": tuple(generator.uniform(-9, 9, depth)) if slopes else (-1024.0,),
    }
    source = Volume(voxels, "zyx", Geometry.pixels(shape), "PT", **about)
    layer = stored(source, tmp_path_factory.mktemp("b"), max_error)
    found = source.with_voxels(read(layer, source))
    assert np.abs(found.values().astype(np.float64) - source.values().astype(np.float64)).max() <= max_error


def test_what_cannot_be_bounded_is_refused(tmp_path: Path) -> None:
    wide = np.array([[[0, 2**17]]], np.int32)
    layer = stored(Volume(wide, "zyx", Geometry.pixels((1, 1, 2)), "NIFTI"), tmp_path / "coarse", 300)
    assert np.abs(layer.slab(0, 1) - wide).max() <= 300
    for voxels in (np.ones((1, 4, 4), np.float32), wide):
        source = Volume(voxels, "zyx", Geometry.pixels(voxels.shape), "NIFTI")
        folder = tmp_path / voxels.dtype.name
        with pytest.raises(InputError, match="NOT_BOUNDABLE"):
            stored(source, folder, 0)


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    source = volume("zyx", (2, 16, 16), "uint16")
    layer = stored(source, tmp_path, 3)
    path = tmp_path / "bounded" / "0"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:  # a bit that JPEG-LS does not look at may leave the values as they were
            assert np.array_equal(layer.slab(0, 2), stored_again(source, tmp_path / "again", 3)), at
        except StoreError as error:
            assert error.code in ("DAMAGED", "MISSING")
    path.unlink()
    with pytest.raises(StoreError, match="MISSING"):
        layer.slab(0, 1)


def stored_again(source: Volume, folder: Path, max_error: float) -> np.ndarray:
    if not folder.exists():
        stored(source, folder, max_error)
    return Bounded(folder, source.attributes(), max_error).slab(0, source.slices)

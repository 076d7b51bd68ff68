"""The code store: exact round trips, prefixes of levels, small metadata, damage that shows."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import store_samples
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from archive import codes as store
from archive import shards
from archive.codes import Codes, StoredCodes
from archive.errors import InputError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume

SERIES = store_samples.SERIES


def stored(codes: Codes, root: Path) -> StoredCodes:
    return StoredCodes(root / SERIES / store.write(codes, root, SERIES).version)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 4)),
    st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([2, 1024, 65535]),
    st.data(),
)
def test_what_is_written_is_read_with_any_prefix_of_levels(levels, times, grid, size, data):
    shape = (levels, *([times] if times else []), *grid)
    array = np.random.default_rng(0).integers(0, size, shape).astype(np.uint16)
    source = store_samples.volume().attributes()
    codes = Codes(array, "m" * 64, levels, size, (1, 8, 8), source, "v1", "d1", (0, 3, 4), {"low": -1024.5}, "fast")
    with tempfile.TemporaryDirectory() as folder:
        found = stored(codes, Path(folder))
        whole = found.read()
        np.testing.assert_array_equal(whole.array, array)
        for item in dataclasses.fields(Codes):
            if item.name != "array":
                assert getattr(whole, item.name) == getattr(codes, item.name), item.name
        first = found.read(levels=1)
        assert first.levels == 1
        np.testing.assert_array_equal(first.array, array[:1])
        z0 = data.draw(st.integers(0, grid[0] - 1))
        z1 = data.draw(st.integers(z0 + 1, grid[0]))
        np.testing.assert_array_equal(found.slab(z0, z1, levels=levels), array[..., z0:z1, :, :])
        if times:
            np.testing.assert_array_equal(found.slab(z0, z1, t=times - 1), array[:, times - 1, z0:z1])


def test_a_chunk_is_a_slab_of_all_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_CODES", 2 * 16 * 16 * 4)
    array = np.random.default_rng(0).integers(0, 64, (2, 3, 10, 16, 16)).astype(np.uint16)
    source = store_samples.volume()
    found = stored(dataclasses.replace(store_samples.codes(source), array=array), tmp_path)
    assert found.array.chunks == (2, 1, 4, 16, 16)
    assert found.array.shards == (2, 3, 12, 16, 16)
    assert found.array.metadata.dimension_names == ("level", "t", "z", "y", "x")
    np.testing.assert_array_equal(found.slab(3, 9), array[:, :, 3:9])


@pytest.mark.parametrize(
    "acquisition",
    [
        {},
        {"slice_thickness_mm": 3.0, "patient_position": "HFS", "manufacturer": "OTHER"},
        {"kvp": 120.0, "exposure_mas": 213.5, "slice_thickness_mm": 2.5, "gantry_tilt_deg": -12.5, "pitch": 0.9375,
         "kernel": "B70f", "patient_position": "HFS", "manufacturer": "SIEMENS", "scan_options": "HELICAL"},
    ],
    ids=len,
)  # fmt: skip
def test_beside_the_chunks_a_version_is_small(tmp_path, acquisition):
    affine = np.diag([2.4999999999999996, 0.9765620231628418, 0.9765620231628418, 1.0])
    affine[:3, :3] += np.random.default_rng(0).normal(size=(3, 3))
    affine[:3, 3] = [-249.51171875, -442.01171875, -1123.2999999999997]
    volume = Volume(
        np.zeros((64, 128, 128), np.int16),
        "zyx",
        Geometry((64, 128, 128), tuple(map(tuple, affine))),
        "CT",
        intercept=(-1024.0,),
        units="HU",
        bits_stored=12,
        acquisition=acquisition,
        flags=("LOSSY_SOURCE",) * bool(acquisition),
    )
    codes = dataclasses.replace(store_samples.codes(volume), source_version="0" * 16)
    found = stored(codes, tmp_path)
    assert (found.folder / "zarr.json").stat().st_size + len(hashlib.sha256().hexdigest()) <= 1500
    assert found.read().source == volume.attributes()


def test_a_slope_for_each_slice_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    volume = Volume(
        np.zeros((90, 16, 16), np.int16),
        "zyx",
        Geometry.pixels((90, 16, 16), (3.27, 5.46875, 5.46875)),
        "PT",
        slope=tuple(round(float(value), 5) for value in rng.uniform(0.1, 2, 90)),
        intercept=(0.0,) * 90,
        units="Bq/ml",
    )
    found = stored(dataclasses.replace(store_samples.codes(volume), source_version="0" * 16), tmp_path)
    assert (found.folder / "zarr.json").stat().st_size + len(hashlib.sha256().hexdigest()) <= 1500
    assert found.read().source == volume.attributes()


DAMAGE = {
    "flip": (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "DAMAGED"),
    "truncate": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "DAMAGED"),
    "empty": (lambda path: path.write_bytes(b""), "DAMAGED"),
    "delete": (Path.unlink, "MISSING"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["zarr.json", "c.0.0.0.0"])
def test_damage_is_a_store_error(tmp_path, kind, name):
    damage, code = DAMAGE[kind]
    found = stored(store_samples.codes(store_samples.volume()), tmp_path)
    damage(found.folder / name)
    with pytest.raises(StoreError) as caught:
        found.read()
    assert caught.value.code == code


def test_a_chunk_that_was_never_written_shows(tmp_path):
    found = stored(store_samples.codes(store_samples.volume()), tmp_path)
    assert found.array.fill_value == store.FILL
    shards.write_parts(tmp_path / "hole", [None])
    (tmp_path / "hole").replace(found.folder / "c.0.0.0.0")
    with pytest.raises(StoreError) as caught:
        found.read()
    assert caught.value.code == "MISSING"


def test_zarr_reads_the_same_codes_and_writes_no_illegal_one(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_CODES", 2 * 16 * 16 * 4)
    array = np.random.default_rng(0).integers(0, 64, (2, 3, 10, 16, 16)).astype(np.uint16)
    found = stored(dataclasses.replace(store_samples.codes(store_samples.volume()), array=array), tmp_path)
    plain = zarr.open_array(found.folder, mode="r+")
    np.testing.assert_array_equal(plain[:], array)
    plain[0, 1] = 7
    np.testing.assert_array_equal(plain[0, 1], np.full((10, 16, 16), 7))
    np.testing.assert_array_equal(plain[1], array[1])
    with pytest.raises(InputError):
        plain[0, 0, 0, 0, 0] = 64


def test_codes_of_another_format_are_named(tmp_path):
    found = stored(store_samples.codes(store_samples.volume()), tmp_path)
    path = found.folder / "zarr.json"
    path.write_text(path.read_text().replace('"format":3', '"format":2'))
    with pytest.raises(StoreError) as caught:
        found.read()
    assert caught.value.code == "SCHEMA"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"array": np.zeros((2, 2, 2, 2), np.int32)}, "UNSUPPORTED_PIXELS"),
        ({"array": np.zeros((2, 2, 2), np.uint16)}, "UNSUPPORTED_PIXELS"),
        ({"array": np.zeros((2, 0, 2, 2), np.uint16)}, "UNSUPPORTED_PIXELS"),
        ({"levels": 3}, "BAD_HEADER"),
        ({"codebook_size": 65536}, "BAD_HEADER"),
    ],
)
def test_impossible_codes_are_refused(change, code):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(store_samples.codes(store_samples.volume()), **change)
    assert caught.value.code == code


def test_a_code_outside_the_codebook_is_not_stored(tmp_path):
    codes = dataclasses.replace(store_samples.codes(store_samples.volume()), codebook_size=3)
    with pytest.raises(InputError):
        store.write(codes, tmp_path, SERIES)
    assert not list(tmp_path.iterdir())


def test_levels_and_slabs_outside_are_index_errors(tmp_path):
    found = stored(store_samples.codes(store_samples.volume()), tmp_path)
    for call in (lambda: found.read(levels=3), lambda: found.read(levels=0), lambda: found.slab(0, 99)):
        with pytest.raises(IndexError):
            call()
    assert pickle.loads(pickle.dumps(found)).levels == 2

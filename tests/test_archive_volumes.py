"""The volume store: exact round trips, slabs, damage that shows."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import store_samples
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from archive import arrays, volumes
from archive.errors import InputError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import StoredVolume

SERIES = store_samples.SERIES
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", ">i2", ">f4"]


def stored(volume: Volume, root: Path) -> StoredVolume:
    return StoredVolume(root / SERIES / volumes.write(volume, root, SERIES).version)


@st.composite
def any_volume(draw) -> Volume:
    axes = draw(st.sampled_from(["zyx", "tzyx", "czyx", "tczyx"]))
    shape = tuple(draw(st.integers(1, 3 if name in "tc" else 11)) for name in axes)
    dtype = draw(st.sampled_from(DTYPES))
    voxels = draw(hnp.arrays(np.dtype(dtype), shape, fill=st.nothing() if draw(st.booleans()) else None))
    slices = shape[-3] * (shape[0] if axes.startswith("t") else 1)
    count = draw(st.sampled_from([1, slices]))
    numbers = st.floats(0.001, 1e6)
    return Volume(
        voxels,
        axes,
        Geometry.pixels(shape[-3:], (draw(numbers), 0.3, 0.7)),
        "PT",
        slope=tuple(draw(st.lists(numbers, min_size=count, max_size=count))),
        intercept=tuple(draw(st.lists(numbers, min_size=count, max_size=count))),
        units="Bq/ml",
        frames=tuple({"time_s": float(t)} for t in range(shape[0])) if axes.startswith("t") else (),
        acquisition={"RepetitionTime": 4.2},
        flags=("TILTED",),
    )


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@settings(max_examples=40, deadline=None)
@given(any_volume(), st.data())
def test_what_is_written_is_read_whole_and_in_slabs(volume, data):
    with tempfile.TemporaryDirectory() as folder:
        found = stored(volume, Path(folder))
        whole = found.read()
        assert whole.voxels.tobytes() == volume.voxels.astype(volume.voxels.dtype.newbyteorder("=")).tobytes()
        assert whole.attributes() == volume.attributes()
        assert whole.voxels.dtype.isnative
        assert (found.axes, found.shape, found.slices) == (volume.axes, volume.voxels.shape, volume.slices)

        start = data.draw(st.integers(0, found.slices))
        stop = data.draw(st.integers(start, found.slices))
        flat = whole.voxels if "t" in found.axes else whole.voxels[None]
        flat = np.moveaxis(flat, 1, 2) if "c" in found.axes else flat
        flat = flat.reshape(found.slices, *flat.shape[2:])
        slab = found.slab(start, stop)
        assert slab.tobytes() == np.ascontiguousarray(flat[start:stop]).tobytes()
        assert slab.shape == flat[start:stop].shape
        values = whole.values() if "t" in found.axes else whole.values()[None]
        values = np.moveaxis(values, 1, 2) if "c" in found.axes else values
        expected = values.reshape(found.slices, *values.shape[2:])[start:stop]
        np.testing.assert_array_equal(found.slab_values(start, stop), expected)


def test_shards_hold_many_slices_and_time_points(tmp_path, monkeypatch):
    volume = store_samples.volume((4, 33, 40, 36), "tzyx")
    monkeypatch.setattr(arrays, "SHARD_BYTES", 40 * 36 * 2 * 20)
    cut = stored(volume, tmp_path)
    assert cut.array.shards[1] < 33
    assert cut.array.shards[1] % cut.array.chunks[1] == 0
    np.testing.assert_array_equal(cut.read().voxels, volume.voxels)
    np.testing.assert_array_equal(cut.slab(20, 50), volume.voxels.reshape(-1, 40, 36)[20:50])
    monkeypatch.undo()
    assert stored(volume, tmp_path).array.shards == (4, 35, 40, 36)


def test_zeros_are_written_like_anything_else(tmp_path):
    empty = store_samples.volume((9, 300, 300)).with_voxels(np.zeros((9, 300, 300), np.int16))
    found = stored(empty, tmp_path)
    shard = found.folder / "0" / "c" / "0" / "0" / "0"
    index = np.frombuffer(shard.read_bytes()[-4 - 16 * 8 : -4], "<u8")  # 2 x 2 x 2 chunks: offset and length
    assert (index != 2**64 - 1).all()
    assert not found.read().voxels.any()


def test_other_readers_find_ngff_and_core_codecs(tmp_path):
    found = stored(store_samples.volume((2, 3, 16, 16), "tzyx"), tmp_path)
    group = zarr.open_group(found.folder, mode="r")
    scales = group.attrs["ome"]["multiscales"][0]
    assert group.attrs["ome"]["version"] == "0.5"
    assert [axis["name"] for axis in scales["axes"]] == ["t", "z", "y", "x"]
    assert scales["datasets"] == [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.5, 0.7, 0.7]}]}
    ]
    assert group["0"].metadata.dimension_names == ("t", "z", "y", "x")
    metadata = json.loads((found.folder / "0" / "zarr.json").read_text())
    inner = metadata["codecs"][0]["configuration"]
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]


def test_a_header_takes_no_memory_and_a_stored_volume_travels_as_its_folder(tmp_path):
    volume = store_samples.volume()
    found = stored(volume, tmp_path)
    header = found.header()
    assert header.attributes() == volume.attributes()
    assert header.voxels.strides == (0, 0, 0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).read().voxels, volume.voxels)
    assert str(tmp_path) not in repr(found)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "flip": (flip, "DAMAGED"),
    "truncate": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "DAMAGED"),
    "empty": (lambda path: path.write_bytes(b""), "DAMAGED"),
    "delete": (Path.unlink, "MISSING"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_never_read_as_voxels(tmp_path, kind):
    damage, code = DAMAGE[kind]
    found = stored(store_samples.volume((5, 64, 64)), tmp_path)
    damage(found.folder / "0" / "c" / "0" / "0" / "0")
    with pytest.raises(StoreError) as caught:
        found.slab(0, 5)
    assert caught.value.code == code
    with pytest.raises(StoreError):
        found.read()


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
@pytest.mark.parametrize("kind", ["truncate", "delete", "empty"])
def test_damaged_metadata_is_a_store_error(tmp_path, name, kind):
    damage, code = DAMAGE[kind]
    found = stored(store_samples.volume(), tmp_path)
    damage(found.folder / name)
    with pytest.raises(StoreError) as caught:
        found.read()
    assert caught.value.code == code


def test_content_digest_is_of_values_and_meaning(tmp_path):
    volume = store_samples.volume()
    swapped = volume.with_voxels(volume.voxels.astype(">i2"))
    other = Volume(volume.voxels, "zyx", Geometry.pixels((5, 24, 20)), "CT", units="HU")
    digest = volumes.content_digest(volume)
    assert digest == volumes.content_digest(swapped)
    assert digest == volumes.content_digest(stored(volume, tmp_path).read())
    assert len({digest, volumes.content_digest(other), volumes.content_digest(store_samples.volume(seed=1))}) == 3


def test_attributes_that_are_not_finite_are_refused(tmp_path):
    volume = store_samples.volume()
    bad = Volume(volume.voxels, "zyx", volume.geometry, "CT", acquisition={"EchoTime": float("nan")})
    with pytest.raises(InputError) as caught:
        volumes.write(bad, tmp_path, SERIES)
    assert caught.value.code == "NON_FINITE"
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("bounds", [(-1, 2), (0, 6), (3, 2)])
def test_slabs_outside_the_series_are_an_index_error(tmp_path, bounds):
    with pytest.raises(IndexError):
        stored(store_samples.volume(), tmp_path).slab(*bounds)

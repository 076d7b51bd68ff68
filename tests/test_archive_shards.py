"""Shards written directly are what Zarr reads; a volume written slice by slice is the volume written whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive import shards
from archive.errors import InputError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import StoredVolume, content_digest, write, write_slices


def volume(shape, dtype="i2") -> Volume:
    voxels = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    axes = "tzyx" if len(shape) == 4 else "zyx"
    frames = tuple({"time_s": float(index)} for index in range(shape[0])) if axes == "tzyx" else ()
    return Volume(voxels, axes, Geometry.pixels(shape[-3:]), "MR", frames=frames)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 19), st.integers(1, 9)),
    dtype=st.sampled_from(["u1", "i2", "u4", "f8"]),
)
def test_zarr_reads_every_chunk(shape, dtype):
    values = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            folder, shape=shape, dtype=dtype, chunks=(2, 8, 4), shards=(6, 24, 12), fill_value=0,
            compressors=[shards.codec_of(np.dtype(dtype)), zarr.codecs.Crc32cCodec()],
        )  # fmt: skip
        shards.write_shard(Path(folder) / "c" / "0" / "0" / "0", values, (2, 8, 4), (6, 24, 12))
        assert np.array_equal(array[:], values)
        assert np.array_equal(zarr.open_array(folder, mode="r")[shape[0] - 1 :, :, 0], values[shape[0] - 1 :, :, 0])


def test_a_flipped_bit_on_disk_is_noticed(tmp_path, monkeypatch):
    honest = Path.open

    def flipping(self, mode="r", *rest):
        if mode == "rb":
            data = bytearray(self.read_bytes())
            data[5] ^= 1
            self.write_bytes(data)
        return honest(self, mode, *rest)

    monkeypatch.setattr(shards.Path, "read_bytes", lambda self: honest(self, mode="r+b").read())
    monkeypatch.setattr(shards.Path, "open", flipping)
    with pytest.raises(StoreError, match="DAMAGED"):
        shards.write_shard(tmp_path / "0", np.arange(64, dtype="i2").reshape(4, 4, 4), (4, 4, 4), (4, 4, 4))


@pytest.mark.parametrize("shape", [(11, 40, 30), (3, 9, 20, 20), (1, 5, 5)])
def test_slice_by_slice_is_the_same_as_whole(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("archive.arrays.SHARD_BYTES", 8 * 40 * 30 * 2)
    one = volume(shape)
    slices = one.voxels.reshape(-1, *shape[-2:])
    digest, committed = write_slices(one, iter(slices), tmp_path, "a" * 32)
    assert digest == content_digest(one)
    assert np.array_equal(StoredVolume(tmp_path / ("a" * 32) / committed.version).read().voxels, one.voxels)
    assert content_digest(StoredVolume(tmp_path / ("a" * 32) / write(one, tmp_path, "a" * 32).version).read()) == digest
    assert write_slices(one, iter(slices), tmp_path, "a" * 32, digest) == (digest, None)
    assert len(list((tmp_path / ("a" * 32)).iterdir())) == 2
    assert list((tmp_path / ".stage").iterdir()) == []


def test_slices_that_differ_are_refused_and_leave_nothing(tmp_path):
    one = volume((3, 5, 5))
    with pytest.raises(InputError, match="DECODE_FAILED"):
        write_slices(one, iter([*one.voxels[:2], np.zeros((5, 5), "u2")]), tmp_path, "a" * 32)
    assert list((tmp_path / ".stage").iterdir()) == [] and not (tmp_path / ("a" * 32)).exists()

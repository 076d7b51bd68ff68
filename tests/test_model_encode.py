"""Encoding and decoding: every kind of volume comes back in its own shape; tiling and order change nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archive import codes as code_store
from archive import volumes as volume_store
from archive.codes import Codes, StoredCodes
from archive.errors import InputError, MismatchError
from archive.geometry import Geometry
from archive.volume import Volume
from archive.volumes import StoredVolume
from model import tiling
from model.config import resolve
from model.decode import decode_codes
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.vqvae import VQVAE

RNG = np.random.default_rng(5)


def network(preset: str = "tiny", channels: int = 1, intensity: str = "robust", levels: int = 2) -> VQVAE:
    torch.manual_seed(0)
    config = resolve(preset, channels=channels, intensity=intensity).model_copy(update={"levels": levels})
    model = VQVAE(config)
    cell = config.axes(config.downsample)
    model.quantizer.start(model.encoder(torch.randn(8, channels, *(6 * d for d in cell))).movedim(1, -1).flatten(0, -2))
    return model.eval()


def volume(axes: str, shape: tuple[int, ...], dtype: str = "int16", **about) -> Volume:
    smooth = np.add.outer(np.arange(shape[-2]) * 3, np.arange(shape[-1]) * 2)
    voxels = (RNG.integers(0, 40, shape) + smooth % 200).astype(dtype)
    return Volume(voxels, axes, Geometry.pixels(shape[-3:]), about.pop("modality", "MR"), **about)


CASES = [
    ("tiny", "zyx", (3, 64, 64), "int16", {}),
    ("tiny", "zyx", (1, 35, 50), "uint8", {"modality": "PICTURE"}),
    ("tiny", "zyx", (2, 5, 7), "float32", {"modality": "NIFTI"}),
    ("tiny", "tzyx", (2, 3, 33, 24), "uint16", {}),
    ("tiny", "zyx", (4, 32, 40), "uint16", {"slope": (0.5, 1.0, 2.0, 0.1), "intercept": (0.0,) * 4, "units": "Bq/ml"}),
    ("tiny", "czyx", (3, 1, 40, 33), "uint8", {"units": "rgb", "photometric": "RGB"}),
    ("tiny", "tczyx", (2, 3, 2, 16, 20), "uint8", {"units": "rgb", "photometric": "RGB"}),
    ("tiny-3d", "zyx", (9, 20, 18), "int32", {}),
    ("tiny-3d", "tzyx", (2, 1, 16, 16), "int16", {}),
]


@pytest.mark.parametrize(("preset", "axes", "shape", "dtype", "about"), CASES)
def test_every_kind_of_volume_comes_back_as_itself(preset, axes, shape, dtype, about) -> None:
    source = volume(axes, shape, dtype, **about)
    model = network(preset, source.channels)
    codes = encode_volume(model, source)
    grid = [-(-n // d) for n, d in zip(shape[-3:], codes.downsample, strict=True)]
    assert codes.array.shape == (2, *([shape[0]] if axes.startswith("t") else []), *grid)
    assert all((n + p) % d == 0 for n, p, d in zip(shape[-3:], codes.pad, codes.downsample, strict=True))
    decoded = decode_codes(model, codes)
    assert decoded.attributes() == source.attributes()
    assert decoded.voxels.shape == source.voxels.shape and decoded.voxels.dtype == source.voxels.dtype
    assert not np.array_equal(decode_codes(model, codes, levels=1).voxels, decoded.voxels)


def test_a_slice_decodes_the_same_however_it_is_asked_for(tmp_path: Path) -> None:
    source = volume("tzyx", (2, 5, 70, 52))
    model = network()
    codes = encode_volume(model, source)
    stored = StoredCodes(tmp_path / "s" / code_store.write(codes, tmp_path, "s").version)
    lazy = DecodedVolume(model, stored)
    whole = decode_codes(model, codes).voxels
    assert np.array_equal(lazy.read().voxels, whole)
    assert np.array_equal(lazy[1, 2:4, 10:61, 3:50], whole[1, 2:4, 10:61, 3:50])
    assert np.array_equal(lazy[..., 7], whole[..., 7])
    assert np.array_equal(lazy[-1, -1], whole[-1, -1])
    assert lazy[0, 2:2].shape == (0, 70, 52)
    with pytest.raises(IndexError):
        lazy[:, 5]
    with pytest.raises(IndexError):
        lazy[::2]
    chunks = lazy.as_dask()
    assert chunks.shape == whole.shape and chunks.dtype == whole.dtype
    assert np.array_equal(chunks[1, 1:3, 20:30].compute(), whole[1, 1:3, 20:30])


@pytest.mark.parametrize("name", ["CT", "PET", "colour", "time"])
def test_an_xarray_holds_values_in_units_where_they_lie(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    source = {
        "CT": phantoms.ct_volume((5, 40, 48)),
        "PET": phantoms.pet_volume(),
        "colour": volume("czyx", (3, 2, 40, 33), "uint8", units="rgb", photometric="RGB"),
        "time": volume("tzyx", (2, 5, 40, 52), frames=({"time_s": 1.0}, {"time_s": 3.5})),
    }[name]
    model = network(channels=source.channels, intensity="bytes" if name == "colour" else "robust")
    codes = encode_volume(model, source)
    lazy = DecodedVolume(model, StoredCodes(tmp_path / "s" / code_store.write(codes, tmp_path, "s").version))
    found = lazy.as_xarray()
    np.testing.assert_array_equal(found.values, decode_codes(model, codes).values())
    assert found.dims == tuple(source.axes) and found.dtype == np.float32 and found.attrs["units"] == source.units
    assert float(found.y[1] - found.y[0]) == pytest.approx(source.geometry.spacing_mm[1])
    np.testing.assert_array_equal(found.attrs["affine_lps_mm"], source.geometry.matrix)
    if name == "time":
        assert found.t.values.tolist() == [1.0, 3.5]


def test_an_xarray_knows_where_uneven_slices_lie() -> None:
    pytest.importorskip("xarray")
    source = volume("zyx", (3, 16, 16))
    geometry = dataclasses.replace(source.geometry, positions_mm=(0.0, 1.0, 4.0))
    model = network()
    lazy = DecodedVolume(model, encode_volume(model, dataclasses.replace(source, geometry=geometry)))
    assert lazy.as_xarray().z.values.tolist() == [0.0, 1.0, 4.0]


def test_an_index_is_a_whole_number_or_a_slice() -> None:
    model = network()
    lazy = DecodedVolume(model, encode_volume(model, volume("zyx", (3, 16, 16))))
    for key in (1.5, None, np.array([0, 1]), "1"):
        with pytest.raises((TypeError, IndexError)):
            lazy[key]
    assert lazy[np.int64(1)].shape == (16, 16)


def test_colour_slices_lazily(tmp_path: Path) -> None:
    source = volume("czyx", (3, 2, 40, 33), "uint8", units="rgb", photometric="RGB")
    model = network(channels=3, intensity="bytes")
    codes = encode_volume(model, source)
    lazy = DecodedVolume(model, StoredCodes(tmp_path / "s" / code_store.write(codes, tmp_path, "s").version))
    whole = decode_codes(model, codes).voxels
    assert np.array_equal(lazy[1, 0, 3:30, 5:9], whole[1, 0, 3:30, 5:9])


@pytest.mark.parametrize(("preset", "shape"), [("tiny", (3, 70, 150)), ("tiny-3d", (30, 40, 26))])
def test_tiles_give_the_codes_of_the_whole(monkeypatch: pytest.MonkeyPatch, preset: str, shape) -> None:
    source = volume("zyx", shape)
    model = network(preset)
    whole = encode_volume(model, source)
    picture = decode_codes(model, whole).voxels.astype(int)
    small = {2: (1, 96, 96), 3: (28, 28, 28)}
    monkeypatch.setattr(tiling, "TILE", small)
    tiled = encode_volume(model, source)
    assert (tiled.array != whole.array).mean() <= 1e-5 + 2 / whole.array.size  # near ties only
    assert np.abs(decode_codes(model, whole).voxels.astype(int) - picture).max() <= 1


def test_stored_and_in_memory_volumes_give_the_same_bytes(tmp_path: Path) -> None:
    source = volume("zyx", (11, 40, 44), "uint16", slope=tuple(np.linspace(0.5, 2, 11)), intercept=(0.0,) * 11)
    stored = StoredVolume(tmp_path / "v" / volume_store.write(source, tmp_path, "v").version)
    model = network()
    first = encode_volume(model, stored, source_version="v1")
    second = encode_volume(model, source)
    assert first.array.tobytes() == second.array.tobytes()
    assert (first.mapping, first.source_version) == (second.mapping, "v1")
    assert encode_volume(model, stored).array.tobytes() == first.array.tobytes()
    fast = encode_volume(model, source, profile="fast")
    assert fast.profile == "fast" and fast.array.shape == first.array.shape


@settings(max_examples=200, deadline=None)
@given(cells=st.integers(1, 300), window=st.integers(5, 70), halo=st.integers(0, 20))
def test_spans_cover_each_cell_once_with_its_reach(cells: int, window: int, halo: int) -> None:
    if cells > window and window <= 2 * halo:
        with pytest.raises(ValueError, match="window"):
            tiling.spans(cells, window, halo)
        return
    found = tiling.spans(cells, window, halo)
    covered = [cell for span in found for cell in range(span.keep_from, span.keep_to)]
    assert covered == list(range(cells))
    assert len({span.length for span in found}) == 1
    for span in found:
        assert span.start >= 0 and span.start + span.length <= cells
        assert span.keep_from - span.start >= halo or span.start == 0
        assert span.start + span.length - span.keep_to >= halo or span.start + span.length == cells


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    grey, colour = volume("zyx", (1, 16, 16)), volume("czyx", (3, 1, 16, 16), "uint8", units="rgb")
    with pytest.raises(MismatchError, match="channels"):
        encode_volume(model, colour)
    with pytest.raises(MismatchError, match="levels"):
        encode_volume(model, grey, levels=3)
    codes = encode_volume(model, grey)
    model.model_id = "a" * 64
    with pytest.raises(MismatchError, match="another model"):
        decode_codes(model, codes)
    other = network(levels=1)
    with pytest.raises(MismatchError, match="another model"):
        decode_codes(other, codes)
    broken = Volume(np.full((1, 16, 16), np.inf, np.float32), "zyx", Geometry.pixels((1, 16, 16)), "NIFTI")
    with pytest.raises(InputError, match="NON_FINITE"):
        encode_volume(model, broken)
    assert isinstance(codes, Codes)

"""archive/ome_zarr.py: OME-Zarr 0.5 that the readers named in docs/export.md open and find valid."""

import json

import numpy as np
import pytest
import zarr
from phantoms import ct_volume, mr_volume, pet_volume

from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.ome_zarr import coarser, pyramid, write_ome_zarr


@pytest.fixture(params=["ct", "mr", "pet"])
def written(request, tmp_path):
    volume = {"ct": ct_volume, "mr": mr_volume, "pet": pet_volume}[request.param](seed=1)
    folder = tmp_path / "series.ome.zarr"
    write_ome_zarr(volume, folder, {"series": "abc", "tier": "volume"}, (0.0, 100.0))
    return volume, folder


def test_values_are_in_units_and_the_affine_is_exact(written):
    volume, folder = written
    group = zarr.open_group(folder, mode="r")
    assert np.array_equal(group["0"][...].astype(np.float32), volume.values())
    assert group.attrs["voxbook"]["geometry"] == json.loads(json.dumps(volume.geometry.as_dict()))
    assert group.attrs["voxbook"]["units"] == volume.units


def test_ome_zarr_models_finds_it_valid(written):
    models = pytest.importorskip("ome_zarr_models")
    volume, folder = written
    image = models.open_ome_zarr(zarr.open_group(folder, mode="r"))
    assert type(image).__module__.startswith("ome_zarr_models.v05")
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == list(volume.axes)


def test_ngff_zarr_reads_voxels_spacing_and_orientation(written):
    ngff = pytest.importorskip("ngff_zarr")
    volume, folder = written
    image = ngff.from_ngff_zarr(str(folder), validate=True).images[0]
    assert np.array_equal(np.asarray(image.data).astype(np.float32), volume.values())
    assert np.allclose([image.scale[name] for name in "zyx"], volume.geometry.spacing_mm)
    assert set(image.axes_units.values()) <= {"millimeter", "second"} or image.axes_units is None


def test_coarser_levels_lie_where_the_finest_does(tmp_path):
    volume = mr_volume(seed=3, shape=(24, 160, 130))
    folder = tmp_path / "x.ome.zarr"
    write_ome_zarr(volume, folder, {}, (0.0, 1.0))
    group = zarr.open_group(folder, mode="r")
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert len(datasets) > 1
    for dataset in datasets:
        scale, moved = (
            np.array(one[kind])
            for one, kind in zip(dataset["coordinateTransformations"], ("scale", "translation"), strict=True)
        )
        first = moved - (scale - datasets[0]["coordinateTransformations"][0]["scale"]) / 2
        assert np.allclose(first, 0)
        assert all(
            np.array(group[dataset["path"]].shape) * scale
            >= np.array(volume.voxels.shape) * volume.geometry.spacing_mm - 1e-6
        )


def test_blocks_are_means_and_the_last_may_be_cut():
    values = np.arange(5 * 3, dtype=np.int16).reshape(1, 5, 3)
    rounded = coarser(values, (1, 2, 2))
    assert rounded.dtype == np.int16 and rounded.tolist() == [[[2, 4], [8, 10], [12, 14]]]
    exact = coarser(values.astype(np.float32), (1, 2, 2))
    assert np.allclose(exact, [[[2.0, 3.5], [8.0, 9.5], [12.5, 14.0]]])


def test_thick_slices_are_not_halved_until_the_plane_is_as_coarse():
    geometry = Geometry((40, 512, 512), ((0, 0, 0.7, 0), (0, 0.7, 0, 0), (5.0, 0, 0, 0), (0, 0, 0, 1)))
    plan = pyramid(geometry)
    z, y, _ = geometry.spacing_mm
    assert len(plan) > 3 and all(factors[0] == 1 for factors in plan if y * factors[1] * 1.5 < z)


def test_an_existing_target_is_never_touched(tmp_path):
    (tmp_path / "there.ome.zarr").mkdir()
    with pytest.raises(ConfigError) as caught:
        write_ome_zarr(ct_volume(seed=1), tmp_path / "there.ome.zarr", {}, (0.0, 1.0))
    assert caught.value.code == "OCCUPIED"
    assert [path.name for path in tmp_path.iterdir()] == ["there.ome.zarr"]

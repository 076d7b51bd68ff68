"""NIfTI in and out: stored values, scale, affine; held against nibabel and dcm2niix."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.errors import InputError
from archive.geometry import Geometry
from archive.nifti import write_nifti
from archive.scan import read_series, scan
from archive.settings import IngestSettings
from archive.volume import Volume

AFFINE = np.array([[-2.0, 0.1, 0, 90], [0.1, 2.0, 0.2, -126], [0, -0.2, 3.0, -72], [0, 0, 0, 1]])
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")


def save(
    path: Path, data: np.ndarray, *, slope: float | None = None, inter: float = 0, kind=nibabel.Nifti1Image, **header
):
    """Write stored values and a scale as they are; nibabel alone would rescale them."""
    image = kind(data, AFFINE, dtype=data.dtype)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    if slope is not None:
        raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        raw[112:120] = np.array([slope, inter], dtype="<f4").tobytes()
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def load(folder: Path) -> Volume:
    result = scan(folder)
    assert not result.findings, result.findings
    (plan,) = result.plans
    return read_series(plan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["one.nii", "one.nii.gz"])
def test_stored_values_and_affine_are_kept(tmp_path, dtype, name):
    data = np.random.default_rng(1).integers(0, 100, (4, 5, 6)).astype(dtype)
    save(tmp_path / name, data)
    volume = load(tmp_path)
    assert volume.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(volume.voxels, data.transpose(2, 1, 0))
    assert np.allclose(volume.geometry.to_nifti(), AFFINE, atol=1e-5)
    assert (volume.axes, volume.modality, volume.units, volume.slope) == ("zyx", "NIFTI", "a.u.", (1.0,))


@pytest.mark.parametrize(("slope", "inter", "expected"), [(0.5, -7, (0.5, -7)), (0, 0, (1, 0)), (0, 5, (1, 0))])
def test_scale_is_kept_and_no_slope_means_one(tmp_path, slope, inter, expected):
    save(tmp_path / "one.nii", np.arange(24, dtype="i2").reshape(2, 3, 4), slope=slope, inter=inter)
    volume = load(tmp_path)
    assert (volume.slope[0], volume.intercept[0]) == expected
    assert np.allclose(volume.values(), nibabel.load(tmp_path / "one.nii").get_fdata().T)


def test_big_endian_and_nifti2(tmp_path):
    data = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    image = nibabel.Nifti2Image(data, AFFINE, header=nibabel.Nifti2Header(endianness=">"))
    nibabel.save(image, tmp_path / "one.nii")
    volume = load(tmp_path)
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels, data.T)


@pytest.mark.parametrize(("unit", "step", "seconds"), [(8, 2.5, 2.5), (16, 2500, 2.5), (24, 2.5e6, 2.5), (32, 9, None)])
def test_time_is_in_seconds(tmp_path, unit, step, seconds):
    data = np.zeros((2, 3, 4, 3), dtype="i2")
    save(tmp_path / "one.nii", data, pixdim=[1, 2, 2, 3, step, 0, 0, 0], xyzt_units=2 + unit)
    volume = load(tmp_path)
    assert volume.axes == "tzyx"
    assert len(volume.frames) == 3
    assert volume.frames[2] == ({"time_s": 2 * seconds} if seconds else {})


def test_trailing_axes_go_and_missing_ones_come(tmp_path):
    save(tmp_path / "one.nii", np.zeros((2, 3, 4, 1, 1), dtype="i2"))
    assert load(tmp_path).voxels.shape == (4, 3, 2)
    save(tmp_path / "one.nii", np.zeros((2, 3), dtype="i2"))
    assert load(tmp_path).voxels.shape == (1, 3, 2)


def test_int64_becomes_the_smallest_that_holds_it(tmp_path):
    save(tmp_path / "one.nii", np.array([[[0, -7, 2**31 - 1]]], dtype="i8"))
    assert load(tmp_path).voxels.dtype == np.int32


def _broken(folder: Path, what: str) -> None:
    path = folder / "one.nii.gz"
    data = np.ones((8, 8, 8), dtype="f4")
    if what == "nan":
        data[1, 2, 3] = np.nan
        save(path, data)
    elif what in ("half a pair", "short pair", "lone img"):
        nibabel.save(nibabel.Nifti1Pair(data.astype("i2"), np.eye(4)), folder / "one.hdr")
        if what == "half a pair":
            (folder / "one.img").unlink()
        elif what == "lone img":
            (folder / "one.hdr").unlink()
        else:
            (folder / "one.img").write_bytes((folder / "one.img").read_bytes()[:-2])
    elif what == "five":
        save(path, np.zeros((2, 3, 4, 2, 2), dtype="i2"))
    elif what == "wide":
        save(path, np.array([[[2**40]]], dtype="i8"))
    elif what == "cut":
        save(path, np.random.default_rng(0).random((8, 8, 8)))
        path.write_bytes(path.read_bytes()[:-900])
    elif what == "cut plain":
        save(folder / "one.nii", data)
        (folder / "one.nii").write_bytes((folder / "one.nii").read_bytes()[:-4])
    elif what == "junk":
        path.write_bytes(b"no gzip at all" * 40)
    elif what == "empty":
        (folder / "one.nii").write_bytes(b"")
    elif what == "flat":
        save(folder / "one.nii", data)
        raw = bytearray((folder / "one.nii").read_bytes())
        raw[280:296] = bytes(16)  # srow_x
        (folder / "one.nii").write_bytes(raw)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("half a pair", "TRUNCATED"),
        ("short pair", "TRUNCATED"),
        ("lone img", "UNKNOWN_FORMAT"),
        ("five", "UNSUPPORTED_PIXELS"),
        ("wide", "UNSUPPORTED_PIXELS"),
        ("nan", "NON_FINITE"),
        ("cut", "TRUNCATED"),
        ("cut plain", "TRUNCATED"),
        ("junk", "UNKNOWN_FORMAT"),
        ("empty", "UNKNOWN_FORMAT"),
        ("flat", "NO_GEOMETRY"),
    ],
)
def test_every_refusal_has_its_reason(tmp_path, what, code):
    _broken(tmp_path, what)
    result = scan(tmp_path)
    if result.plans:
        with pytest.raises(InputError) as caught:
            read_series(result.plans[0])
        assert caught.value.code == code
    else:
        assert [finding.code for finding in result.findings] == [code]


def test_too_large_is_refused_from_the_header(tmp_path):
    save(tmp_path / "one.nii.gz", np.zeros((8, 8, 8), dtype="i2"))
    small = IngestSettings(max_series_bytes=1023)
    assert [finding.code for finding in scan(tmp_path, settings=small).findings] == ["TOO_LARGE"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    # scl_slope is float32, so these must be too
    scale=st.tuples(st.floats(0.0078125, 100, width=32), st.floats(-1e4, 1e4, width=32)),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read_back(tmp_path, dtype, shape, scale, packed, seed):
    random = np.random.default_rng(seed)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    voxels = random.integers(0, 120, shape).astype(dtype)
    affine = np.eye(4)
    affine[:3] = random.normal(size=(3, 4)) + 5 * np.eye(3, 4)
    frames = tuple({"time_s": 1.5 * t} for t in range(shape[0])) if len(shape) == 4 else ()
    volume = Volume(
        voxels=voxels,
        axes="tzyx" if len(shape) == 4 else "zyx",
        geometry=Geometry(tuple(shape[-3:]), tuple(map(tuple, affine.tolist()))),
        modality="NIFTI",
        slope=(scale[0],),
        intercept=(scale[1],),
        frames=frames,
    )
    path = tmp_path / ("one.nii.gz" if packed else "one.nii")
    write_nifti(volume, path, "test")
    (plan,) = scan(path).plans
    back = read_series(plan)
    assert back.voxels.dtype == voxels.dtype
    assert np.array_equal(back.voxels, voxels)
    assert (back.slope, back.intercept) == (volume.slope, volume.intercept)
    assert np.allclose(back.geometry.matrix, affine, atol=1e-4)
    assert [frame["time_s"] for frame in back.frames] == pytest.approx([frame["time_s"] for frame in frames])
    path.unlink()


def test_scales_that_vary_are_written_as_float32_in_units(tmp_path):
    voxels = np.arange(24, dtype="i2").reshape(2, 3, 4)
    geometry = Geometry.pixels((2, 3, 4), (3, 1, 1))
    volume = Volume(voxels, "zyx", geometry, "PT", slope=(0.5, 2.0), intercept=(0.0, 1.0), units="Bq/ml")
    write_nifti(volume, tmp_path / "pet.nii.gz")
    image = nibabel.load(tmp_path / "pet.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(image.get_fdata().T, volume.values())


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colour_is_written(tmp_path, dtype):
    voxels = np.random.default_rng(0).integers(0, 255, (3, 1, 4, 5)).astype(dtype)
    volume = Volume(voxels, "czyx", Geometry.pixels((1, 4, 5)), "PICTURE", units="rgb", photometric="RGB")
    write_nifti(volume, tmp_path / "rgb.nii")
    data = np.asanyarray(nibabel.load(tmp_path / "rgb.nii").dataobj)
    channels = [data[name] for name in "RGB"] if dtype == "u1" else [data[..., 0, index] for index in range(3)]
    assert data.shape == ((5, 4, 1) if dtype == "u1" else (5, 4, 1, 1, 3))
    assert np.array_equal([channel.T for channel in channels], voxels)


def test_the_header_says_where_the_voxels_are(tmp_path):
    data = np.zeros((2, 3, 4), dtype="i2")
    save(tmp_path / "one.nii", data)
    write_nifti(load(tmp_path), tmp_path / "two.nii.gz", "non-diagnostic")
    header = nibabel.load(tmp_path / "two.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert bytes(header["descrip"]).rstrip(b"\0") == b"non-diagnostic"
    assert np.allclose(header.get_sform(), AFFINE, atol=1e-5)


def test_equal_volumes_make_equal_files_and_leave_no_drafts(tmp_path):
    save(tmp_path / "one.nii", np.ones((2, 3, 4), dtype="i2"))
    volume = load(tmp_path)
    write_nifti(volume, tmp_path / "a.nii.gz")
    write_nifti(volume, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    with pytest.raises(OSError):
        write_nifti(volume, tmp_path / "nowhere" / "c.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "one.nii"]


def test_one_image_in_twelve_orientations_is_one_image(shared_data):
    result = scan(shared_data / "nifti" / "orientations")
    assert len(result.plans) == 12
    seen = set()
    for plan in result.plans:
        volume = read_series(plan)
        image = nibabel.Nifti1Image(volume.values().transpose(2, 1, 0), volume.geometry.to_nifti())
        canonical = nibabel.as_closest_canonical(image)
        seen.add((hashlib.sha256(canonical.get_fdata().tobytes()).hexdigest(), str(np.round(canonical.affine, 2))))
    assert len(seen) == 1


def test_real_nifti_files_equal_the_manifest(shared_data, tmp_path):
    entries = json.loads((shared_data / "manifest.json").read_text())["entries"]
    rows = [row for entry in entries if entry["path"].startswith("nifti/") for row in entry.get("nifti", [])]
    assert len(rows) == 21
    for row in rows:
        (plan,) = scan(shared_data / row["path"]).plans
        write_nifti(read_series(plan), tmp_path / "out.nii.gz")
        canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / "out.nii.gz"))
        data = np.ascontiguousarray(canonical.get_fdata(dtype=np.float32)).astype("<f4")
        assert list(data.shape) == row["canonical_shape"], row["path"]
        assert hashlib.sha256(data.tobytes()).hexdigest() == row["canonical_f4_sha256"], row["path"]
        assert np.allclose(canonical.affine, row["canonical_affine"], atol=1e-3), row["path"]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_one_series(tmp_path, kind):
    data = np.arange(24, dtype="i2").reshape(2, 3, 4)
    nibabel.save(kind(data, np.diag([2.0, 3, 4, 1])), tmp_path / "one.hdr")
    result = scan(tmp_path)
    (plan,) = result.plans
    assert (plan.files, plan.folded, result.findings) == (("one.hdr",), ("one.img",), ())
    assert np.array_equal(read_series(plan).voxels, data.T)


def test_complex_numbers_become_magnitude_and_phase(tmp_path):
    data = (np.arange(24) * np.exp(1j * np.linspace(-3, 3, 24))).reshape(2, 3, 4).astype("c8")
    save(tmp_path / "one.nii", data)
    magnitude, phase = sorted(scan(tmp_path).plans, key=lambda plan: plan.identity)
    assert magnitude.patient == phase.patient and magnitude.series != phase.series
    assert np.allclose(read_series(magnitude).voxels, np.abs(data).T)
    assert np.allclose(read_series(phase).voxels, np.angle(data).T)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colour_is_read(tmp_path, names):
    data = np.random.default_rng(1).integers(0, 256, (2, 3, 4, len(names))).astype("u1")
    save(tmp_path / "one.nii", data.view([(name, "u1") for name in names])[..., 0])
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan)
    assert (volume.axes, volume.units, plan.group) == ("czyx", "rgb", "nifti-rgb")
    assert np.array_equal(volume.voxels, data[..., :3].transpose(3, 2, 1, 0))

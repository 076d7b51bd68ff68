"""Written series: pydicom and our own scan read back the same voxels, geometry and units; never half a folder."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import dicom_tables
import numpy as np
import phantoms
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from archive import dicom_write
from archive.derived import Derivation, SeriesIdentity, stable_uid
from archive.dicom_write import WRITABLE, write_series
from archive.errors import ConfigError, InputError
from archive.geometry import Geometry
from archive.scan import scan
from archive.series import read_series
from archive.volume import Volume

IDENTITY = SeriesIdentity.fictional(1, "test")
VOLUMES = {
    "ct": phantoms.ct_volume(),
    "ct-unsigned": phantoms.ct_volume(signed=False),
    "ct-tilted": phantoms.ct_volume(tilt_degrees=12.0),
    "ct-oblique": phantoms.ct_volume(oblique=True),
    "mr": phantoms.mr_volume(),
    "mr-4d": phantoms.mr_volume(timepoints=3),
    "pet": phantoms.pet_volume(),
}


@pytest.mark.parametrize("syntax", WRITABLE, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("name", VOLUMES)
def test_our_own_reader_gives_the_same_volume(tmp_path: Path, name: str, syntax: str) -> None:
    volume = VOLUMES[name]
    order = [int(n) for n in np.random.default_rng(0).permutation(volume.slices)]
    write_series(volume, tmp_path / "series", IDENTITY, transfer_syntax=syntax, order=order)
    found = scan(tmp_path)
    assert [len(found.plans), len(found.findings)] == [1, 0]
    back = read_series(found.plans[0])
    assert back.axes == volume.axes and back.voxels.dtype == volume.voxels.dtype
    assert np.array_equal(back.voxels, volume.voxels)
    assert back.geometry.matrix == pytest.approx(volume.geometry.matrix, abs=1e-4)
    assert (back.units, back.modality) == (volume.units, volume.modality)
    assert np.array_equal(back.values(), volume.values())
    assert [frame.get("time_s") for frame in back.frames] == [frame["time_s"] for frame in volume.frames]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]),
    st.integers(1, 3),
    st.integers(1, 41),
    st.integers(1, 41),
    st.integers(0, 99),
    st.sampled_from(WRITABLE),
)
def test_any_integers_survive(
    tmp_path_factory: pytest.TempPathFactory, dtype: type, depth: int, height: int, width: int, seed: int, syntax: str
) -> None:
    limits = np.iinfo(dtype)
    voxels = np.random.default_rng(seed).integers(limits.min, limits.max, (depth, height, width), dtype, endpoint=True)
    volume = Volume(voxels, "zyx", Geometry.pixels(voxels.shape), "MR", bits_stored=1)
    folder = tmp_path_factory.mktemp("any") / "series"
    if syntax == JPEG2000Lossless and min(height, width) < 32:
        with pytest.raises(ConfigError, match="JPEG 2000"):
            write_series(volume, folder, IDENTITY, transfer_syntax=syntax)
        assert not folder.exists()
        return
    files = write_series(volume, folder, IDENTITY, transfer_syntax=syntax)
    back = np.stack([pydicom.dcmread(file).pixel_array.reshape(height, width) for file in files])
    assert back.dtype == dtype and np.array_equal(back, voxels)


def test_headers_of_an_original(tmp_path: Path) -> None:
    files = write_series(VOLUMES["pet"], tmp_path / "pet", IDENTITY)
    assert [file.name for file in files] == [f"IM{n:05d}.dcm" for n in range(1, 7)]
    datasets = [pydicom.dcmread(file) for file in files]
    assert tuple(float(dataset.RescaleSlope) for dataset in datasets) == VOLUMES["pet"].slope
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 6
    first = datasets[0]
    assert (first.Units, first.PatientName, first.ImageType[0]) == ("BQML", "VOXBOOK^PHANTOM1", "ORIGINAL")
    assert "LossyImageCompression" not in first


def test_decoded_images_say_what_they_are(tmp_path: Path) -> None:
    identity = SeriesIdentity.pseudonymous("a" * 32, "b" * 32, "c" * 16)
    files = write_series(VOLUMES["ct"], tmp_path / "out", identity, Derivation("codes", "d" * 64, 123.456))
    dataset = pydicom.dcmread(files[0])
    assert list(dataset.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert dataset.PatientID == "a" * 32 and dataset.StudyDate == ""
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionRatio) == ("01", 123.46)
    assert dataset.LossyImageCompressionMethod == "VOXBOOK_VQVAE"
    assert "d" * 64 in dataset.DerivationDescription and "not for diagnostic use" in dataset.DerivationDescription
    assert dataset.SeriesInstanceUID.startswith("2.25.") and len(dataset.SeriesInstanceUID) <= 64
    again = write_series(VOLUMES["ct"], tmp_path / "again", identity, Derivation("codes", "d" * 64, 123.456))
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


@pytest.mark.parametrize(("flags", "lossy"), [((), "00"), (("LOSSY_SOURCE",), "01")])
def test_the_volume_tier_is_as_lossy_as_its_source(tmp_path: Path, flags: tuple[str, ...], lossy: str) -> None:
    volume = replace(VOLUMES["ct"], flags=flags)
    identity = SeriesIdentity.pseudonymous("a" * 32, "b" * 32, "c" * 16)
    dataset = pydicom.dcmread(write_series(volume, tmp_path / "out", identity, Derivation("volume"))[0])
    assert dataset.LossyImageCompression == lossy and "LossyImageCompressionMethod" not in dataset


def test_colour_becomes_secondary_capture(tmp_path: Path) -> None:
    volume = phantoms.rgb_volume((7, 9))
    dataset = pydicom.dcmread(write_series(volume, tmp_path / "rgb", IDENTITY)[0])
    assert (dataset.Modality, dataset.PhotometricInterpretation) == ("OT", "RGB")
    assert np.array_equal(np.moveaxis(dataset.pixel_array, -1, 0), volume.voxels[:, 0])


def test_uneven_positions_are_written_as_they_are(tmp_path: Path) -> None:
    volume = VOLUMES["ct"]
    positions = (0.0, 5.0, 10.1, 15.0, 19.9, 25.0)
    uneven = replace(volume, geometry=replace(volume.geometry, positions_mm=positions))
    files = write_series(uneven, tmp_path / "uneven", IDENTITY)
    along = [float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in files]
    assert np.diff(along) == pytest.approx(np.diff(positions))


@pytest.mark.parametrize(
    ("voxels", "affine", "code"),
    [
        (np.zeros((1, 2, 2), np.float32), np.eye(4), "UNSUPPORTED_PIXELS"),
        (np.full((1, 2, 2), 70_000, np.int32), np.eye(4), "UNSUPPORTED_PIXELS"),
        (np.zeros((1, 2, 2), np.int16), np.eye(4) + 0.3 * np.eye(4)[[0, 2, 1, 3]], "NO_GEOMETRY"),
    ],
)
def test_what_dicom_cannot_say_is_refused(tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, code: str) -> None:
    volume = Volume(voxels, "zyx", Geometry((1, 2, 2), tuple(map(tuple, affine))), "MR")
    with pytest.raises(InputError) as caught:
        write_series(volume, tmp_path / "out", IDENTITY)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_wide_integers_with_small_values_are_written(tmp_path: Path) -> None:
    volume = Volume(np.array([[[-5, 300]]], np.int32), "zyx", Geometry.pixels((1, 1, 2)), "MR")
    dataset = pydicom.dcmread(write_series(volume, tmp_path / "out", IDENTITY)[0])
    assert dataset.pixel_array.tolist() == [[-5, 300]]


def test_an_existing_target_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_series(VOLUMES["ct"], tmp_path / "out", IDENTITY)
    assert caught.value.code == "OCCUPIED"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = dicom_write._encode, []

    def full_disk(dataset: pydicom.Dataset, syntax: pydicom.uid.UID) -> None:
        calls.append(dataset)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        encode(dataset, syntax)

    monkeypatch.setattr(dicom_write, "_encode", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_series(VOLUMES["ct"], tmp_path / "out", IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_a_syntax_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_series(VOLUMES["ct"], tmp_path / "out", IDENTITY, transfer_syntax=JPEGLSLossless)
    assert caught.value.code == "BAD_VALUE" and ExplicitVRLittleEndian.name in caught.value.hint


def test_uids_are_stable_and_keep_their_parts_apart() -> None:
    assert stable_uid("a", "bc") == stable_uid("a", "bc") != stable_uid("ab", "c")
    assert pydicom.uid.UID(stable_uid("x")).is_valid


@pytest.mark.parametrize("wrong", [("codes", ""), ("volume", "d" * 64), ("other", "")])
def test_a_derivation_names_a_model_where_there_is_one(wrong: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="tier"):
        Derivation(*wrong)


MR_KNOWN = {"echo_time_ms": 93.0, "repetition_time_ms": 7000.0, "inversion_time_ms": 2500.0, "echo_train_length": 16.0}
MR_KNOWN |= {"flip_angle_deg": 150.0, "magnetic_field_t": 3.0, "pixel_bandwidth_hz": 200.0}
MR_KNOWN |= {"scanning_sequence": "IR", "sequence_variant": "SK", "mr_acquisition": "3D"}


KNOWN = [
    pytest.param(VOLUMES["ct"], {"kvp": 100.0}, id="ct"),
    pytest.param(VOLUMES["ct-tilted"], {"kvp": 120.0, "gantry_tilt_deg": -12.0}, id="ct-tilted"),
    pytest.param(VOLUMES["mr"], MR_KNOWN, id="mr"),
    pytest.param(
        VOLUMES["pet"], {"decay_correction": "ADMIN", "decay_factor": 1.46, "frame_duration_ms": 180000.0}, id="pet"
    ),
]


@pytest.mark.parametrize(("volume", "known"), KNOWN)
def test_what_the_scanner_stated_comes_back(tmp_path: Path, volume: Volume, known: dict) -> None:
    write_series(replace(volume, acquisition=known), tmp_path / "series", IDENTITY)
    back = read_series(scan(tmp_path).plans[0])
    assert {key: back.acquisition.get(key) for key in known} == known


@pytest.mark.parametrize(
    ("volume", "known"), [*KNOWN, *(pytest.param(VOLUMES[n], {}, id=f"{n}-bare") for n in VOLUMES)]
)
def test_two_validators_find_no_error_in_what_is_written(tmp_path: Path, volume: Volume, known: dict) -> None:
    if shutil.which("dciodvfy") is None or not dicom_tables.available():
        pytest.skip("no dciodvfy (apt-get install dicom3tools), or no dicom-validator and dicom-standard (pip)")
    identity = SeriesIdentity.pseudonymous("a" * 32, "b" * 32, "c" * 16)
    volume = replace(volume, acquisition=known)
    path = write_series(volume, tmp_path / "out", identity, Derivation("codes", "d" * 64, 99.5))[0]
    told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")] == []
    assert dicom_tables.problems(pydicom.dcmread(path)) == []


def test_nothing_is_made_up_where_the_scanner_stated_nothing(tmp_path: Path) -> None:
    mr, pet = (pydicom.dcmread(write_series(VOLUMES[name], tmp_path / name, IDENTITY)[0]) for name in ("mr", "pet"))
    assert (mr.EchoTime, mr.RepetitionTime, mr.EchoTrainLength) == (None, None, None) and "FlipAngle" not in mr
    assert (pet.ActualFrameDuration, pet.DecayCorrection) == (0, "NONE")
    assert "GantryDetectorTilt" not in pydicom.dcmread(write_series(VOLUMES["ct"], tmp_path / "ct", IDENTITY)[0])


def test_a_frame_lasts_until_the_next_begins_where_nobody_says_how_long(tmp_path: Path) -> None:
    one = VOLUMES["pet"]
    voxels, slope = np.stack([one.voxels] * 3), one.slope * 3
    frames = tuple({"time_s": seconds} for seconds in (0.0, 10.0, 40.0))
    dynamic = replace(one, voxels=voxels, axes="tzyx", slope=slope, intercept=one.intercept * 3, frames=frames)
    files = write_series(dynamic, tmp_path / "pet", IDENTITY)
    durations = [pydicom.dcmread(file).ActualFrameDuration for file in files[::6]]
    assert durations == [10_000, 30_000, 30_000]

"""flows/export.py and flows/cohort.py: series given back in formats that the readers named in docs/export.md open."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import dicom_tables
import nibabel
import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image

from archive import region as regions
from archive.codes import StoredCodes
from archive.errors import ConfigError, TransientError
from archive.exported import Ledger
from archive.nifti import write_nifti
from archive.settings import GateSettings
from archive.workspace import Workspace, open_codes, open_volumes
from flows.cohort import export_many
from flows.cohort_pool import Job, Written, processes, written
from flows.export import export, opened_series, write
from model import open_decoded


@pytest.fixture
def home(finished) -> Workspace:
    return Workspace.open(finished)


def one(home: Workspace, modality: str):
    return next(row for row in home.catalog.series() if row.modality == modality)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("tier", ["volume", "codes"])
def test_dicom_is_read_by_pydicom_highdicom_simpleitk_and_turned_back_by_dcm2niix(home, tmp_path, modality, tier):
    highdicom = pytest.importorskip("highdicom")
    itk = pytest.importorskip("SimpleITK")
    row = one(home, modality)
    done = export(home, row.series, tmp_path / "dicom", tier)
    wanted = opened_series(home, row, tier).source.read()
    files = sorted((tmp_path / "dicom").iterdir())
    datasets = [pydicom.dcmread(path) for path in files]
    assert len(files) == wanted.slices and done.lossless == (tier == "volume")
    for dataset in datasets:
        assert dataset.ImageType[0] == "DERIVED" and dataset.PatientID == row.patient
        assert dataset.LossyImageCompression == ("00" if tier == "volume" else "01")
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID.startswith("2.25.")
        assert ("LossyImageCompressionRatio" in dataset) == (tier == "codes")
    volume = highdicom.get_volume_from_series(datasets)
    placed = volume.match_geometry(volume.permute_spatial_axes((0, 1, 2)))
    assert placed.spatial_shape == wanted.geometry.shape
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "dicom")))
    seen = itk.GetArrayFromImage(reader.Execute())
    assert np.allclose(np.sort(seen.ravel()), np.sort(wanted.values().ravel()), rtol=1e-4, atol=1e-3)
    if shutil.which("dcm2niix") is None:
        pytest.skip("no dcm2niix here (apt-get install dcm2niix)")
    (tmp_path / "back").mkdir()
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "x", "-o", str(tmp_path / "back"), str(tmp_path / "dicom")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    back = nibabel.as_closest_canonical(nibabel.load(next((tmp_path / "back").glob("*.nii"))))
    export(home, row.series, tmp_path / "ours.nii.gz", tier)
    ours = nibabel.as_closest_canonical(nibabel.load(tmp_path / "ours.nii.gz"))
    assert np.allclose(back.affine, ours.affine, atol=1e-2)
    assert np.allclose(back.get_fdata(), ours.get_fdata(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_dciodvfy_finds_no_error(home, tmp_path, modality):
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy here (apt-get install dicom3tools)")
    for tier in ("volume", "codes"):
        export(home, one(home, modality).series, tmp_path / tier, tier)
        first = sorted((tmp_path / tier).iterdir())[0]
        told = subprocess.run(["dciodvfy", "-new", str(first)], capture_output=True, text=True, timeout=60)
        lines = (told.stdout + told.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert any("IOD" in line or modality in line.upper() for line in lines)  # it has looked


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_dicom_validator_passes_every_slice(home, tmp_path, modality):
    if not dicom_tables.available():
        pytest.skip("no dicom-validator or no dicom-standard here (pip)")
    for tier in ("volume", "codes"):
        export(home, one(home, modality).series, tmp_path / tier, tier)
        for path in sorted((tmp_path / tier).iterdir()):
            assert dicom_tables.problems(pydicom.dcmread(path)) == []


def test_dicom_validator_sees_what_is_missing_and_what_is_too_many(home, tmp_path):
    if not dicom_tables.available():
        pytest.skip("no dicom-validator or no dicom-standard here (pip)")
    export(home, one(home, "PT").series, tmp_path / "pt", "volume")
    dataset = pydicom.dcmread(sorted((tmp_path / "pt").iterdir())[0])
    del dataset.Units
    dataset.SpacingBetweenSlices = 3
    found = dicom_tables.problems(dataset)
    assert any("(0054,1001) TagMissing" in line for line in found)
    assert any("(0018,0088) TagUnexpected" in line for line in found)


def test_a_region_is_the_crop_of_the_whole_in_voxels_and_in_place(home, tmp_path):
    row = one(home, "CT")
    for tier in ("volume", "codes"):
        export(home, row.series, tmp_path / f"{tier}.nii.gz", tier)
        export(home, row.series, tmp_path / f"{tier}-part.nii.gz", tier, roi="1:3,4:20,8:30")
        whole, part = nibabel.load(tmp_path / f"{tier}.nii.gz"), nibabel.load(tmp_path / f"{tier}-part.nii.gz")
        assert np.array_equal(part.get_fdata(), whole.get_fdata()[8:30, 4:20, 1:3])
        assert np.allclose(part.affine @ (0, 0, 0, 1), whole.affine @ (8, 4, 1, 1))


def test_codes_with_the_exact_layer_are_not_called_lossy(workspace, tmp_path):
    from flows.encode import encode

    row = one(Workspace.open(workspace), "CT")
    encode.fn(
        workspace=str(workspace),
        series=[row.series],
        settings=["cluster=inline", "gate.min_psnr=99", "gate.max_error=0"],
    )
    home = Workspace.open(workspace)
    row = home.catalog.one(row.series)
    assert StoredCodes(home.codes / row.series / row.codes_version).bounded is not None
    assert GateSettings(max_error=0).max_error == 0
    done = export(home, row.series, tmp_path / "exact", "codes")
    dataset = pydicom.dcmread(sorted((tmp_path / "exact").iterdir())[0])
    assert done.lossless and dataset.LossyImageCompression == "00" and "LossyImageCompressionRatio" not in dataset
    export(home, row.series, tmp_path / "exact.nii.gz", "codes")
    stored = open_volumes(workspace)[row.series].read()
    assert np.array_equal(nibabel.load(tmp_path / "exact.nii.gz").get_fdata().T, stored.values())
    coarse = export(home, row.series, tmp_path / "coarse", "codes", levels=1)
    assert not coarse.lossless
    assert pydicom.dcmread(sorted((tmp_path / "coarse").iterdir())[0]).LossyImageCompression == "01"


def test_png_shows_three_planes_and_says_whose_pixels_it_holds(home, tmp_path):
    row = one(home, "PT")
    export(home, row.series, tmp_path / "x.png")
    picture = Image.open(tmp_path / "x.png")
    assert picture.text["Comment"].startswith("Pixels are patient data")
    assert row.series in picture.text["Description"]
    pixels = np.asarray(picture)
    assert pixels.shape[1] > 2 * pixels.shape[0] and pixels.std() > 10


def test_an_upper_case_suffix_is_the_same_format(home, tmp_path):
    series = one(home, "MR").series
    for name in ("x.nii.gz", "y.NII.GZ", "x.nii", "y.NII", "x.png", "y.PNG"):
        export(home, series, tmp_path / name)
    for lower, upper in (("x.nii.gz", "y.NII.GZ"), ("x.nii", "y.NII"), ("x.png", "y.PNG")):
        assert (tmp_path / lower).read_bytes() == (tmp_path / upper).read_bytes()
    assert export(home, series, tmp_path / "y.OME.ZARR").bytes and (tmp_path / "y.OME.ZARR" / "zarr.json").exists()


@pytest.mark.parametrize("roi", [None, ":,2:30,:20"])
@pytest.mark.parametrize("tier", ["volume", "codes"])
def test_what_is_written_slab_by_slab_is_what_is_read_at_once(home, tier, roi):
    rows = home.catalog.series()
    assert {"CT", "MR", "PT"} <= {row.modality for row in rows}
    for row in rows:
        opened = opened_series(home, row, tier)
        whole = opened.source.read()
        region = regions.parse(roi, whole.voxels.shape) if roi else regions.whole(whole.voxels.shape)
        wanted = whole.voxels[(..., *region)]
        wanted = np.moveaxis(wanted, -4, -3) if "c" in whole.axes else wanted
        sliced = opened.sliced(roi)
        found = np.concatenate([slab for _, slab in sliced.slabs(1)])
        np.testing.assert_array_equal(found, wanted.reshape(found.shape))
        assert sliced.header.attributes() == regions.cropped(opened.source.attributes, region)


def test_writing_a_nifti_takes_no_second_copy_of_its_voxels(home, tmp_path):
    volume = opened_series(home, one(home, "CT"), "volume").source.read()
    tall = np.zeros((200, 256, 256), np.int16)
    geometry = replace(volume.geometry, shape=tall.shape)
    large = replace(volume, voxels=tall, geometry=geometry, slope=volume.slope[:1], intercept=volume.intercept[:1])
    tracemalloc.start()
    try:
        write_nifti(large, tmp_path / "x.nii")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < tall.nbytes / 8


def test_a_second_run_into_a_folder_is_told_to_wait(home, tmp_path):
    with Ledger(tmp_path), pytest.raises(TransientError) as caught:
        export_many(home, tmp_path, jobs=1)
    assert caught.value.code == "LEASED" and "another export" in str(caught.value)
    assert not list(tmp_path.glob("*.nii.gz"))


def test_a_foreign_sidecar_stays_and_keeps_its_image_away(home, tmp_path):
    first = export_many(home, tmp_path / "a", group="ct", naming="bids", jobs=1)
    sidecar = next((tmp_path / "a").rglob("sub-*/ct/*.json")).relative_to(tmp_path / "a")
    mine = tmp_path / "b" / sidecar
    mine.parent.mkdir(parents=True)
    mine.write_text("not voxbook's")
    done = export_many(home, tmp_path / "b", group="ct", naming="bids", jobs=1)
    assert mine.read_text() == "not voxbook's" and done.reasons == {"OCCUPIED": 1}
    assert done.counts["written"] == first.counts["written"] - 1
    assert not mine.with_suffix(".nii.gz").exists()


def test_ome_zarr_holds_what_was_decoded(home, tmp_path):
    row = one(home, "MR")
    export(home, row.series, tmp_path / "x.ome.zarr", "codes")
    import zarr

    group = zarr.open_group(tmp_path / "x.ome.zarr", mode="r")
    decoded = open_decoded(home)[row.series]
    assert np.array_equal(group["0"][...], decoded.read().values().astype(group["0"].dtype))
    assert group.attrs["voxbook"]["model"] == open_codes(home)[row.series].attributes["model"]


def test_many_are_written_side_by_side_and_found_done_the_next_time(home, tmp_path):
    first = export_many(home, tmp_path / "out", jobs=2)
    again = export_many(home, tmp_path / "out", jobs=2)
    rows = home.catalog.series()
    assert first.counts["written"] == len(rows) == again.counts["unchanged"] and again.counts["written"] == 0
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"{row.series}.nii.gz" for row in rows}


def test_what_is_not_ours_stays_and_other_options_replace_what_is(home, tmp_path):
    out = tmp_path / "out"
    export_many(home, out, group="ct", jobs=1)
    ours, changed = sorted(out.glob("*.nii.gz"))
    before = ours.read_bytes()
    changed.write_bytes(b"by hand")
    mine = out / f"{one(home, 'MR').series}.nii.gz"
    mine.write_text("not voxbook's")
    done = export_many(home, out, roi="0:1,0:8,0:8", jobs=1)
    assert changed.read_bytes() == b"by hand" and mine.read_text() == "not voxbook's"
    assert done.reasons == {"OCCUPIED": 2} and done.quarantined == 2
    assert ours.read_bytes() != before and nibabel.load(ours).shape == (8, 8, 1)


def test_an_export_that_fails_leaves_the_one_before(home, tmp_path, monkeypatch):
    export_many(home, tmp_path, group="ct", jobs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.nii.gz")}
    monkeypatch.setattr("flows.cohort_pool.export", _fail)
    done = export_many(home, tmp_path, group="ct", roi="0:1,0:8,0:8", jobs=1)
    assert done.reasons == {"UNEXPECTED": 2} and done.counts["written"] == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.nii.gz")} == before


def _fail(*_: object) -> None:
    raise MemoryError


def test_bids_names_hold_pseudonyms_and_every_file_has_its_sidecar(home, tmp_path):
    export_many(home, tmp_path, where="modality in (CT, PT)", naming="bids", format="nifti", jobs=1)
    described = json.loads((tmp_path / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["BIDSVersion"]
    images = sorted(tmp_path.rglob("*.nii.gz"))
    assert {path.parent.name for path in images} == {"ct", "pet"}
    for image in images:
        sidecar = json.loads(image.with_name(image.name.removesuffix(".nii.gz") + ".json").read_text())
        assert sidecar["series"].startswith(image.name.split("_acq-")[1].split("_")[0])


def test_wrong_wishes_are_refused_before_anything_is_written(home, tmp_path):
    series = one(home, "CT").series
    for out, options in (
        ("x.nrrd", {}),
        ("x.nii.gz", {"roi": "0:1"}),
        ("x.nii.gz", {"tier": "volume", "levels": 1}),
        ("no/such/folder.nii.gz", {}),
    ):
        with pytest.raises(ConfigError) as caught:
            export(home, series, tmp_path / out, **options)
        assert caught.value.code == "BAD_USAGE" and caught.value.hint
    with pytest.raises(ConfigError):
        export_many(home, tmp_path / "out", format="nrrd")
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_kills_its_worker_is_tried_alone_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.cohort_pool.write_one", _die_of_five)
    jobs = [
        Job(tmp_path, f"{n:032x}", tmp_path / f"{n}.part", tmp_path / f"{n}.nii.gz", str(n), "volume", None, None)
        for n in range(12)
    ]
    told = {done.job.series: done.code for done in written(iter(jobs), 2)}
    assert told == {job.series: "WORKER_KILLED" if int(job.series, 16) == 5 else "" for job in jobs}


def _die_of_five(job: Job) -> Written:
    if int(job.series, 16) == 5:
        os._exit(1)
    return Written(job)


def test_processes_end_with_the_run_that_started_them(tmp_path):
    code = (
        "import sys, time\n"
        "from flows.cohort_pool import _pool\n"
        "from os import getpid\n"
        "if __name__ == '__main__':\n"
        "    pool = _pool(1)\n"
        "    print(pool.submit(getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as run:
        worker = psutil.Process(int(run.stdout.readline()))
        assert worker.is_running()
        run.kill()
    assert worker.wait(timeout=30) is None or not worker.is_running()


def test_memory_bounds_how_many_are_written_side_by_side(monkeypatch):
    monkeypatch.setattr("flows.cohort_pool.cores", lambda: 8)
    found = []
    for memory in (2**34, 2**31, 2**28):
        monkeypatch.setattr("flows.cohort_pool.memory_bytes", lambda memory=memory: memory)
        found.append(processes())
    assert found == [8, 2, 1]


def test_the_deployment_writes_into_the_workspaces_exports(workspace):
    from flows.decode import decode

    done = decode.fn(workspace=str(workspace), out="cohort", group="ct", format="png", jobs=1, settings=[])
    names = {path.name for path in (workspace / "exports" / "cohort").glob("*.png")}
    assert names == {f"{row.series}.png" for row in Workspace.open(workspace).catalog.series(group="ct")}
    assert done.counts["written"] == len(names) and "written as png" in done.sentence


def test_the_ratio_of_all_levels_is_not_told_of_the_first_ones(home, tmp_path):
    row = one(home, "CT")
    stored = StoredCodes(home.codes / row.series / row.codes_version)
    whole = opened_series(home, row, "codes")
    assert whole.derived.ratio > 1
    assert opened_series(home, row, "codes", stored.levels).derived.ratio == whole.derived.ratio
    if stored.levels > 1:
        assert opened_series(home, row, "codes", 1).derived.ratio is None
    for number, opened in enumerate((whole, replace(whole, derived=replace(whole.derived, ratio=None), levels=1))):
        write(opened.sliced(None), tmp_path / f"{number}.nii", opened)
    told = [nibabel.load(tmp_path / f"{number}.nii").header["descrip"].item().decode() for number in (0, 1)]
    assert f"ratio {whole.derived.ratio:.3g}" in told[0]
    assert "ratio" not in told[1] and "levels 1 to 1" in told[1]

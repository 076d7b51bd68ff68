"""Folders: what is found, skipped and refused; nothing is lost; the real series equal their references."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter

import nibabel
import numpy as np
import pytest
from tiny import SERIES, save, save_all, tiny

from archive.errors import InputError
from archive.keys import Pseudonyms
from archive.nifti import write_nifti
from archive.plans import FileEntry
from archive.scan import read_series, scan

FILES = [
    ("notes.txt", b"hello", "SIDECAR"),
    ("LICENSE", b"hello", "SIDECAR"),
    ("dwi.bval", b"0 1000", "SIDECAR"),
    ("Thumbs.db", b"\0" * 200, "SIDECAR"),
    (".DS_Store", b"\0" * 200, "HIDDEN"),
    ("all.zip", b"PK\x03\x04" + b"\0" * 200, "TRUNCATED"),
    ("no-suffix", b"PK\x03\x04" + b"\0" * 200, "TRUNCATED"),
    ("all.tar", b"\0" * 600, "ARCHIVE_NOT_UNPACKED"),
    ("one.dcm.gz", b"\x1f\x8b" + b"\0" * 200, "ARCHIVE_NOT_UNPACKED"),
    ("empty.dcm", b"", "NOT_DICOM"),
    ("text.ima", b"hello" * 100, "NOT_DICOM"),
    ("picture.dcm", b"\x89PNG\r\n\x1a\n" + b"\0" * 200, "NOT_DICOM"),
    ("magic-only", b"\0" * 128 + b"DICM", "NOT_DICOM"),
    ("something.xyz", b"hello" * 100, "UNKNOWN_FORMAT"),
    ("nothing", b"", "UNKNOWN_FORMAT"),
]


@pytest.mark.parametrize(("name", "content", "outcome"), FILES, ids=[row[0] for row in FILES])
def test_every_file_has_an_outcome(tmp_path, name, content, outcome):
    (tmp_path / name).write_bytes(content)
    result = scan(tmp_path)
    assert not result.plans
    codes = [finding.code for finding in result.findings]
    assert codes + list(result.skipped) == [outcome]
    assert all(finding.kind == "file" and len(finding.key) == 32 for finding in result.findings)


CLASSES = [
    ("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"),
    ("RTPLAN", "1.2.840.10008.5.1.4.1.1.481.5"),
    ("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"),
    ("SR", "1.2.840.10008.5.1.4.1.1.88.33"),
    ("PR", "1.2.840.10008.5.1.4.1.1.11.1"),
    ("SEG", "1.2.840.10008.5.1.4.1.1.66.4"),
    ("WAVEFORM", "1.2.840.10008.5.1.4.1.1.9.1.1"),
    ("DICOMDIR", "1.2.840.10008.1.3.10"),
]


@pytest.mark.parametrize(("note", "uid"), CLASSES)
def test_objects_that_are_no_images_are_skipped(tmp_path, note, uid):
    save(tiny(0, Modality="OT", SOPClassUID=uid, PixelData=None), tmp_path / "one.dcm")
    result = scan(tmp_path)
    assert (result.skipped, result.plans, result.findings) == ({note: 1}, (), ())


def test_an_unknown_object_without_pixels_is_skipped(tmp_path):
    save(tiny(0, Modality="OT", SOPClassUID="1.2.3.4", PixelData=None), tmp_path / "one.dcm")
    assert scan(tmp_path).skipped == {"NO_PIXELS": 1}


def test_exclude_means_what_gitignore_means(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path / "in")
    save(tiny(0, SeriesInstanceUID=SERIES + ".2"), tmp_path / "deep" / "Ref" / "one.dcm")
    assert len(scan(tmp_path).plans) == 2
    assert len(scan(tmp_path, exclude=["**/Ref/**"]).plans) == 1
    result = scan(tmp_path, exclude=["*.dcm", "!one.dcm"])
    assert (len(result.plans), result.files) == (1, 1)


def test_links_out_of_the_root_and_devices_are_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    save_all([tiny(index) for index in range(3)], root)
    save(tiny(0, SeriesInstanceUID=SERIES + ".2"), outside / "one.dcm")
    (root / "out.dcm").symlink_to(outside / "one.dcm")
    (root / "outside").symlink_to(outside)
    (root / "round").symlink_to(root)
    (root / "gone.dcm").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    result = scan(root)
    assert (len(result.plans), len(result.findings), result.files) == (1, 0, 3)
    assert result.skipped == {"DEVICE": 1, "LINK": 4}


def test_one_file_is_a_source_too(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    (plan,) = scan(tmp_path / "001.dcm").plans
    assert plan.files == ("001.dcm",)
    assert read_series(plan).flags == ("SINGLE_SLICE",)


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises((InputError, OSError)):
        scan(tmp_path / "nowhere")


def test_an_empty_folder_is_empty(tmp_path):
    result = scan(tmp_path)
    assert (result.plans, result.findings, result.files, result.bytes) == ((), (), 0, 0)


def test_a_file_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        path = tmp_path / "proc"  # root may read everything but this
        path.symlink_to("/proc/self/mem")
        result = scan("/proc/self/mem")
    else:
        save(tiny(0), tmp_path / "one.dcm").chmod(0)
        result = scan(tmp_path)
    assert [finding.code for finding in result.findings] == ["UNREADABLE"]


def test_a_rescan_opens_only_what_changed(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    save(tiny(1), tmp_path / "copy.dcm")
    first = scan(tmp_path)
    assert first.opened == 4
    known = {entry.path: FileEntry.from_dict(json.loads(json.dumps(entry.as_dict()))) for entry in first.entries}
    again = scan(tmp_path, known=known)
    assert again.opened == 0
    assert (again.plans, again.findings) == (first.plans, first.findings)
    save(tiny(3), tmp_path / "003.dcm")
    third = scan(tmp_path, known=known)
    assert third.opened == 1
    assert third.plans[0].series == first.plans[0].series
    assert third.plans[0].fingerprint != first.plans[0].fingerprint


def test_plans_survive_pickling_and_know_their_size(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    (plan,) = scan(tmp_path).plans
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert (plan.voxels, plan.kind, plan.modality, plan.group) == (90, "dicom", "CT", "ct")
    assert plan.source_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_another_key_gives_other_pseudonyms(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    one, two = (scan(tmp_path, pseudonyms=Pseudonyms(key * 16)).plans[0] for key in (b"a", b"b"))
    assert one.series != two.series
    assert one.patient != two.patient
    assert one.fingerprint == two.fingerprint


def test_progress_is_told(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    calls = []
    scan(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def _accounted(result) -> set[str]:
    found = {path for plan in result.plans for path in (*plan.files, *plan.folded)}
    found |= {path for finding in result.findings for path in finding.paths}
    return found | {entry.path for entry in result.entries if entry.kind in ("skipped", "container")}


def test_nothing_of_the_real_series_is_lost(shared_data):
    result = scan(shared_data / "series", exclude=["**/Ref/**"])
    assert Counter(plan.modality for plan in result.plans) == {"CT": 3, "MR": 5, "PT": 2}
    assert [(finding.code, finding.files, finding.modality) for finding in result.findings] == [
        ("MISSING_SLICE", 14, "CT")
    ]
    assert result.skipped == {"RTSTRUCT": 4}
    assert _accounted(result) == {entry.path for entry in result.entries}
    assert sum(len(plan.files) for plan in result.plans) == 430
    mixed = [plan for plan in result.plans if plan.files[0].startswith("sts001_flat_mixed")]
    assert sorted(plan.modality for plan in mixed) == ["CT", "MR", "PT"]
    assert len({plan.patient for plan in mixed}) == 1


def test_nothing_of_the_training_data_is_lost(shared_data):
    result = scan(shared_data / "train")
    assert Counter(plan.group for plan in result.plans) == {"picture": 537, "nifti": 90, "ct": 1}
    assert (result.findings, result.skipped) == ((), {})
    assert len(_accounted(result)) == result.files == 707


@pytest.mark.parametrize("folder", ["robustness", "codecs", "multiframe", "pairs", "projection_us"])
def test_hostile_and_odd_files_all_have_an_outcome(shared_data, folder):
    result = scan(shared_data / folder)
    assert _accounted(result) == {entry.path for entry in result.entries}
    for plan in result.plans:
        try:
            read_series(plan)
        except InputError as error:
            assert error.code in ("DECODE_FAILED", "TRUNCATED")


ROBUSTNESS = [
    ("derived_ct_missing_slice", 0, ["MISSING_SLICE"]),
    ("derived_ct_duplicates", 1, []),
    ("dicom2nifti_sliceorientation", 2, []),
    ("dicom2nifti_gantrytilting", 1, []),
]


@pytest.mark.parametrize(("folder", "plans", "codes"), ROBUSTNESS)
def test_defects_of_real_series(shared_data, folder, plans, codes):
    result = scan(shared_data / "robustness" / folder)
    assert len(result.plans) == plans
    assert [finding.code for finding in result.findings] == codes
    if folder == "derived_ct_duplicates":
        assert len(result.plans[0].files) == 12
        assert result.plans[0].folded == ("s004_copy.dcm", "s004_resent.dcm")
    if folder == "dicom2nifti_gantrytilting":
        assert "TILTED" in result.plans[0].details["flags"]


JUNK = {
    "NOT_DICOM": 5,
    "BAD_HEADER": 2,
    "NO_GEOMETRY": 2,
    "NO_PIXELS": 1,
    "NO_SERIES_UID": 1,
    "TRUNCATED": 2,
}


def test_junk_is_refused_with_reasons(shared_data):
    result = scan(shared_data / "robustness" / "derived_junk")
    assert Counter(finding.code for finding in result.findings) == JUNK
    assert result.skipped == {"SIDECAR": 2}
    (without_uid,) = result.plans  # all that it lacks is the SeriesInstanceUID
    assert "NO_SERIES_UID" in without_uid.details["flags"]


def test_the_breast_series_is_time_not_48_slices(shared_data):
    (plan,) = scan(shared_data / "series" / "mr_breast_dce_ucsf06").plans
    volume = read_series(plan)
    assert (volume.axes, volume.voxels.shape) == ("tzyx", (3, 16, 256, 256))
    assert [frame["time_s"] for frame in volume.frames] == [0, 407, 761]


def test_uptake_is_computable_for_the_raw_pet(shared_data):
    (plan,) = scan(shared_data / "series" / "pet_sts001_fdg_raw").plans
    volume = read_series(plan)
    assert len(volume.slope) == 90
    assert volume.acquisition["suv_factor"] == pytest.approx(2.429e-4, rel=1e-3)
    assert volume.units == "Bq/ml"


REFERENCES = [
    ("sts001_flat_mixed", "CT", "CT.nii.gz"),
    ("sts001_flat_mixed", "MR", "MR_T1.nii.gz"),
    ("sts001_flat_mixed", "PT", "PET.nii.gz"),
    ("ct_ibsi_lung_phantom", "CT", "phantom.nii.gz"),
]


def _canonical(plan, folder) -> nibabel.Nifti1Image:
    write_nifti(read_series(plan), folder / "out.nii.gz")
    return nibabel.as_closest_canonical(nibabel.load(folder / "out.nii.gz"))


@pytest.mark.parametrize(("name", "modality", "reference"), REFERENCES)
def test_the_references_of_dcm2niix_are_equal(shared_data, tmp_path, name, modality, reference):
    (plan,) = (p for p in scan(shared_data / "series" / name / "dicom").plans if p.modality == modality)
    ours = _canonical(plan, tmp_path)
    theirs = nibabel.as_closest_canonical(nibabel.load(shared_data / "series" / name / "Ref" / reference))
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
    assert np.allclose(ours.affine, theirs.affine, atol=1e-3)


FINGERPRINTS = [
    "ct_lidc_chest",
    "pet_sts001_fdg_raw",
    "mr_breast_dce_ucsf06",
    "mr_adc_cmbcrc_scan1",
    "mr_t1_7t_studyforrest",
    "mr_pd_oblique_papaya",
]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_fingerprints_of_dcm2niix_are_equal(shared_data, tmp_path, name):
    entries = json.loads((shared_data / "manifest.json").read_text())["entries"]
    (entry,) = (entry for entry in entries if entry["path"] == f"series/{name}")
    (expected,) = entry["dcm2niix_outputs"]
    (plan,) = scan(shared_data / "series" / name).plans
    ours = _canonical(plan, tmp_path)
    data = np.ascontiguousarray(ours.get_fdata(dtype=np.float32)).astype("<f4")
    assert list(data.shape) == expected["canonical_shape"]
    assert (data.min(), data.max()) == pytest.approx((expected["min"], expected["max"]))
    assert data.mean(dtype=np.float64) == pytest.approx(expected["mean"], rel=1e-9)
    assert hashlib.sha256(data.tobytes()).hexdigest() == expected["canonical_f4_sha256"]
    # dcm2niix takes the slice step from the first two slices, whose positions this series rounds to 0.1 mm; ours is
    # the mean step from the first to the last.
    tolerance = 0.05 if name == "mr_pd_oblique_papaya" else 1e-3
    assert np.allclose(ours.affine, expected["canonical_affine"], atol=tolerance)

"""Grouping, splitting, time and geometry: what becomes a plan, and the reason for what does not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import SecondaryCaptureImageStorage, VLWholeSlideMicroscopyImageStorage
from tiny import SERIES, save, save_all, stored, tiny

from archive.scan import read_series, scan
from archive.settings import IngestSettings


def found(folder: Path, **options: Any) -> list[str]:
    """The reason codes of a folder, and 'plan' per plan."""
    result = scan(folder, **options)
    return sorted(["plan"] * len(result.plans) + [finding.code for finding in result.findings])


def heights(*values: float) -> list[Any]:
    """Slices at these positions in mm."""
    return [tiny(index, ImagePositionPatient=[0, 0, value]) for index, value in enumerate(values)]


def repeated(times: int, positions: int = 3, **by_time: Any) -> list[Any]:
    """`times` images at each position; by_time: keyword = function of (t, z)."""
    slices = []
    for t in range(times):
        for z in range(positions):
            changes = {keyword: value(t, z) for keyword, value in by_time.items()}
            changes.setdefault("InstanceNumber", 1)
            number = t * positions + z
            place = [0, 0, 2.0 * z]
            slices.append(tiny(number, Modality="MR", ImagePositionPatient=place, **changes))
    return slices


REFUSED = [
    ("UNSUPPORTED_MODALITY", {"SOPClassUID": VLWholeSlideMicroscopyImageStorage}),
    ("TRUNCATED", {"NumberOfFrames": 2}),
    ("TRUNCATED", {"NumberOfFrames": 2**31 - 1}),
    ("BAD_HEADER", {"NumberOfFrames": -3}),
    ("MULTIFRAME", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
    ("SECONDARY_CAPTURE", {"SOPClassUID": SecondaryCaptureImageStorage}),
    ("BURNED_IN", {"BurnedInAnnotation": "YES"}),
    ("NO_SERIES_UID", {"SOPInstanceUID": None}),
    ("NO_PIXELS", {"PixelData": None}),
    ("BAD_HEADER", {"Rows": None}),
    ("BAD_HEADER", {"Rows": 0}),
    ("BAD_HEADER", {"BitsAllocated": None}),
    ("BAD_HEADER", {"BitsStored": 17}),
    ("BAD_HEADER", {"HighBit": 3}),
    ("BAD_HEADER", {"PixelRepresentation": 7}),
    ("BAD_HEADER", {"PhotometricInterpretation": None}),
    ("BAD_HEADER", {"Rows": 3}),  # twice as many pixels as the header says
    ("TRUNCATED", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
    ("BAD_HEADER", {"SamplesPerPixel": 3}),
    ("UNSUPPORTED_PIXELS", {"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63}),
    ("TRUNCATED", {"Rows": 60}),
    ("NON_FINITE", {"RescaleSlope": 0}),
    ("NO_GEOMETRY", {"ImagePositionPatient": None}),
    ("NO_GEOMETRY", {"ImageOrientationPatient": None}),
    ("NO_GEOMETRY", {"PixelSpacing": None}),
    ("NO_GEOMETRY", {"PixelSpacing": [0, 1]}),
    ("NO_GEOMETRY", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
]


@pytest.mark.parametrize(("code", "changes"), REFUSED, ids=[f"{code}-{'-'.join(what)}" for code, what in REFUSED])
def test_every_refusal_has_its_reason(tmp_path, code, changes):
    save_all([tiny(index, **changes) for index in range(3)], tmp_path)
    result = scan(tmp_path)
    assert not result.plans
    assert {finding.code for finding in result.findings} == {code}
    assert sum(finding.files for finding in result.findings) == 3


STACKS = [
    ("plan", heights(0, 2, 4, 6)),
    ("plan", heights(0, 2, 4.05, 6)),  # within 5 %
    ("plan", heights(6, 0, 4, 2)),
    ("plan", heights(3)),
    ("MISSING_SLICE", heights(0, 2, 4, 8, 10)),
    ("MISSING_SLICE", heights(0, 2, 4, 7, 9)),
    ("IRREGULAR_SPACING", heights(0, 2, 4.5, 6, 8)),
    ("DUPLICATE_POSITION", heights(0, 2, 2, 4)),
    ("DUPLICATE_POSITION", heights(0, 0, 2, 2)),  # CT, and nothing but InstanceNumber tells them apart
]


@pytest.mark.parametrize(("outcome", "slices"), STACKS)
def test_positions_decide(tmp_path, outcome, slices):
    assert found(save_all(slices, tmp_path)) == [outcome]


def test_a_shift_sideways_is_irregular(tmp_path):
    slices = heights(0, 2, 4, 6)
    slices[2].ImagePositionPatient = [1.5, 0, 4]
    assert found(save_all(slices, tmp_path)) == ["IRREGULAR_SPACING"]


def test_what_was_measured_is_kept(tmp_path):
    (finding,) = scan(save_all(heights(0, 2, 4, 8, 10), tmp_path)).findings
    assert finding.numbers == {"median_mm": 2.0, "gap_mm": 4.0, "least_mm": 2.0}
    assert (finding.kind, finding.files, finding.modality, len(finding.key)) == ("series", 5, "CT", 32)


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ({"burned_in": "accept"}, {"BurnedInAnnotation": "YES"}),
        ({"secondary_capture": "accept"}, {"SOPClassUID": SecondaryCaptureImageStorage}),
        ({"spacing_tolerance": 0.3}, None),
    ],
)
def test_settings_let_in_what_is_refused(tmp_path, setting, changes):
    slices = heights(0, 2, 4.5, 6, 8) if changes is None else [tiny(index, **changes) for index in range(3)]
    save_all(slices, tmp_path)
    assert found(tmp_path) != ["plan"]
    assert found(tmp_path, settings=IngestSettings(**setting)) == ["plan"]


def test_a_series_beyond_the_limit_is_too_large(tmp_path):
    save_all([tiny(index) for index in range(3)], tmp_path)
    assert found(tmp_path, settings=IngestSettings(max_series_bytes=3 * 60 - 1)) == ["TOO_LARGE"]
    assert found(tmp_path, settings=IngestSettings(max_series_bytes=3 * 60)) == ["plan"]


def test_geometry_is_exact_and_lps(tmp_path):
    (plan,) = scan(save_all([tiny(index) for index in (2, 0, 1)], tmp_path)).plans
    volume = read_series(plan)
    assert volume.geometry.affine == ((0, 0, 0.75, -10), (0, 0.5, 0, -20), (2, 0, 0, 30), (0, 0, 0, 1))
    assert volume.voxels.dtype == np.uint16
    assert np.array_equal(volume.voxels, [stored(0), stored(1), stored(2)])
    assert (volume.units, volume.slope, volume.intercept, volume.flags) == ("HU", (1.0,), (-1024.0,), ("FEW_SLICES",))


def test_a_tilted_gantry_keeps_its_shear(tmp_path):
    slices = [tiny(index, ImagePositionPatient=[0, 0.6 * index, 2.0 * index]) for index in range(4)]
    (plan,) = scan(save_all(slices, tmp_path)).plans
    geometry = read_series(plan).geometry
    assert np.allclose(geometry.matrix[:3, 0], [0, 0.6, 2.0])
    assert geometry.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.3)))
    assert "TILTED" in plan.details["flags"]


def test_uneven_positions_within_tolerance_are_kept_exactly(tmp_path):
    (plan,) = scan(save_all(heights(0, 2, 4.05, 6), tmp_path)).plans
    geometry = read_series(plan).geometry
    assert geometry.positions_mm == pytest.approx((0, 2, 4.05, 6))
    assert "SPACING_VARIES" in plan.details["flags"]


SPLITS = [
    {"Rows": 5, "Columns": 6},
    {"PixelSpacing": [0.5, 0.8]},
    {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    {"BitsStored": 13, "HighBit": 12},
    {"PhotometricInterpretation": "MONOCHROME1"},
    {"ConvolutionKernel": "BONE"},
    {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    {"RescaleType": "US"},
]


@pytest.mark.parametrize("changes", SPLITS, ids=lambda changes: next(iter(changes)))
def test_what_cannot_share_a_grid_comes_apart(tmp_path, changes):
    first = [tiny(index) for index in range(3)]
    other = [tiny(10 + index, **changes) for index in range(3)]
    before = scan(save_all(first, tmp_path)).plans
    for number, dataset in enumerate(other):
        save(dataset, tmp_path / "more" / f"{number}.dcm")
    after = scan(tmp_path).plans
    if "ImageOrientationPatient" in changes:
        assert len(after) + len(scan(tmp_path).findings) > 1
    else:
        assert len(after) == 2
    assert before[0].series in {plan.series for plan in after}  # a later part renames nothing


@pytest.mark.parametrize("echoes", [(4.0, 9.0), (2.3, 2.5)])
def test_echoes_and_components_of_mr_come_apart(tmp_path, echoes):
    slices = repeated(2, EchoTime=lambda t, z: echoes[t])
    slices += [tiny(90 + z, Modality="MR", ImageType="ORIGINAL\\PRIMARY\\P", EchoTime=4.0) for z in range(3)]
    assert found(save_all(slices, tmp_path)) == ["plan"] * 3


def test_rounding_of_an_exporter_does_not_split(tmp_path):
    slices = [tiny(index) for index in range(4)]
    slices[1].ImageOrientationPatient = [0.9999996, 0.0004999, 0, -0.0005001, 1, 0]
    slices[2].PixelSpacing = [0.50004, 0.74996]
    assert found(save_all(slices, tmp_path)) == ["plan"]


TIMES = [
    ("TemporalPositionIdentifier", {"TemporalPositionIdentifier": lambda t, z: t + 1}, {"temporal_position"}),
    ("TriggerTime", {"TriggerTime": lambda t, z: 40.0 * t + z}, {"time_s"}),
    ("b-value", {"DiffusionBValue": lambda t, z: 500.0 * t}, {"b_value"}),
    ("AcquisitionTime", {"AcquisitionTime": lambda t, z: f"10{t:02d}{z:02d}"}, {"time_s"}),
    ("ContentTime", {"ContentTime": lambda t, z: f"10{t:02d}00.5"}, {"time_s"}),
    ("AcquisitionNumber", {"AcquisitionNumber": lambda t, z: t + 1}, set()),
    ("InstanceNumber by time", {"InstanceNumber": lambda t, z: 3 * t + z + 1}, set()),
    ("InstanceNumber by position", {"InstanceNumber": lambda t, z: 4 * z + t + 1}, set()),
]


@pytest.mark.parametrize(("changes", "keys"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES])
def test_repeated_positions_become_time(tmp_path, changes, keys):
    slices = repeated(4, **changes)
    (plan,) = scan(save_all(list(reversed(slices)), tmp_path)).plans
    volume = read_series(plan)
    assert volume.axes == "tzyx"
    expected = [[stored(t * 3 + z) for z in range(3)] for t in range(4)]
    assert np.array_equal(volume.voxels, expected)
    assert set().union(*volume.frames) == keys
    if "time_s" in keys:
        times = [frame["time_s"] for frame in volume.frames]
        assert times[0] == 0.0
        assert times == sorted(times)
        assert times[1] > 0


def test_blank_slices_of_a_time_series_are_not_taken_for_copies(tmp_path):
    slices = repeated(3, 4, InstanceNumber=lambda t, z: 4 * t + z + 1)
    for dataset in slices[::4]:
        dataset.PixelData = bytes(60)
    (plan,) = scan(save_all(slices, tmp_path)).plans
    assert read_series(plan).voxels.shape == (3, 4, 6, 5)


def test_a_series_sent_twice_is_one(tmp_path):
    slices = [tiny(index, Modality="MR") for index in range(3)]
    slices += [
        tiny(index, Modality="MR", SOPInstanceUID=f"{SERIES}.9{index}", InstanceNumber=50 + index) for index in range(3)
    ]
    (plan,) = scan(save_all(slices, tmp_path)).plans
    assert len(plan.files) == len(plan.folded) == 3


def test_time_without_any_order_is_refused(tmp_path):
    assert found(save_all(repeated(2), tmp_path)) == ["DUPLICATE_POSITION"]


def test_a_time_point_that_misses_a_slice_is_refused(tmp_path):
    slices = repeated(3, 10, TemporalPositionIdentifier=lambda t, z: t + 1)
    assert found(save_all(slices[:-1], tmp_path)) == ["MISSING_SLICE"]


def test_copies_fold(tmp_path):
    slices = [tiny(index) for index in range(3)]
    save_all(slices, tmp_path)
    save(tiny(1), tmp_path / "copy.dcm")
    save(tiny(1, SOPInstanceUID=SERIES + ".77", InstanceNumber=9), tmp_path / "resent.dcm")
    (plan,) = scan(tmp_path).plans
    assert len(plan.files) == 3
    assert "DUPLICATES_FOLDED" in plan.details["flags"]
    assert np.array_equal(read_series(plan).voxels[1], stored(1))


@pytest.mark.parametrize("changes", [{"pixels": stored(5)}, {"ImagePositionPatient": [0, 0, 50]}])
def test_one_uid_for_two_images_is_a_conflict(tmp_path, changes):
    save_all([tiny(index) for index in range(3)], tmp_path)
    save(tiny(1, **changes), tmp_path / "other.dcm")
    assert found(tmp_path) == ["UID_CONFLICT"]


def test_one_damaged_file_refuses_its_grid_and_no_other(tmp_path):
    save_all([tiny(index) for index in range(4)], tmp_path)
    save_all([tiny(index, SeriesInstanceUID=SERIES + ".2") for index in range(4)], tmp_path / "fine")
    whole = (tmp_path / "003.dcm").read_bytes()
    (tmp_path / "003.dcm").write_bytes(whole[:-7])  # the last slice: without it the rest would look complete
    assert found(tmp_path) == ["TRUNCATED", "plan"]


def test_scales_that_vary_stay_with_their_slices(tmp_path):
    slices = [tiny(index, Modality="PT", Units="BQML", RescaleSlope=0.5 + index) for index in range(3)]
    for dataset in slices:
        dataset.RescaleIntercept = 0
    (plan,) = scan(save_all(slices, tmp_path)).plans
    volume = read_series(plan)
    assert volume.slope == (0.5, 1.5, 2.5)
    assert np.allclose(volume.values()[2], stored(2) * 2.5)
    assert volume.units == "Bq/ml"


def test_without_a_series_uid_what_is_there_groups(tmp_path):
    save_all([tiny(index, SeriesInstanceUID=None, StudyInstanceUID="1.2") for index in range(3)], tmp_path)
    others = [tiny(10 + index, SeriesInstanceUID=None, StudyInstanceUID="1.3") for index in range(3)]
    save_all(others, tmp_path / "other")
    plans = scan(tmp_path).plans
    assert [len(plan.files) for plan in plans] == [3, 3]
    assert len({plan.series for plan in plans}) == 2
    assert all("NO_SERIES_UID" in plan.details["flags"] for plan in plans)


def test_files_without_patient_are_one_patient_each_series(tmp_path):
    save_all([tiny(index, PatientID=None) for index in range(3)], tmp_path)
    save_all([tiny(index, PatientID=None, SeriesInstanceUID=SERIES + ".2") for index in range(3)], tmp_path / "b")
    save_all([tiny(index, SeriesInstanceUID=SERIES + ".3") for index in range(3)], tmp_path / "c")
    save_all([tiny(index, SeriesInstanceUID=SERIES + ".4") for index in range(3)], tmp_path / "d")
    plans = scan(tmp_path).plans
    assert len(plans) == 4
    assert len({plan.patient for plan in plans}) == 3


def test_nothing_of_the_source_is_in_what_is_printed(tmp_path):
    folder = save_all([tiny(index, PatientID="Doe^Jane") for index in range(3)], tmp_path / "secret-place")
    save(tiny(0, SeriesInstanceUID=SERIES + ".9", Rows=None), folder / "bad.dcm")
    result = scan(folder)
    text = repr(result.plans) + repr(result.findings)
    assert len(result.plans) == len(result.findings) == 1
    assert not any(token in text for token in ("Doe", SERIES, "secret-place", ".dcm"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), folders=st.lists(st.sampled_from("ab"), min_size=8, max_size=8))
def test_any_order_and_any_split_over_folders_gives_the_same_plan(order, folders):
    slices = repeated(2, 4, AcquisitionTime=lambda t, z: f"1{t}0000")
    with tempfile.TemporaryDirectory() as place:
        for number, (which, folder) in enumerate(zip(order, folders, strict=True)):
            save(slices[which], Path(place, folder, f"{number}.dcm"))
        (plan,) = scan(place).plans
        volume = read_series(plan)
    assert plan.details == _expected().details
    assert (plan.series, plan.patient, plan.group) == (_expected().series, _expected().patient, "mr")
    assert np.array_equal(volume.voxels.reshape(8, 6, 5), [stored(index) for index in range(8)])


def _expected() -> Any:
    slices = repeated(2, 4, AcquisitionTime=lambda t, z: f"1{t}0000")
    with tempfile.TemporaryDirectory() as place:
        (plan,) = scan(save_all(slices, Path(place))).plans
    return plan


def test_two_tube_voltages_are_two_grids_and_not_two_times(tmp_path):
    files = []
    for number, (index, kvp) in enumerate((index, kvp) for kvp in (80, 140) for index in range(4)):
        clock = f"1200{10 * (kvp == 140):02d}"
        files.append(
            tiny(index, KVP=kvp, AcquisitionTime=clock, InstanceNumber=number, SOPInstanceUID=f"1.2.3.{number}")
        )
    save_all(files, tmp_path)
    plans = scan(tmp_path).plans
    assert sorted(plan.details["acquisition"]["kvp"] for plan in plans) == [80, 140]
    assert [plan.details["axes"] for plan in plans] == ["zyx", "zyx"]


def test_images_of_several_energies_are_told_apart_by_image_type_and_energy(tmp_path):
    """Monoenergetic images of two energies, and a map, of one acquisition: value 4 of ImageType, (0018,937C)."""
    kinds = [("VMI", 50.0), ("VMI", 70.0), ("EFF_ATOMIC_NUM", None)]
    files = [
        tiny(
            index,
            ImageType=["DERIVED", "PRIMARY", "AXIAL", kind],
            MonoenergeticEnergyEquivalent=energy,
            SOPInstanceUID=f"1.2.3.{number}.{index}",
            AcquisitionNumber=number,
        )
        for number, (kind, energy) in enumerate(kinds)
        for index in range(4)
    ]
    save_all(files, tmp_path)
    result = scan(tmp_path)
    assert result.findings == ()
    assert [plan.details["axes"] for plan in result.plans] == ["zyx"] * 3
    energies = {plan.details["acquisition"].get("monoenergetic_kev") for plan in result.plans}
    assert energies == {50.0, 70.0, None}


def test_other_words_in_image_type_of_ct_split_nothing(tmp_path):
    files = [tiny(index, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", f"CT_SOM{index}"]) for index in range(4)]
    (plan,) = scan(save_all(files, tmp_path)).plans
    assert len(plan.files) == 4


@pytest.mark.parametrize(("maker", "ordered"), [("CANON_MEC", True), ("TOSHIBA", True), ("SIEMENS", False)])
def test_canon_states_no_b_value_where_it_is_zero(tmp_path, maker, ordered):
    files = [
        tiny(
            index,
            Modality="MR",
            Manufacturer=maker,
            DiffusionBValue=b or None,
            SOPInstanceUID=f"1.2.3.{int(b)}.{index}",
            InstanceNumber=(7 * (index + int(b))) % 11,
            pixels=stored(index + int(b) // 100),  # else they would fold as copies
        )
        for b in (1000.0, 0.0)
        for index in range(4)
    ]
    plans = scan(save_all(files, tmp_path)).plans
    if ordered:
        assert [frame["b_value"] for frame in plans[0].details["frames"]] == [0.0, 1000.0]
    else:
        frames = [frame for plan in plans for frame in plan.details["frames"]]
        assert frames and all("b_value" not in frame for frame in frames)


def test_one_uid_for_two_patients_is_a_conflict(tmp_path):
    both = [tiny(index, PatientID=f"P{index // 2}") for index in range(4)]
    assert found(save_all(both, tmp_path / "two")) == ["UID_CONFLICT"]
    some = [tiny(index, PatientID="P0" if index else "") for index in range(4)]  # a name is missing: no other person
    assert len(scan(save_all(some, tmp_path / "one")).plans) == 1

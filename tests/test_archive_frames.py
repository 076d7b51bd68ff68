"""Images inside of files: enhanced objects, nuclear medicine, cine, and numbers of frames that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    NuclearMedicineImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from tiny import SERIES, save, save_all, stored, tiny

from archive.frames import expand, misfit
from archive.headers import read_header
from archive.scan import read_series, scan
from archive.volume import Volume

PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope")


def group(**values: Any) -> Dataset:
    """A dataset of these values; a dict becomes a sequence of one item."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, [group(**value)] if isinstance(value, dict) else value)
    return dataset


def multiframe(count: int, **changes: Any) -> Dataset:
    """`count` frames, the pixels of `stored(0)`, `stored(1)`, ...; nothing says where they lie."""
    pixels = np.stack([stored(index) for index in range(count)])
    changes = dict.fromkeys((*PLACED, "RescaleIntercept")) | changes
    return tiny(0, pixels=pixels, NumberOfFrames=count, **changes)


def enhanced(frames: list[dict[str, Any]], shared: dict[str, Any] | None = None, **changes: Any) -> Dataset:
    """An Enhanced MR with these functional groups for each frame."""
    kept = {"SOPClassUID": EnhancedMRImageStorage, "Modality": "MR", **changes}
    dataset = multiframe(len(frames), **kept)
    everywhere = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        "PixelMeasuresSequence": {"PixelSpacing": [0.5, 0.75], "SliceThickness": 2},
        **(shared or {}),
    }
    dataset.SharedFunctionalGroupsSequence = [group(**everywhere)]
    dataset.PerFrameFunctionalGroupsSequence = [group(**frame) for frame in frames]
    return dataset


def at(z: float, **more: Any) -> dict[str, Any]:
    """The functional groups of a frame at this height."""
    return {"PlanePositionSequence": {"ImagePositionPatient": [-10, -20, z]}, **more}


def volumes(folder: Path, **options: Any) -> list[Volume]:
    """All volumes of a folder; nothing may be refused."""
    result = scan(folder, **options)
    assert not result.findings
    return [read_series(plan) for plan in result.plans]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)))
def test_frames_in_any_order_give_one_volume(tmp_path, order):
    save(enhanced([at(30.0 + 2 * place) for place in order]), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.geometry.affine == ((0, 0, 0.75, -10), (0, 0.5, 0, -20), (2, 0, 0, 30), (0, 0, 0, 1))
    assert np.array_equal(volume.voxels, [stored(order.index(place)) for place in range(6)])


def test_what_a_frame_says_goes_before_what_all_say(tmp_path):
    scaled = [
        at(2.0 * z, PixelValueTransformationSequence={"RescaleSlope": 1 + z, "RescaleIntercept": 0})
        for z in (0, 1, 2, 3)
    ]
    shared = {"MREchoSequence": {"EffectiveEchoTime": 12.5}, "CardiacSynchronizationSequence": {}}
    save(enhanced(scaled, shared), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.slope == (1, 2, 3, 4)
    assert volume.acquisition["echo_time_ms"] == 12.5
    assert volume.acquisition["slice_thickness_mm"] == 2


TIMES = [
    (lambda t: {"FrameContentSequence": {"TemporalPositionIndex": t + 1}}, "temporal_position"),
    (lambda t: {"TemporalPositionSequence": {"TemporalPositionTimeOffset": 0.25 * t}}, "time_s"),
    (lambda t: {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": 40.0 * t}}, "time_s"),
    (lambda t: {"MRDiffusionSequence": {"DiffusionBValue": 500.0 * t}}, "b_value"),
    (lambda t: {"FrameContentSequence": {"FrameAcquisitionDateTime": f"2020010110{t:02d}00.5"}}, "time_s"),
]


@pytest.mark.parametrize(("says", "key"), TIMES)
def test_time_phase_and_diffusion_of_frames_become_t(tmp_path, says, key):
    frames = [at(2.0 * z, **says(t)) for z in range(4) for t in range(3)]
    save(enhanced(frames), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.axes == "tzyx"
    assert np.array_equal(volume.voxels, [[stored(3 * z + t) for z in range(4)] for t in range(3)])
    values = [frame[key] for frame in volume.frames]
    assert values == sorted(set(values))


def test_the_dimension_index_orders_what_nothing_else_does(tmp_path):
    frames = [
        at(2.0 * z, FrameContentSequence={"DimensionIndexValues": [z + 1, 3 - t], "InStackPositionNumber": z + 1})
        for t in range(3)
        for z in range(4)
    ]
    dataset = enhanced(frames)
    dataset.DimensionIndexSequence = [group(DimensionIndexPointer=tag) for tag in (0x00209057, 0x00189087)]
    save(dataset, tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert np.array_equal(volume.voxels[0], [stored(8 + z) for z in range(4)])


def test_directions_of_diffusion_are_kept(tmp_path):
    def diffusion(t: int) -> dict[str, Any]:
        values: dict[str, Any] = {"DiffusionBValue": 1000.0 if t else 0.0}
        if t:
            values["DiffusionGradientDirectionSequence"] = {"DiffusionGradientOrientation": [0.0, t - 1.0, 2.0 - t]}
        return {"MRDiffusionSequence": values, "FrameContentSequence": {"TemporalPositionIndex": t + 1}}

    save(enhanced([at(2.0 * z, **diffusion(t)) for z in range(4) for t in range(3)]), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    found = [(frame["b_value"], frame.get("direction_p"), frame.get("direction_s")) for frame in volume.frames]
    assert found == [(0.0, None, None), (1000.0, 0.0, 1.0), (1000.0, 1.0, 0.0)]


def test_frames_of_other_meaning_come_apart(tmp_path):
    kinds = [{"FrameType": ["ORIGINAL", "PRIMARY", "T1", name]} for name in ("M", "FIELD_MAP")]
    frames = [at(2.0 * z, MRImageFrameTypeSequence=kind) for kind in kinds for z in range(4)]
    save(enhanced(frames), tmp_path / "one.dcm")
    first, second = sorted(volumes(tmp_path), key=lambda volume: int(volume.voxels.min()))
    assert np.array_equal(first.voxels, [stored(z) for z in range(4)])
    assert np.array_equal(second.voxels, [stored(4 + z) for z in range(4)])


def test_stacks_in_two_places_come_apart_and_in_one_are_time(tmp_path):
    def stacks(shift: float) -> Dataset:
        return enhanced(
            [at(2.0 * z + shift * n, FrameContentSequence={"StackID": str(n)}) for n in range(2) for z in range(4)]
        )

    save(stacks(100.0), tmp_path / "apart" / "one.dcm")
    save(stacks(0.0), tmp_path / "once more" / "one.dcm")
    assert [volume.axes for volume in volumes(tmp_path / "apart")] == ["zyx", "zyx"]
    assert [volume.axes for volume in volumes(tmp_path / "once more")] == ["tzyx"]


def test_volumes_in_files_of_their_own_become_time(tmp_path):
    for t in range(3):
        frames = [at(2.0 * z, FrameContentSequence={"TemporalPositionIndex": t + 1}) for z in range(4)]
        save(enhanced(frames, SOPInstanceUID=f"{SERIES}.{t}"), tmp_path / f"{9 - t}.dcm")
    (plan,) = scan(tmp_path).plans
    assert len(plan.files) == 3
    assert len(plan.images) == 12
    assert read_series(plan).voxels.shape == (3, 4, 6, 5)


def test_an_enhanced_pet_states_its_units_and_its_decay_in_other_words(tmp_path):
    scale = {"RescaleSlope": 2, "RescaleIntercept": 0, "RescaleType": "BQML"}
    dose = {"RadionuclideTotalDose": 350e6, "RadionuclideHalfLife": 6586.2}
    dose["RadiopharmaceuticalStartDateTime"] = "20200101100000"
    dataset = enhanced(
        [at(2.0 * z) for z in range(4)],
        {"PixelValueTransformationSequence": scale},
        SOPClassUID=EnhancedPETImageStorage,
        Modality="PT",
        PatientWeight=70,
        DecayCorrected="YES",
        AttenuationCorrected="YES",
        DecayCorrectionDateTime="20200101110000",
    )
    dataset.RadiopharmaceuticalInformationSequence = [group(**dose)]
    save(dataset, tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.units == "Bq/ml"
    assert volume.acquisition["suv_factor"] == pytest.approx(70_000 / (350e6 * 2 ** (-3600 / 6586.2)))


def test_philips_values_are_comparable_between_series(tmp_path):
    slices = [tiny(z, Modality="MR", RescaleSlope=2, RescaleIntercept=-10, Manufacturer="Philips") for z in range(3)]
    for dataset in slices:
        block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.25)
    (volume,) = volumes(save_all(slices, tmp_path))
    assert volume.values()[1] == pytest.approx((stored(1) * 2.0 - 10) / (2 * 0.25))


def test_parts_of_ge_complex_images_come_apart(tmp_path):
    slices = []
    for part in range(4):
        for z in range(3):
            dataset = tiny(3 * part + z, Modality="MR", ImagePositionPatient=[0, 0, 2.0 * z])
            dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", part)
            slices.append(dataset)
    assert [volume.voxels.shape for volume in volumes(save_all(slices, tmp_path))] == [(3, 6, 5)] * 4


@pytest.mark.parametrize("timing", [{"FrameTime": 40}, {"FrameTimeVector": [0, 40, 40, 40]}, {}])
def test_a_cine_is_pictures_in_time(tmp_path, timing):
    changes = {"SOPClassUID": UltrasoundMultiFrameImageStorage, "Modality": "US", **timing}
    save(multiframe(4, **changes), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.voxels.shape == (4, 1, 6, 5)
    assert {"NO_ORIENTATION", "NO_SPACING"} <= set(volume.flags)
    times = [frame.get("time_s") for frame in volume.frames]
    assert times == ([0.0, 0.04, 0.08, 0.12] if timing else [None] * 4)


def test_projections_are_a_picture_each(tmp_path):
    without = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    slices = [tiny(index, Modality="DX", ImagerPixelSpacing=[0.2, 0.1], **without) for index in range(3)]
    found = volumes(save_all(slices, tmp_path))
    assert [volume.voxels.shape for volume in found] == [(1, 6, 5)] * 3
    assert all("DETECTOR_SPACING" in volume.flags for volume in found)
    assert found[0].geometry.spacing_mm[1:] == (0.2, 0.1)


def nuclear(count: int, kind: str, **changes: Any) -> Dataset:
    """A multi-frame NM object."""
    kept = {"SOPClassUID": NuclearMedicineImageStorage, "Modality": "NM", "PixelSpacing": [4, 4]}
    return multiframe(count, ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"], **kept, **changes)


def test_reconstructed_slices_of_spect_are_a_volume(tmp_path):
    dataset = nuclear(4, "RECON TOMO", SliceVector=[1, 2, 3, 4], SpacingBetweenSlices=-3, SliceThickness=3)
    place = {"ImagePositionPatient": [-10, -20, 90], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    dataset.DetectorInformationSequence = [group(**place)]
    save(dataset, tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert np.array_equal(volume.voxels, [stored(index) for index in (3, 2, 1, 0)])
    assert [row[3] for row in volume.geometry.affine[:3]] == [-10, -20, 81]


def test_reconstructed_slices_without_orientation_are_flagged(tmp_path):
    save(nuclear(4, "RECON TOMO", SpacingBetweenSlices=3), tmp_path / "one.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.voxels.shape == (4, 6, 5)
    assert "NO_ORIENTATION" in volume.flags


def test_detectors_part_and_phases_order_planar_frames(tmp_path):
    vectors = {"DetectorVector": [1, 1, 2, 2], "EnergyWindowVector": [1] * 4, "TimeSliceVector": [2, 1, 1, 2]}
    save(nuclear(4, "DYNAMIC", **vectors), tmp_path / "one.dcm")
    assert [volume.voxels.shape for volume in volumes(tmp_path)] == [(2, 1, 6, 5)] * 2


MISFITS = [
    ("TRUNCATED", {"NumberOfFrames": 2**31 - 1}),
    ("BAD_HEADER", {"NumberOfFrames": -1}),
    ("BAD_HEADER", {"NumberOfFrames": 3}),  # functional groups for four
]


@pytest.mark.parametrize(("code", "changes"), MISFITS)
def test_numbers_of_frames_that_cannot_be(tmp_path, code, changes):
    dataset = enhanced([at(2.0 * z) for z in range(4)])
    dataset.NumberOfFrames = changes["NumberOfFrames"]
    path = save(dataset, tmp_path / "one.dcm")
    header = read_header(path)
    assert misfit(header, path.stat().st_size) in (code, "BAD_HEADER")
    (finding,) = scan(tmp_path).findings
    assert finding.code in (code, "BAD_HEADER")


def test_a_file_of_one_frame_is_one_image(tmp_path):
    path = save(tiny(3), tmp_path / "one.dcm")
    (entry,) = scan(path).entries
    (image,) = expand(entry)
    assert (image.frame, image.corner, image.header) == (0, (0, 0), entry.header)

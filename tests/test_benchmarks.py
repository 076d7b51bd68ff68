"""The side-by-side benchmarks run, on phantoms and for a few steps; what they measure is measured by hand here."""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import ct_volume

from model.fidelity import Peak

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CT = Peak(-1024.0, 3071.0, clip=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of MONAI's own imports


@pytest.fixture
def script(monkeypatch) -> Any:
    """Imports a benchmark as running it does: its own folder comes first."""
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def split(script) -> Any:
    """Two phantoms to learn from and one that is unseen."""
    volumes = {f"s{seed}": ct_volume((4, 64, 72), seed) for seed in (1, 2, 3)}
    return script("held_out").Split(
        group="ct",
        modality="CT",
        learn={name: volumes[name] for name in ("s1", "s2")},
        unseen={"s3": volumes["s3"]},
        patients={name: name for name in volumes},
        names=dict.fromkeys(volumes, "phantom"),
    )


def test_the_race_trains_and_judges_every_contestant(script, split):
    pytest.importorskip("monai")
    pytest.importorskip("vector_quantize_pytorch")
    torch.set_num_threads(1)
    arguments = argparse.Namespace(
        correct=[0.3],
        keep=None,
        contestants=["ours", "monai", "monai-tuned", "vqp"], race=[0.02], minutes=[0.01], preset="tiny",
        steps=12, slices=2, threads=1, seed=0, side=64,
    )  # fmt: skip
    race = script("train")
    found = race.race(split, arguments)
    taken = [(row["contestant"], row["minutes"]) for row in found["results"]]
    fine = [("ours, step 0.3", 0.01), ("ours, step 0.3", 0.02)]
    assert taken == [("ours", 0.01), fine[0], ("ours", 0.02), fine[1], ("monai", 0.01), ("monai-tuned", 0.01)]
    assert set(found["summary"]["psnr_ahead"]) == set(found["summary"]["psnr_ahead, step 0.3"]) == {"0.01"}
    for row in found["results"]:
        assert 0 < row["psnr"] < 60
        levels = 23 if "step" in row["contestant"] else 1
        assert row["fixed"] == pytest.approx(levels * 6 / 64)  # K = 64 for every cell of 8 x 8
        assert 0 <= row["entropy"] <= row["fixed"] and len(row["use"]) == 1
    assert set(found["encode_voxels_per_second"]) == {"ours", "monai"}
    assert found["summary"]["encode_ratio"]["float32"] > 0
    assert found["quantizers"]["ours"]["steps"] == found["quantizers"]["vqp"]["steps"] == 12
    assert "quantizer: vqp" in race.report(found)


def test_budgets_are_measured_in_turn_while_the_clock_stands_still(script):
    peers = script("peers_model")

    class Steady:
        """Learns nothing, slowly."""

        def step(self, batch, share):
            time.sleep(0.005)
            shares.append(share)

    class Patches:
        def batches(self, start, stop):
            while not stop.is_set():
                yield np.zeros((1, 1, 8, 8), np.float32)

    def at_mark(mark):
        marks.append(mark)
        time.sleep(0.3)  # measuring, which must not count

    marks: list[Any] = []
    shares: list[float] = []
    peers.learn(Steady(), Patches(), [0.2 / 60, 0.1 / 60], at_mark)
    assert [mark.minutes for mark in marks] == [0.1 / 60, 0.2 / 60]
    assert 0 < marks[0].steps < marks[1].steps == len(shares)
    assert marks[1].seconds < 0.3
    assert shares == sorted(shares)
    assert 0 <= shares[-1] < 1
    marks.clear()
    peers.learn(Steady(), Patches(), [1.0], at_mark, steps=7)
    assert [mark.steps for mark in marks] == [7]


def test_judging_gives_the_figures_of_scikit_image_over_whole_slices(script):
    scores = script("scores")
    volume = ct_volume((3, 45, 50), 5)

    class Coarse:
        """Rounds to steps of 1/32 of the range; codes of 1 x 1 pixel cells."""

        cell, codebook_size = (8, 8), 65

        def codes(self, x):
            return ((x + 1) * 32).round().to(torch.int64)

        def pictures(self, codes):
            return codes.float() / 32 - 1

    found = scores.judge(Coarse(), volume, "hu", None, "phantom")
    values = volume.values()
    wanted = np.rint(np.rint((values + 1024) / 4095 * 64) / 64 * 4095 - 1024)
    error = np.square(values.astype(np.float64) - wanted).mean()
    assert found.score.psnr == pytest.approx(10 * np.log10(4095**2 / error), abs=0.02)
    from skimage.metrics import structural_similarity

    each = [structural_similarity(a, b, data_range=4095.0, win_size=7) for a, b in zip(values, wanted, strict=True)]
    assert found.score.ssim == pytest.approx(np.mean(each), abs=1e-3)
    assert found.score.pictures == 3
    assert found.counts.sum() == 3 * 48 * 56  # padded to whole cells, every slice


def test_slices_are_spread_over_the_whole_series(script):
    spread = script("scores").spread
    assert spread(5, None) == spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 4) == [12, 37, 62, 87]


def test_codecs_lie_beside_the_codes_at_equal_bytes(script, split, tmp_path):
    pytest.importorskip("imagecodecs")
    fidelity, image_codecs = script("fidelity"), script("image_codecs")
    torch.set_num_threads(1)
    model = fidelity.trained(split, "tiny,levels=2,steps=20", 0.2, 1)
    few = [replace(one, settings=one.settings[::4]) for one in image_codecs.codecs()]
    found = fidelity.compare(split, [model], 2, peers=few)
    (series,) = found["series"]
    assert [point["levels"] for point in series["voxbook"]] == [1, 2]
    assert series["voxbook"][0]["bits"] < series["voxbook"][1]["bits"] <= 1.02 * 2 * 6 / 64
    assert set(series["codecs"]) == {"JPEG 2000", "JPEG-LS", "JPEG XL"}
    for ways in series["codecs"].values():
        assert any(len(way) >= 2 for way in ways)
    assert [row["bits"] for row in found["at_rates"]] == list(fidelity.RATES)
    assert "JPEG XL: psnr" in fidelity.report(found) and "| tiny | 2 |" in fidelity.report(found)
    fidelity.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("number", range(5))
def test_a_codec_gives_the_picture_back_within_what_it_promises(script, number):
    pytest.importorskip("imagecodecs")
    image_codecs = script("image_codecs")
    codec = image_codecs.codecs()[number]
    pictures = list(ct_volume((2, 64, 80), 7).values()[:, None])
    points = [image_codecs._point(codec, setting, pictures, CT, image_codecs.Steps(-1024.0, 1.0, 12))
              for setting in (codec.settings[0], codec.settings[-1])]  # fmt: skip
    first, last = (point for point in points if point is not None)
    coarse, fine = sorted((first, last), key=lambda point: point.bits)
    assert fine.psnr > coarse.psnr + 3
    assert fine.bits > 2 * coarse.bits
    if codec.name == "JPEG-LS" and codec.settings[0] == 1:
        assert fine.psnr >= 10 * np.log10(4095**2 / 1)  # NEAR = 1: no voxel is further off than 1 HU
    if codec.encode is image_codecs._j2k_quality:
        assert coarse.psnr == pytest.approx(codec.settings[0], abs=4) or coarse.psnr > codec.settings[0]


@pytest.mark.parametrize("bits", [0.25, 2.0])
def test_a_codec_is_given_the_bytes_and_no_more(script, bits):
    pytest.importorskip("imagecodecs")
    image_codecs = script("image_codecs")
    pictures = list(ct_volume((2, 96, 112), 7).values()[:, None])
    found = image_codecs.at_bytes(pictures, CT, 1.0, bits)
    assert set(found) == {"JPEG 2000", "JPEG-LS", "JPEG XL"}
    for name, point in found.items():
        if point is None:  # a bound of 255 HU still takes more than that
            assert name == "JPEG-LS" and bits < 1
            continue
        assert point.bits <= bits
        assert point.bits > 0.8 * bits or name == "JPEG-LS"  # whose bounds are whole numbers
        assert point.largest is not None and point.largest > 0
    nothing = image_codecs.at_bytes(pictures, CT, 1.0, 1e-4)
    assert set(nothing.values()) == {None}


def test_rates_are_read_between_points_and_a_shared_header_counts_once(script):
    image_codecs = script("image_codecs")
    point = image_codecs.Point
    ways = [[point(0.1, 30.0, 0.8, 1), point(0.4, 40.0, 0.9, 2)], [point(0.2, 36.0, None, 3)]]
    assert image_codecs.at_rate(ways, 0.05, "psnr") is None
    assert image_codecs.at_rate(ways, 0.1, "psnr") == pytest.approx(30.0)
    assert image_codecs.at_rate(ways, 0.2, "psnr") == pytest.approx(36.0)  # the other way is better there
    assert image_codecs.at_rate(ways, 0.2, "ssim") == pytest.approx(0.85)
    assert image_codecs.at_rate(ways, 9.0, "psnr") == pytest.approx(40.0)
    assert image_codecs.common([b"header1", b"header23", b"header9"]) == 6
    assert image_codecs.common([b"one"]) == 3


def test_samples_hold_whole_hu_in_12_bits_and_other_series_in_their_own_steps(script):
    steps_of = script("image_codecs").steps_of
    hu = np.array([[[-1024.0, 0.0], [3071.0, 5000.0]]])
    steps = steps_of([hu], CT, 1.0)
    assert steps.bits == 12
    assert steps.samples(hu).tolist() == [[0, 1024], [4095, 4095]]
    assert (steps.values(steps.samples(hu)) == CT.cut(hu)).all()
    mr = steps_of([np.array([[[0.0, 2.5], [5.0, 1000.0]]])], Peak(0, 900, clip=False), 2.5)
    assert (mr.step, mr.bits) == (2.5, 9)
    pet = steps_of([np.array([[[0.0, 0.1], [0.2, 31.7]]])], Peak(0, 30, clip=False), None)
    assert pet.bits == 16
    assert pet.values(pet.samples(np.full((1, 1, 1), 31.7)))[0, 0, 0] == pytest.approx(31.7)


def test_seeds_are_told_apart_and_their_spread_stated(script, split):
    torch.set_num_threads(1)
    arguments = argparse.Namespace(preset="tiny", seeds=2, seconds=20.0, steps=15, series=4, threads=1)
    found = script("seeds").measure(split, arguments)
    psnrs = [row["psnr"] for row in found["results"]]
    assert [row["steps"] for row in found["results"]] == [15, 15]
    assert psnrs[0] != psnrs[1]
    assert found["psnr_spread"] == pytest.approx(abs(psnrs[0] - psnrs[1]), abs=2e-3)
    assert len(found["results"][0]["use"]) == 1
    assert found["least_use"] == min(row["use"][0] for row in found["results"])


def test_a_split_keeps_patients_whole(script, shared_data, tmp_path):
    held_out = script("held_out")
    with held_out.opened(shared_data, "ct", ["ct_lidc_chest"], tmp_path / "ws") as found:
        assert {found.names[name] for name in found.unseen} == {"ct_lidc_chest"}
        assert len(found.learn) == 3
        assert not {found.patients[name] for name in found.learn} & {found.patients[name] for name in found.unseen}
    with pytest.raises(ValueError, match="not a folder of ct"), held_out.opened(shared_data, "ct", ["nothing"]):
        pass


def test_the_report_of_a_made_up_workspace_is_rendered_with_all_its_parts(script):
    report = script("report")
    page = report.render(report.drawn(40))
    assert len(page.encode()) < report.GOAL_BYTES
    for part in ("changes", "worst", "groups", "fidelity", "rate", "codebook", "quarantine", "series"):
        assert f'<section id="{part}">' in page
    assert page.count("<figure id=") == report.WORST


def test_use_is_counted_over_the_patches_that_a_preset_learned_from(script, monkeypatch):
    benchmark = script("codebook_use")
    monkeypatch.setattr(benchmark, "BATCHES", 3)
    volumes = {f"s{seed}": ct_volume((4, 64, 72), seed) for seed in (1, 2)}
    row = benchmark.of_preset("tiny", volumes, 3.0, 1)
    assert (row["series"], row["pieces"], row["codebook_size"]) == (2, 8, 64)
    assert row["codes"] == 3 * 4 * 16  # batches, patches, cells of 8 x 8 in 32 x 32
    assert row["steps"] > 0
    assert 1 <= row["perplexity"][0] <= 64 * row["use"][0] + 1

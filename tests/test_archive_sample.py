"""The sample archive: what its manifest promises is what a scan finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archive import sample
from archive.errors import ConfigError
from archive.sample import PHANTOMS, Manifest, phantom_volume, write_sample_archive
from archive.scan import ScanResult, scan
from archive.series import read_series


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, ScanResult]:
    folder = tmp_path_factory.mktemp("sample") / "archive"
    manifest = write_sample_archive(folder)
    return folder, manifest, scan(folder)


def test_it_is_two_dozen_series_of_a_dozen_patients(archive: tuple[Path, Manifest, ScanResult]) -> None:
    _, manifest, found = archive
    drawn = [entry for entry in manifest.entries if entry.path.startswith("phantoms/")]
    assert len(drawn) >= 24 and len({item.patient for item in PHANTOMS}) >= 12
    assert 8e6 <= manifest.voxels <= 12e6
    assert {plan.group for plan in found.plans} == {"ct", "mr", "pt", "nifti", "us-rgb"}
    assert manifest.not_shipped == ()


def test_every_entry_ends_as_the_manifest_says(archive: tuple[Path, Manifest, ScanResult]) -> None:
    folder, manifest, found = archive
    ingested = [plan.files[0] for plan in found.plans]
    refused = {path: finding.code for finding in found.findings for path in finding.paths}
    for entry in manifest.entries:
        files = [path for path in (folder / entry.path).rglob("*") if path.is_file()] or [folder / entry.path]
        assert len(files) == entry.files
        codes = {refused.get(path.relative_to(folder).as_posix()) for path in files}
        is_in = any(Path(path).is_relative_to(entry.path) for path in ingested)
        if entry.expected in ("ingested", "skipped"):
            assert (is_in, codes) == (entry.expected == "ingested", {None}), entry.path
        else:
            assert (is_in, codes) == (False, {entry.expected}), entry.path
    assert sum(found.skipped.values()) == sum(e.files for e in manifest.entries if e.expected == "skipped")


def test_phantom_series_come_back_as_they_were_drawn(archive: tuple[Path, Manifest, ScanResult]) -> None:
    _, _, found = archive
    plans = {Path(plan.files[0]).parent.name: plan for plan in found.plans}
    for item in PHANTOMS:
        volume, back = phantom_volume(item), read_series(plans[item.name])
        assert back.axes == volume.axes and back.units == volume.units, item.name
        # readers sort along the slice normal, which for some orientations is the other way round
        step, normal = back.geometry.matrix[:3, 0], volume.geometry.matrix[:3, 0]
        voxels = volume.voxels if step @ normal > 0 else np.flip(volume.voxels, -3)
        assert np.array_equal(back.voxels, voxels), item.name
    assert ("TILTED" in read_series(plans["ct-head-tilted"]).flags) is True
    assert len(set(read_series(plans["pet-body"]).slope)) > 10


def test_the_same_seed_gives_the_same_volume() -> None:
    one, again, other = (phantom_volume(PHANTOMS[-1], seed) for seed in (0, 0, 7))
    assert np.array_equal(one.voxels, again.voxels) and not np.array_equal(one.voxels, other.voxels)


def test_it_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "PHANTOMS", PHANTOMS[-1:])
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError) as caught:
        write_sample_archive(tmp_path / "taken")
    assert caught.value.code == "OCCUPIED"

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_write_broken", fails)
    with pytest.raises(OSError, match="No space"):
        write_sample_archive(tmp_path / "archive")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

"""A worker's batch: records in order, each its own; certificates of what lies in the store, sampled where declared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from archive import volumes as volume_store
from archive.codes import StoredCodes
from archive.errors import MismatchError, StoreError
from archive.geometry import Geometry
from archive.settings import GateSettings
from archive.volume import Volume
from archive.volumes import StoredVolume
from model import bundle
from model.certificate import Certificate, certify, sampled
from model.config import resolve
from model.decode import decode_codes
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.jobs import EncodeJob, encode_batch, sample_of
from model.vqvae import VQVAE

SHAPES = [(3, 40, 44), (20, 32, 32), (1, 35, 50), (8, 32, 32), (70, 32, 32)]


@pytest.fixture
def model(tmp_path: Path) -> VQVAE:
    torch.manual_seed(0)
    made = VQVAE(resolve("tiny", channels=1, intensity="hu"))
    made.quantizer.start(made.encoder(torch.rand(8, 1, 64, 64)).movedim(1, -1).flatten(0, -2))
    bundle.save(made.eval(), made.config, tmp_path / "models", {})
    return made


@pytest.fixture
def jobs(tmp_path: Path, model: VQVAE) -> list[EncodeJob]:
    rng = np.random.default_rng(4)
    made = []
    for number, shape in enumerate(SHAPES):
        smooth = np.add.outer(np.arange(shape[1]) * 9, np.arange(shape[2]) * 7) % 900
        voxels = (rng.integers(-80, 80, shape) + smooth).astype(np.int16)
        volume = Volume(voxels, "zyx", Geometry.pixels(shape), "CT", units="HU")
        name = f"{number:032x}"
        committed = volume_store.write(volume, tmp_path / "volumes", name)
        made.append(
            EncodeJob(
                series=name,
                voxels=voxels.size,
                volume=tmp_path / "volumes" / name / committed.version,
                source_version=committed.version,
                source_digest=committed.digest,
                codes=tmp_path / "codes",
                models=tmp_path / "models",
                model=model.model_id,
                profile="exact",
                levels=None,
                gate=GateSettings(),
                settings_digest="d",
                device="cpu",
            )
        )
    return made


def stored(job: EncodeJob, record) -> StoredCodes:
    return StoredCodes(job.codes / job.series / record.committed.version)


def test_a_batch_gives_what_each_series_gives_alone(jobs: list[EncodeJob], model: VQVAE) -> None:
    records = encode_batch(jobs)
    assert [record.job.series for record in records] == [job.series for job in jobs]
    for job, record in zip(jobs, records, strict=True):
        codes = stored(job, record).read()
        assert codes.array.tobytes() == encode_volume(model, StoredVolume(job.volume)).array.tobytes()
        assert (codes.source_version, codes.source_digest) == (job.source_version, job.source_digest)
        (alone,) = encode_batch([job])
        assert record.certificate["psnr"] == alone.certificate["psnr"]
        assert record.certificate["jpeg2000_psnr"] == alone.certificate["jpeg2000_psnr"]
        assert json.loads(json.dumps(record.certificate)) == record.certificate
    streamed = [replace(job, memory_bytes=2**14) for job in jobs[::-1]]  # nothing is held whole, little waits
    for one, other in zip(encode_batch(streamed)[::-1], records, strict=True):
        assert one.committed.manifest == other.committed.manifest
        assert one.certificate == other.certificate


def test_a_full_certificate_is_of_every_voxel_that_a_reader_gets(jobs: list[EncodeJob], model: VQVAE) -> None:
    job = replace(jobs[1], certify="full")
    (record,) = encode_batch([job])
    codes = stored(job, record).read()
    volume = StoredVolume(job.volume)
    whole = certify(volume, decode_codes(model, codes), codes, record.committed.bytes, job.gate)
    found = Certificate.from_dict(record.certificate)
    assert replace(found, rungs=whole.rungs, unlike=None, unlike_distances=None) == whole
    assert (whole.slices, whole.checked_slices, whole.checked_voxels, whole.sampled_by) == (20, 20, whole.voxels, "")
    lazy = DecodedVolume(model, stored(job, record))
    assert np.array_equal(lazy.slab(3, 9), decode_codes(model, codes).voxels[3:9])
    (bounded,) = encode_batch([replace(jobs[1], gate=GateSettings(max_error=1e6))])
    assert bounded.certificate["checked_slices"] == 20  # a bound is no sample
    assert bounded.certificate["max_error"] == whole.max_error


def test_a_sample_is_declared_seeded_and_near_the_whole(jobs: list[EncodeJob], model: VQVAE) -> None:
    job = jobs[4]
    (first,), (again,) = encode_batch([job]), encode_batch([job])
    found = first.certificate
    assert {**found, "source_version": ""} == {**again.certificate, "source_version": ""}
    assert found["slices"] == 70 and 8 <= found["checked_slices"] < 40
    assert found["checked_voxels"] == found["checked_slices"] * 32 * 32 and found["voxels"] == 70 * 32 * 32
    assert found["sampled_by"] == f"{job.series} {job.source_version}"
    (full,) = encode_batch([replace(job, certify="full")])
    assert found["psnr"] == pytest.approx(full.certificate["psnr"], abs=0.5)
    assert found["psnr"] != full.certificate["psnr"]
    for key in ("perplexity", "codebook_use", "level_use"):  # of all codes, whatever was measured
        assert found[key] == full.certificate[key]
    assert found["bits_per_voxel"] == full.certificate["bits_per_voxel"]
    codes = stored(job, first).read()
    volume = StoredVolume(job.volume)
    seeds = {
        certify(volume, DecodedVolume(model, codes), codes, 100, peer=False, sample=8, seed=str(seed)).psnr
        for seed in range(6)
    }
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("slices", "most", "wanted"), [(1, 24, 1), (8, 24, 8), (9, 24, 8), (100, 24, 12), (2000, 24, 24), (50, 3, 3)]
)
def test_how_many_slices_make_a_sample(slices: int, most: int, wanted: int) -> None:
    assert sampled(slices, most) == wanted


def test_which_devices_measure_all() -> None:
    assert sample_of("auto", 24, "cpu") == sample_of("sample", 24, "cuda") == 24
    assert sample_of("auto", 24, "cuda") is sample_of("full", 24, "cpu") is None


def test_a_damaged_volume_is_its_own_record(jobs: list[EncodeJob]) -> None:
    shard = next(path for path in (jobs[1].volume / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(bytes(data))
    next(path for path in (jobs[2].volume / "0" / "c").rglob("*") if path.is_file()).unlink()
    records = encode_batch(jobs)
    assert [record.code for record in records] == ["", "DAMAGED", "MISSING", "", ""]
    assert all((record.committed is None) == bool(record.code) for record in records)


def test_what_no_series_survives_is_raised(jobs: list[EncodeJob], tmp_path: Path) -> None:
    with pytest.raises((MismatchError, StoreError)):
        encode_batch([replace(jobs[0], model="0" * 64)])
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="NOT_WRITABLE"):
        encode_batch([replace(job, codes=blocked) for job in jobs])

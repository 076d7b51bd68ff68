"""The stages on a small archive, without Prefect and Dask: what they count, that they resume, and what stops them."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from conftest import QUICK
from phantoms import ct_volume, write_ct_series

from archive import open_codes, open_volumes
from archive.errors import ConfigError, StoreError
from archive.workspace import Workspace
from flows.encode import encode
from flows.export import export
from flows.ingest import ingest
from flows.repair import repair
from flows.report import report
from flows.train import train
from flows.verify import verify


def test_the_first_ingest_counts_every_series_and_file(tmp_path, archive_folder):
    alias = Workspace.open(tmp_path / "ws", create=True).register_source(archive_folder)
    first = ingest.fn(workspace=str(tmp_path / "ws"), sources=[alias], settings=QUICK)
    counts = {key: first.counts[key] for key in ("found", "ingested", "unchanged", "quarantined", "skipped")}
    assert counts == {"found": 5, "ingested": 4, "unchanged": 0, "quarantined": 1, "skipped": 1}
    assert first.reasons == {"NOT_DICOM": 1}
    assert first.counts["voxels"] == 3 * 6 * 48 * 40 + 5 * 40 * 56
    assert first.counts["bytes_in"] > first.counts["voxels"]
    second = ingest.fn(workspace=str(tmp_path / "ws"), settings=QUICK)
    assert (second.counts["ingested"], second.counts["unchanged"]) == (0, 4)
    assert "nothing new" in second.sentence
    assert (first.counts["quarantined_new"], second.counts["quarantined"], second.counts["quarantined_new"]) == (
        1,
        1,
        0,
    )
    assert ", 1 quarantined, " in first.sentence and ", 1 quarantined (none of them new), " in second.sentence


def test_every_stage_does_nothing_the_second_time(workspace):
    trained = train.fn(workspace=str(workspace), settings=QUICK)
    assert all(model["unchanged"] for model in trained.counts["models"])
    assert "nothing new" in trained.sentence
    encoded = encode.fn(workspace=str(workspace), settings=QUICK)
    assert (encoded.counts["encoded"], encoded.counts["unchanged"]) == (0, 4)
    assert "nothing new" in encoded.sentence


def test_every_series_has_codes_a_certificate_and_comes_back_in_its_own_shape(finished, tmp_path):
    home = Workspace.open(finished)
    rows = home.catalog.series()
    certificates = {row.series: row for row in home.catalog.certificates()}
    assert {row.state for row in rows} == {"encoded"}
    assert set(open_codes(finished)) == set(open_volumes(finished)) == set(certificates)
    for row in rows:
        bits = certificates[row.series].data["bits_per_voxel"]
        assert 0 <= bits["entropy"] <= bits["fixed"] and bits["disk"] > 0
        for tier in ("codes", "volume"):
            out = tmp_path / f"{row.series}-{tier}.nii.gz"
            done = export(home, row.series, out, tier)
            assert (done.shape, done.dtype) == (row.shape, row.dtype)
            source = open_volumes(finished)[row.series].read()
            back = np.asarray(nibabel.load(out).dataobj).transpose(2, 1, 0)
            np.testing.assert_allclose(nibabel.load(out).affine, source.geometry.to_nifti(), atol=1e-3)
            error = np.abs(back - source.values()).max()
            assert error <= 1e-6 * np.abs(source.values()).max() if tier == "volume" else error > 0


def test_a_gate_that_is_missed_flags_the_series_and_keeps_the_volume(workspace, tmp_path):
    outcome = encode.fn(workspace=str(workspace), group="ct", settings=[*QUICK, "gate.min_psnr=99"])
    assert (outcome.counts["failed"], outcome.below_gate) == (2, 2)
    assert outcome.reasons == {"BELOW_MIN_PSNR": 2}
    home = Workspace.open(workspace)
    rows = home.catalog.series(group="ct")
    assert {(row.state, row.reason) for row in rows} == {("quality_failed", "BELOW_MIN_PSNR")}
    assert export(home, rows[0].series, tmp_path / "auto.nii.gz").tier == "volume"
    assert export(home, rows[0].series, tmp_path / "codes.nii.gz", "codes").tier == "codes"
    again = encode.fn(workspace=str(workspace), group="ct", settings=QUICK)  # without the gate: the first codes count
    assert (again.counts["encoded"], again.counts["unchanged"]) == (0, 2)
    assert {row.state for row in Workspace.open(workspace).catalog.series(group="ct")} == {"encoded"}


@pytest.mark.parametrize("tier", ["volume", "codes"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_verify_finds_damage_and_names_the_series(workspace, tier, harm):
    home = Workspace.open(workspace)
    row = home.catalog.series(group="ct")[0]
    root, version = (home.volumes, row.volume_version) if tier == "volume" else (home.codes, row.codes_version)
    victim = max((root / row.series / version).rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(victim.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    victim.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    if harm == "delete":
        victim.unlink()
    outcome = verify.fn(workspace=str(workspace), settings=[*QUICK, "verify.read_data=true"])
    assert outcome.counts["checked"] == 8
    assert outcome.counts["damaged"] + outcome.counts["missing"] == 1
    assert [problem["series"] for problem in outcome.problems] == [row.series]
    assert row.series in outcome.sentence


def test_repair_makes_damaged_codes_again_and_ingest_damaged_volumes(workspace):
    home = Workspace.open(workspace)
    ct, mr = home.catalog.series(group="ct")[0], home.catalog.series(group="mr")[0]
    for folder in (home.codes / ct.series / ct.codes_version, home.volumes / mr.series / mr.volume_version):
        victim = max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        victim.write_bytes(victim.read_bytes()[:-1])
    checks = [*QUICK, "verify.read_data=true"]
    assert verify.fn(workspace=str(workspace), settings=checks).damaged == 2
    assert repair(workspace, [], None, QUICK).counts["repaired"] == 1
    assert ingest.fn(workspace=str(workspace), settings=QUICK).counts["ingested"] == 1
    assert encode.fn(workspace=str(workspace), settings=QUICK).damaged == 0
    home.close()
    still = {problem["version"] for problem in verify.fn(workspace=str(workspace), settings=checks).problems}
    current = {row.volume_version for row in Workspace.open(workspace).catalog.series()}
    current |= {row.codes_version for row in Workspace.open(workspace).catalog.series()}
    assert not still & current


def test_a_changed_source_makes_a_new_version_and_its_codes_stale(tmp_path):
    source, root = tmp_path / "source", tmp_path / "ws"
    write_ct_series(source, ct_volume(seed=5), patient=9, name="changing")
    alias = Workspace.open(root, create=True).register_source(source)
    for flow in (ingest, train, encode):
        flow.fn(workspace=str(root), settings=QUICK, **({"sources": [alias]} if flow is ingest else {}))
    before = Workspace.open(root).catalog.series()[0]
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    write_ct_series(source, ct_volume(seed=6), patient=9, name="changing")
    assert ingest.fn(workspace=str(root), settings=QUICK).counts["ingested"] == 1
    after = Workspace.open(root).catalog.series()[0]
    assert (after.series, after.state) == (before.series, "stale")
    assert after.volume_version != before.volume_version
    assert verify.fn(workspace=str(root), settings=QUICK).counts["expired"] == 1
    assert encode.fn(workspace=str(root), settings=QUICK).counts["encoded"] == 1
    assert Workspace.open(root).catalog.series()[0].state == "encoded"


def test_series_without_a_model_stay_ingested_and_say_so(tmp_path, archive_folder):
    alias = Workspace.open(tmp_path, create=True).register_source(archive_folder)
    ingest.fn(workspace=str(tmp_path), sources=[alias], settings=QUICK)
    outcome = encode.fn(workspace=str(tmp_path), settings=QUICK)
    assert outcome.reasons == {"NO_MODEL": 4}
    assert {(row.state, row.reason) for row in Workspace.open(tmp_path).catalog.series()} == {("ingested", "NO_MODEL")}


def test_encode_takes_what_is_asked_for(workspace):
    home = Workspace.open(workspace)
    one = home.catalog.series(group="ct")[0]
    fast = [*QUICK, "encode.profile=fast"]
    dry = encode.fn(workspace=str(workspace), dry_run=True, where="modality = CT", settings=fast)
    assert (dry.counts["series"], dry.counts["planned"], dry.counts["encoded"]) == (2, 2, 0)
    done = encode.fn(workspace=str(workspace), series=[one.series[:10]], settings=fast)
    assert (done.counts["series"], done.counts["encoded"]) == (1, 1)
    assert home.catalog.encoding(home.catalog.one(one.series).codes_version).profile == "fast"
    with pytest.raises(StoreError) as caught:
        encode.fn(workspace=str(workspace), series=["ffff"], settings=QUICK)
    assert caught.value.code == "NOT_FOUND"


def test_decode_refuses_what_it_cannot_do(workspace, tmp_path):
    home = Workspace.open(workspace)
    series = home.catalog.series(group="ct")[0].series
    (tmp_path / "there.nii").write_text("mine")
    for out, tier, levels in (
        ("there.nii", "auto", None),
        ("a.mha", "auto", None),
        ("a.nii", "volume", 1),
        ("b.nii", "codes", 9),
    ):
        with pytest.raises(ConfigError):
            export(home, series, tmp_path / out, tier, levels)
    assert (tmp_path / "there.nii").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.nii", "ws"]


def test_a_report_holds_everything_and_no_network(finished):
    outcome = report.fn(workspace=str(finished), settings=QUICK)
    folder = Workspace.open(finished).reports / outcome.run
    data = json.loads((folder / "report.json").read_text())
    assert {entry["group"] for entry in data["groups"]} == {"ct", "mr", "pt"}
    assert data["quarantine"][0]["code"] == "NOT_DICOM"
    page = (folder / "report.html").read_text()
    assert all(row.series[:8] in page for row in Workspace.open(finished).catalog.series())
    assert "data:image/webp;base64," in page
    assert "not for diagnostic use" in page.lower()
    assert json.loads((folder / "run.json").read_text())["settings"]["train"]["preset"] == "tiny"


def test_nothing_of_the_source_leaves_the_linkage(workspace, archive_folder):
    """Names, UIDs and paths of the archive are in no file of the workspace but the linkage, compressed ones included."""
    import pydicom

    report.fn(workspace=str(workspace), settings=QUICK)
    secrets = {str(archive_folder), archive_folder.name}
    for path in archive_folder.rglob("*.dcm"):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        secrets |= {
            str(header[key].value) for key in ("PatientID", "PatientName", "SeriesInstanceUID", "SOPInstanceUID")
        }
    Workspace.open(workspace).linkage.close()
    found = [
        (path.name, secret)
        for path in workspace.rglob("*")
        if path.is_file() and not path.name.startswith("linkage.sqlite")
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]
    assert found == []

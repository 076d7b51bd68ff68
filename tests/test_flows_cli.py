"""The command line as a person meets it: exit codes, one JSON object, help, and errors without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK

from archive.workspace import Workspace
from flows import console
from flows.console import exit_code, exit_code_of
from tasks.stage import Outcome

HOME = Path(__file__).resolve().parent.parent
SET = [word for override in QUICK for word in ("--set", override)]


def voxbook(*words, cwd=None, **environment):
    """Run the command as a process of its own."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd or HOME,
        env={**os.environ, **environment},
        timeout=200,
        check=False,
    )


def here(capfd, monkeypatch, *words):
    """Run the command in this process: exit code, stdout and stderr."""
    from flows import cli

    monkeypatch.setattr(sys, "argv", ["voxbook", *map(str, words)])
    monkeypatch.setattr("flows.recording.configured_api", lambda: None)  # another test may have a server running
    cli.app.registered_commands.clear()
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return caught.value.code or 0, out, err


def test_the_whole_job_by_its_verbs(tmp_path, archive_folder, capfd, monkeypatch):
    ws = tmp_path / "ws"
    code, out, err = here(capfd, monkeypatch, "ingest", archive_folder, "-w", ws, "--json", *SET)
    assert (code, json.loads(out)["reasons"]) == (console.QUARANTINED, {"NOT_DICOM": 1})
    assert "nothing is recorded" in err
    code, out, _ = here(capfd, monkeypatch, "train", "-w", ws, "--json", *SET)
    trained = json.loads(out)
    assert code == 0
    keys = {"model", "group", "preset", "steps", "seconds", "psnr", "ssim", "bits_per_voxel", "codebook_use"}
    assert keys <= set(trained) and all(keys <= set(model) for model in trained["models"])
    assert (trained["group"], {model["group"] for model in trained["models"]}) == ("ct", {"ct", "mr", "pt"})
    code, out, _ = here(capfd, monkeypatch, "encode", "-w", ws, "--json", *SET)
    assert code == 0
    assert {"series", "encoded", "unchanged", "failed", "voxels", "bytes_out", "seconds", "run"} <= set(json.loads(out))
    code, out, _ = here(capfd, monkeypatch, "verify", "-w", ws, "--read-data", "--json", *SET)
    assert (code, json.loads(out)["checked"], json.loads(out)["damaged"]) == (0, 8, 0)
    code, out, _ = here(capfd, monkeypatch, "inspect", "-w", ws, "--json")
    listed = json.loads(out)
    keys = {"series", "group", "modality", "shape", "dtype", "spacing_mm", "state", "version", "model", "psnr", "ssim"}
    assert all(keys | {"bits_per_voxel"} <= set(entry) for entry in listed["series"])
    assert listed["quarantine"] == [{"code": "NOT_DICOM", "count": 1}]
    series = listed["series"][0]["series"]
    code, out, _ = here(capfd, monkeypatch, "decode", "-w", ws, series[:8], tmp_path / "back.nii.gz", "--json")
    assert (code, json.loads(out)["tier"], (tmp_path / "back.nii.gz").exists()) == (0, "codes", True)
    code, _, err = here(capfd, monkeypatch, "decode", "-w", ws, series, tmp_path / "back.nii.gz")
    assert (code, "OCCUPIED" in err) == (console.USAGE, True)
    code, out, _ = here(capfd, monkeypatch, "ingest", "-w", ws, *SET)
    assert (code, "nothing new" in out) == (console.QUARANTINED, True)


def test_an_excluded_folder_stays_excluded(tmp_path, archive_folder, capfd, monkeypatch):
    ws = tmp_path / "ws"
    _, out, _ = here(capfd, monkeypatch, "ingest", archive_folder, "--exclude", "a/**", "-w", ws, "--json", *SET)
    assert json.loads(out)["found"] == 4
    _, out, _ = here(capfd, monkeypatch, "ingest", "-w", ws, "--json", *SET)
    assert json.loads(out)["found"] == 4


def test_an_empty_folder_exits_3(tmp_path, capfd, monkeypatch):
    (tmp_path / "empty").mkdir()
    code, out, _ = here(capfd, monkeypatch, "ingest", tmp_path / "empty", "-w", tmp_path / "ws", "--json")
    assert (code, json.loads(out)["found"]) == (console.NOTHING, 0)
    code, out, _ = here(capfd, monkeypatch, "init", tmp_path / "empty", "-w", tmp_path / "ws2")
    assert (code, "Nothing was found there" in out) == (console.NOTHING, True)


def test_a_folder_of_junk_exits_4_with_reasons_and_no_traceback(tmp_path):
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "empty.dcm").touch()
    (junk / "text.dcm").write_text("hello")
    (junk / "noise").write_bytes(os.urandom(5000))
    (junk / "half.nii.gz").write_bytes(b"\x1f\x8b\x08\x00junk")
    (junk / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    done = voxbook("ingest", junk, "-w", tmp_path / "ws", "--json")
    code, out, err = done.returncode, done.stdout, done.stderr
    data = json.loads(out)
    assert (code, data["found"], data["quarantined"], sum(data["reasons"].values())) == (console.QUARANTINED, 5, 5, 5)
    assert "Traceback" not in out + err
    assert str(junk) not in out + err


def test_an_unknown_key_exits_2_and_names_the_nearest(tmp_path, capfd, monkeypatch):
    (tmp_path / "voxbook.toml").write_text("[train]\nmax_second = 1\n")
    code, out, err = here(capfd, monkeypatch, "train", "-w", tmp_path, "--json")
    assert (code, "train.max_seconds" in err, json.loads(out)["error"]) == (console.USAGE, True, "UNKNOWN_KEY")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ingest", "no/such/folder", "-w", "WS"], 2, "SOURCE number 1"),
        (["encode", "-w", "WS/none"], 2, "NO_WORKSPACE"),
        (["decode", "-w", "WS", "ffff", "out.nii"], 3, "NOT_FOUND"),
        (["decode", "-w", "WS", "ffff", "out.nii", "--tier", "best"], 2, "--tier"),
        (["train", "-w", "WS", "--preset", "ct2d"], 2, "ct-2d"),
        (["encode", "-w", "WS", "--where", "psnr ~ 3"], 2, "--where"),
        (["encode", "-w", "WS", "--set", "encode.profil=fast"], 2, "encode.profile"),
        (["verify", "-w", "WS", "--set", "verify.sample=7"], 2, "verify.sample"),
        (["ingest", "-w", "WS", "--exclude", "a"], 2, "SOURCE"),
        (["inspect", "-w", "WS", "--reveal"], 2, "terminal"),
        (["forget", "-w", "WS", "--yes"], 2, "--series"),
        (["forget", "-w", "WS", "--series", "ffff"], 3, "NOT_FOUND"),
        (["nightly", "-w", "WS", "--set", "encode.profil=fast"], 2, "encode.profile"),
        (["serve", "-w", "WS"], 2, "voxbook up"),
        (["serve", "-w", "WS/none"], 2, "NO_WORKSPACE"),
        (["up", "-w", "WS/none"], 2, "NO_WORKSPACE"),
        (["up", "-w", "WS", "--port", "65535"], 2, "--port"),
        (["ingest", "-w", "WS/none"], 2, "NO_WORKSPACE"),
        (["nosuchverb"], 2, "nosuchverb"),
        (["train"], 2, "Example"),
        (["decode", "-w"], 2, "-w"),
    ],
)
def test_wrong_input_says_what_and_what_next(workspace, capfd, monkeypatch, words, code, said):
    found, out, err = here(capfd, monkeypatch, *[word.replace("WS", str(workspace)) for word in words])
    assert (found, said in out + err, "Traceback" in out + err) == (code, True, False), out + err
    assert not (workspace / "none").exists()


def test_train_on_an_empty_workspace_exits_3(tmp_path, capfd, monkeypatch):
    assert Workspace.open(tmp_path, create=True).catalog.series() == []
    code, _, err = here(capfd, monkeypatch, "train", "-w", tmp_path)
    assert (code, "voxbook ingest" in err) == (console.NOTHING, True)


def test_a_missed_gate_exits_5(workspace, capfd, monkeypatch):
    code, out, _ = here(capfd, monkeypatch, "encode", "-w", workspace, "--json", *SET, "--set", "gate.min_ssim=1")
    assert (code, json.loads(out)["reasons"]) == (console.QUALITY, {"BELOW_MIN_SSIM": 4})


def test_another_key_exits_6(workspace, capfd, monkeypatch):
    monkeypatch.setenv("VOXBOOK_KEY", "another key, long enough")
    code, _, err = here(capfd, monkeypatch, "inspect", "-w", workspace)
    assert (code, "WRONG_KEY" in err) == (console.DAMAGE, True)


def test_forget_erases_a_patient_and_gc_finds_nothing_left(workspace, capfd, monkeypatch):
    home = Workspace.open(workspace)
    row = home.catalog.series(group="mr")[0]
    home.close()  # a reader that holds the log open would delay its wiping
    code, out, _ = here(capfd, monkeypatch, "forget", "-w", workspace, "--patient", row.patient, "--yes", "--json")
    assert (code, json.loads(out)["series"]) == (0, 1)
    holding = [
        path.name for path in workspace.rglob("*") if path.is_file() and row.series.encode() in path.read_bytes()
    ]
    assert holding == []
    assert not any(row.series in str(path) for path in workspace.rglob("*"))
    code, out, _ = here(capfd, monkeypatch, "gc", "-w", workspace, "--json")
    assert (code, json.loads(out)["folders"]) == (0, 0)


def test_promote_makes_series_of_the_old_model_stale(workspace, capfd, monkeypatch):
    *_, first = Workspace.open(workspace).catalog.models("ct")
    here(capfd, monkeypatch, "train", "-w", workspace, "--group", "ct", *SET, "--set", "train.seed=7")
    second = next(row for row in Workspace.open(workspace).catalog.models("ct") if row.model != first.model)
    assert not second.current
    words = ("promote", "-w", workspace, second.model[:10], *SET, "--json")
    code, out, _ = here(capfd, monkeypatch, *words, "--dry-run")
    assert (code == console.QUALITY) == json.loads(out)["comparison"]["is_worse"]
    code, out, _ = here(capfd, monkeypatch, *words, "--force")
    assert (code, json.loads(out)["promoted"]) == (0, True)
    stale = json.loads(out)["stale"]
    code, out, _ = here(capfd, monkeypatch, "promote", "-w", workspace, first.model[:10], *SET, "--force")
    assert code == 0
    assert "Worst first" in out
    assert f"promote: {first.model[:12]} is the model of ct" in out
    here(capfd, monkeypatch, *words, "--force")
    code, out, _ = here(capfd, monkeypatch, "encode", "-w", workspace, "--json", *SET)
    assert json.loads(out)["encoded"] == stale
    code, out, _ = here(capfd, monkeypatch, "encode", "-w", workspace, "--profile", "quick", "--json", *SET)
    assert (code, json.loads(out)["error"]) == (console.USAGE, "BAD_USAGE")
    code, out, _ = here(capfd, monkeypatch, "gc", "-w", workspace, "--keep", "5", "--json", *SET)
    assert (code, json.loads(out)["folders"]) == (0, 0)


def test_init_looks_at_the_data_and_doctor_at_the_machine(tmp_path, archive_folder, capfd, monkeypatch):
    ws = tmp_path / "ws"
    code, out, _ = here(capfd, monkeypatch, "init", archive_folder, "-w", ws, "--json")
    assert (code, {entry["group"] for entry in json.loads(out)["groups"]}) == (0, {"ct", "mr", "pt"})
    code, _, err = here(capfd, monkeypatch, "init", "-w", ws)
    assert (code, "OCCUPIED" in err) == (console.USAGE, True)
    code, out, _ = here(capfd, monkeypatch, "ingest", "-w", ws, "--json", "--set", "cluster=inline")
    assert json.loads(out)["ingested"] == 4
    code, out, _ = here(capfd, monkeypatch, "doctor", "-w", ws, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True), out


def test_inspect_tells_of_runs_and_of_the_rung_a_series_is_on(finished, capfd, monkeypatch):
    code, out, _ = here(capfd, monkeypatch, "inspect", "-w", finished, "runs", "--json")
    runs = json.loads(out)["runs"]
    assert code == 0 and [run["verb"] for run in runs] == ["ingest", "train", "encode"]
    code, out, _ = here(capfd, monkeypatch, "inspect", "-w", finished, runs[-1]["run"], "--json")
    (one,) = json.loads(out)["runs"]
    assert one["state"] == "completed" and one["counts"]["encoded"] > 0
    code, out, _ = here(capfd, monkeypatch, "inspect", "-w", finished, runs[0]["run"])
    assert code == 0 and "ingest" in out and "completed" in out
    code, _, err = here(capfd, monkeypatch, "inspect", "-w", finished, "19990101T")
    assert code == 3 and "no run begins with 19990101T" in err
    code, out, _ = here(capfd, monkeypatch, "inspect", "-w", finished, "--json")
    assert {entry["rung"] for entry in json.loads(out)["series"]} == {"codes"}


def test_inspect_needs_neither_torch_nor_prefect(finished):
    probe = (
        "import sys; from flows.cli import main\n"
        f"sys.argv = ['voxbook', 'inspect', '-w', {str(finished)!r}, '--json']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'distributed', 'pydicom', 'zarr', 'sqlalchemy', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["series"]) == 4


def test_a_users_file_does_not_take_our_place_in_silence(tmp_path):
    (tmp_path / "model.py").write_text("raise SystemExit('wrong file')")
    done = voxbook("inspect", "-w", tmp_path, cwd=tmp_path, PYTHONSAFEPATH="")
    assert done.returncode == console.USAGE
    assert "SHADOWED" in done.stderr and "model.py" in done.stderr


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"found": False}, 3),
        ({"quarantined": 1}, 4),
        ({"below_gate": 1, "quarantined": 2}, 5),
        ({"damaged": 1, "below_gate": 1, "quarantined": 1, "found": False}, 6),
    ],
)
def test_the_highest_exit_code_wins(fields, code):
    assert exit_code(Outcome("encode", "run", {}, **fields)) == code


def test_every_error_class_has_its_exit_code():
    from archive import errors

    expected = {
        "InputError": 4,
        "TransientError": 1,
        "StoreError": 6,
        "MismatchError": 6,
        "QualityError": 5,
        "ConfigError": 2,
    }
    assert {name: exit_code_of(getattr(errors, name)("DAMAGED")) for name in expected} == expected
    assert exit_code_of(errors.StoreError("NOT_FOUND")) == 3

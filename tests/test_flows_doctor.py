"""`voxbook doctor`: each thing that may be wrong is found, and says what to do."""

from __future__ import annotations

import base64
import http.server
import threading
from contextlib import contextmanager

import postgres as server
import pytest

from archive.settings import ClusterSettings
from archive.workspace import Workspace
from flows import codec_check, doctor, reach
from flows.codec_check import SAMPLES, Sample


def test_every_compressed_transfer_syntax_that_is_read_has_a_sample_that_decodes():
    from archive.codestreams import CODED

    assert {sample.syntax for sample in SAMPLES} == CODED
    assert codec_check.broken() == {}


def test_a_codec_that_fails_or_gives_other_values_is_named():
    good = SAMPLES[0]
    cut = base64.b64encode(base64.b64decode(good.data)[:60]).decode()
    failing = Sample(good.syntax, "cut", cut, good.shown, good.off_by)
    other = Sample(good.syntax, "other", good.data, good.shown + 40, good.off_by)
    found = codec_check.broken((failing, other, good))
    assert set(found) == {"cut", "other"} and found["other"] == "wrong values"


def test_a_healthy_workspace_passes(finished):
    found = doctor.checks(finished)
    assert [check.name for check in found if not check.ok] == []
    assert {"Python", "versions", "torch", "codecs", "pseudonym key", "Prefect API", "disk", "permissions"} <= {
        check.name for check in found
    }
    assert not list(finished.glob(".doctor-*"))


def test_what_a_look_raises_is_a_finding_and_does_not_end_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_codecs", lambda: 1 / 0)
    monkeypatch.setenv("VOXBOOK_KEY", "short")
    found = {check.name: check for check in doctor.checks(tmp_path / "none")}
    assert "ZeroDivisionError" in found["codecs"].found and not found["codecs"].ok
    assert (found["pseudonym key"].ok, found["workspace"].ok) == (False, False)
    assert "NO_WORKSPACE" in found["workspace"].found and "voxbook init" in found["workspace"].hint


def test_a_version_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["numpy<1", "nosuchpackage>=2", "pytest; extra == 'x'"]
    )
    check = doctor._versions()
    assert not check.ok and "is not <1" in check.found and "nosuchpackage is missing" in check.found
    assert "pytest" not in check.found


def test_a_gpu_that_torch_cannot_use_is_not_passed_over(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("tasks.machine.gpus", lambda: ["GPU-1"])
    check = doctor._torch()
    assert not check.ok and "finds none" in check.found


def test_files_that_others_can_read_and_folders_that_take_none(workspace, monkeypatch):
    (workspace / "linkage.sqlite").chmod(0o644)
    check = reach.permissions(workspace)
    assert (check.ok, check.hint) == (False, "chmod 600 linkage.sqlite")

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.rename", refused)
    check = reach.permissions(workspace)
    assert not check.ok and "Read-only" in check.found and not list(workspace.glob(".doctor-*"))


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.reach.LEAST_FREE_BYTES", 2**80)
    assert not reach.disk(tmp_path / "not" / "yet").ok


@pytest.mark.parametrize(
    ("skew", "ok", "words"), [(0.1, True, "0.1 s behind"), (90, False, "90.0 s behind"), (-90, False, "ahead")]
)
def test_clocks(skew, ok, words):
    check = reach.skewed("clock: x", skew, "the server")
    assert check.ok is ok and words in check.found and "NTP" in check.hint


@contextmanager
def served(status: int, body: bytes, date: str | None = None):
    """A server on loopback that gives one answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(status)
            self.send_header("Date", date or self.date_time_string())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_prefect_server():
    import prefect

    with served(200, f'"{prefect.__version__}"'.encode()) as url:
        assert [check.ok for check in reach.prefect(url)] == [True, True]
    with served(200, b'"2.0.0"', "Mon, 01 Jan 2001 00:00:00 GMT") as url:
        version, clock = reach.prefect(url)
        assert not version.ok and "version 2.0.0" in version.found and not clock.ok
    with served(401, b"") as url:
        (check,) = reach.prefect(url)
        assert "refuses the password" in check.found and "PREFECT_API_AUTH_STRING" in check.hint
    (check,) = reach.prefect(url)  # gone now
    assert not check.ok and "does not answer" in check.found
    assert reach.prefect(None)[0].ok


def test_a_password_in_a_url_is_not_shown():
    (check,) = reach.prefect("http://me:secret@127.0.0.1:9/api")
    assert "secret" not in f"{check.found}{check.hint}" and "127.0.0.1:9" in check.found


def test_dask_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    for address, words in (
        ("tcp://127.0.0.1:9", "no scheduler answers"),
        ("slurm", "sbatch and squeue not found"),
        ("local-gpu", "no GPU is listed"),
    ):
        check = reach.dask(ClusterSettings(address=address))
        assert not check.ok and words in check.found and check.hint
    assert reach.dask(ClusterSettings(address="inline")).ok
    assert not reach.dask(ClusterSettings(address="local", workers=10**6)).ok


def test_a_scheduler_with_and_without_workers():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as own:
        assert reach.dask(ClusterSettings(address=own.scheduler_address)).ok
        own.scale(0)
        own.sync(own._correct_state)
        check = reach.dask(ClusterSettings(address=own.scheduler_address))
        assert not check.ok and "no workers" in check.found


def test_other_versions_on_workers_are_named():
    here = {"packages": {"dask": "1", "numpy": "2"}}
    there = {"packages": {"dask": "1", "numpy": "3"}}
    assert reach.different({"client": here, "scheduler": here, "workers": {"a": there}}) == ["numpy"]
    assert reach.different({"client": here, "scheduler": here, "workers": {"a": here}}) == []


def test_the_clock_of_a_database_server(postgres, tmp_path):
    root = tmp_path / "ws"
    root.mkdir()
    (root / "voxbook.toml").write_text(f'database = "{server.create(postgres)}"\n')
    found = reach.database(Workspace.open(root))
    assert [(check.name, check.ok) for check in found] == [("workspace", True), ("clock: database", True)]
    assert "postgresql" in found[0].found

"""What every test shares: a key of its own, no telemetry, the real data where it lies, one small encoded workspace."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["VOXBOOK_KEY"] = "a key for tests that protects nothing"
os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
os.environ.pop("PREFECT_API_URL", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests on two cores: more threads wait for each other

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# No Dask and few steps: these tests are about what becomes of series, not about speed or fidelity.
QUICK = ["cluster=inline", "train.preset=tiny", "train.steps=30", "train.max_seconds=60", "train.threads=1"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real, de-identified images beside the checkout; tests that need them are skipped where they are not."""
    if not (SHARED_DATA / "manifest.json").exists():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory, monkeypatch) -> None:
    """No test talks to the user's own server or Prefect profile."""
    monkeypatch.setenv("VOXBOOK_HOME", str(tmp_path_factory.getbasetemp() / "voxbook-home"))


@pytest.fixture(scope="session")
def archive_folder(tmp_path_factory) -> Path:
    """A small archive: two CT and an MR patient, a PET, a text file named .dcm, a note."""
    from phantoms import ct_volume, mr_volume, pet_volume, write_ct_series

    folder = tmp_path_factory.mktemp("archive")
    write_ct_series(folder / "a", ct_volume(seed=1), patient=1, name="one")
    write_ct_series(folder / "b", ct_volume(seed=2, shape=(5, 40, 56)), patient=2, name="two")
    write_ct_series(folder / "c", mr_volume(seed=3), patient=3, name="three")
    write_ct_series(folder / "d", pet_volume(seed=4), patient=1, name="four")
    (folder / "broken.dcm").write_text("not an image")
    (folder / "notes.txt").write_text("for nobody")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, archive_folder) -> Path:
    """A workspace of that archive, ingested, trained and encoded; tests read it, or take a copy."""
    from archive.workspace import Workspace
    from flows.encode import encode
    from flows.ingest import ingest
    from flows.train import train

    root = tmp_path_factory.mktemp("finished") / "ws"
    alias = Workspace.open(root, create=True).register_source(archive_folder)
    ingest.fn(workspace=str(root), sources=[alias], settings=QUICK)
    train.fn(workspace=str(root), settings=QUICK)
    encode.fn(workspace=str(root), settings=QUICK)
    return root


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of the finished workspace that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "ws"))


@pytest.fixture(scope="session")
def prefect_api():
    """One Prefect server with a database of its own for the whole session."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server of the tests' own; skipped where its programs are not installed."""
    import postgres as server

    pytest.importorskip("psycopg")
    if server.programs() is None:
        pytest.skip("no PostgreSQL programs here (apt-get install postgresql)")
    with server.cluster() as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by playwright; skipped where there is none.

    Not for the whole session: while it lives, its event loop runs in this thread, and `asyncio.run` of other tests fails.
    """
    import browsers

    pytest.importorskip("playwright")
    if browsers.program() is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with browsers.chromium() as opened:
        yield opened


@pytest.fixture
def page(browser):
    """A fresh page of 1280 x 900 that keeps nothing of the tests before."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()

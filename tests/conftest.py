"""What every test shares: a key of its own, no telemetry, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["DO_NOT_TRACK"] = "1"
os.environ["VOXBOOK_KEY"] = "a key for tests that protects nothing"
os.environ.pop("PREFECT_API_URL", None)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real, de-identified images beside the checkout; tests that need them are skipped where they are not."""
    if not (SHARED_DATA / "manifest.json").exists():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED_DATA

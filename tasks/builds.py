"""Which voxbook a process runs: workers that others started must run the driver's own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from archive.errors import MismatchError

PACKAGES = ("archive", "model", "tasks")  # what a worker runs


@functools.cache
def build() -> str:
    """Version and eight hex over the sources of this process: checkouts of one version differ too."""
    home = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((home / package).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{metadata.version('voxbook')}+{digest.hexdigest()[:8]}"


def run_as(wanted: str, function: Callable[[Any], Any], batch: Any) -> Any:
    """The function's result, in a worker of the same build. Raises MismatchError VERSIONS in any other.

    Here and not once at the start: workers may join while a stage runs.
    """
    if build() != wanted:
        raise MismatchError(
            "VERSIONS",
            f"the driver runs voxbook {wanted}, a worker {build()}",
            hint="install the same voxbook for driver and workers, and start the workers again",
        )
    return function(batch)

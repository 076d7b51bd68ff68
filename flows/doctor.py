"""`voxbook doctor`: what this machine has, what does not fit together, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from archive.errors import VoxbookError

LEAST_FREE_BYTES = 2 * 2**30
CODECS = ("pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pylibjpeg-rle")


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    hint: str = ""


def checks(workspace: Path | None = None) -> list[Check]:
    """Everything doctor looks at, in the order a person would."""
    found = [_python(), _versions(), _codecs(), _torch(), _key(), _prefect()]
    if workspace is not None:
        found += [_workspace(workspace), _disk(workspace)]
    return found


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), text, "install Python 3.11 or newer")


def _versions() -> Check:
    """Every requirement of this package against what is installed: the pins keep Prefect's server alive."""
    wrong = []
    for text in importlib.metadata.requires("voxbook") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} {have} is not {requirement.specifier}")
    return Check("versions", not wrong, "; ".join(wrong) or "fit together", "pip install -c constraints.txt -e .")


def _codecs() -> Check:
    missing = [name for name in CODECS if not _installed(name)]
    found = "all there" if not missing else f"missing: {', '.join(missing)}"
    return Check("codecs", not missing, found, "pip install " + " ".join(missing))


def _torch() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("torch", True, f"{torch.__version__} on {torch.cuda.get_device_name(0)}")
    return Check("torch", True, f"{torch.__version__} on {os.cpu_count()} CPU cores, no GPU")


def _key() -> Check:
    from archive.keys import ENVIRONMENT, Pseudonyms, key_path

    if ENVIRONMENT not in os.environ and not key_path().exists():
        return Check("pseudonym key", True, "none yet; made on first use")
    try:
        return Check("pseudonym key", True, f"fingerprint {Pseudonyms.load().fingerprint}; keep a copy of it safe")
    except VoxbookError as error:
        return Check("pseudonym key", False, error.message, error.hint)


def _prefect() -> Check:
    from flows.recording import answers, configured_api

    url = configured_api()
    if url is None:
        return Check("Prefect API", True, "none configured: stages run directly; voxbook up starts one")
    return Check("Prefect API", answers(url), url, "start it (voxbook up), or unset PREFECT_API_URL")


def _workspace(root: Path) -> Check:
    from archive.workspace import Workspace

    try:
        series = len(Workspace.open(root).catalog.series())
    except VoxbookError as error:
        return Check("workspace", False, error.message, error.hint)
    return Check("workspace", True, f"{series} series")


def _disk(root: Path) -> Check:
    folder = next(path for path in (root, *root.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    found = f"{free / 2**30:.1f} GiB free" + ("" if writable else ", not writable")
    return Check("disk", writable and free > LEAST_FREE_BYTES, found, "make room, or choose another folder")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

"""`voxbook doctor`: what this machine has, what does not fit together, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from archive.errors import VoxbookError, describe
from flows.checks import Check

PYTHON = (3, 11)


def checks(workspace: Path | None = None) -> list[Check]:
    """Everything doctor looks at, in the order a person would; none of them stops the others."""
    found: list[Check] = []
    for name, look in (
        ("Python", _python),
        ("versions", _versions),
        ("torch", _torch),
        ("codecs", _codecs),
        ("pseudonym key", _key),
        ("Prefect API", _prefect),
    ):
        found += _tried(name, look)
    return found + ([] if workspace is None else _of_workspace(workspace))


def _tried(name: str, look: Callable[[], Check | Sequence[Check]]) -> list[Check]:
    """What a look gives; an error is a finding of its own."""
    try:
        found = look()
    except VoxbookError as error:
        return [Check(name, False, f"{error.code}: {error.message}", error.hint)]
    except Exception as error:
        return [Check(name, False, f"could not be looked at: {describe(error)}", "report it, with this line")]
    return [found] if isinstance(found, Check) else list(found)


def _of_workspace(root: Path) -> list[Check]:
    from archive.workspace import Workspace
    from flows import reach

    found = []
    for name, look in (("disk", reach.disk), ("permissions", reach.permissions), ("clock: files", reach.file_clock)):
        found += _tried(name, lambda look=look: look(root))  # type: ignore[misc]
    opened = _tried("workspace", lambda: reach.database(Workspace.open(root)))
    found += opened
    if opened[0].ok:
        found += _tried("Dask", lambda: reach.dask(Workspace.open(root).settings.cluster))
    return found


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, PYTHON))
    hint = f"install Python {wanted} or newer and voxbook in an environment of it (python{wanted} -m venv)"
    return Check("Python", sys.version_info >= PYTHON, text, hint)


def _versions() -> Check:
    """Every requirement of this package against what is installed: the pins keep Prefect's server alive."""
    try:
        wanted = importlib.metadata.requires("voxbook") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("versions", False, "voxbook itself is not installed here", "pip install -c constraints.txt -e .")
    wrong = []
    for text in wanted:
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
    hint = "pip install -c constraints.txt -e . (in the repository), which takes what was tested together"
    return Check("versions", not wrong, "; ".join(wrong) or "fit together", hint)


def _torch() -> Check:
    """PyTorch really computes on the device that `auto` takes."""
    import torch

    from tasks.machine import cores, gpus

    if torch.cuda.is_available():
        device = torch.device("cuda")
        about = f"{torch.__version__} on {torch.cuda.get_device_name(0)}"
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        about += f", {memory:.0f} GiB" + (f", one of {count}" if (count := torch.cuda.device_count()) > 1 else "")
    else:
        device = torch.device("cpu")
        about = f"{torch.__version__} on {cores()} CPU cores"
        if gpus():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
            hint = "install a torch for your driver (nvidia-smi names its CUDA): see Install in the README"
            return Check("torch", False, f"{about}: a GPU is listed, but this torch is {built} and finds none", hint)
        about += ", no GPU"
    try:
        ones = torch.ones(1, 1, 8, 8, device=device)
        right = float(torch.nn.functional.conv2d(ones, ones[..., :2, :2]).sum()) == 196.0
    except RuntimeError as error:
        hint = "install a torch that supports this GPU, or train.device = cpu and encode.device = cpu"
        return Check("torch", False, f"{about}: a convolution failed ({type(error).__name__})", hint)
    found = about if right else f"{about}: a convolution gives wrong numbers"
    return Check("torch", right, found, "run it again; where it stays so, do not use the device")


def _codecs() -> Check:
    from flows.codec_check import SAMPLES, broken

    wrong = broken()
    if not wrong:
        return Check("codecs", True, f"all {len(SAMPLES)} compressed transfer syntaxes decode")
    listed = ", ".join(f"{name} ({why})" for name, why in wrong.items())
    hint = "pip install -c constraints.txt pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg pylibjpeg-rle pyjpegls"
    return Check("codecs", False, f"{len(wrong)} of {len(SAMPLES)} do not decode: {listed}", hint)


def _key() -> Check:
    from archive.keys import ENVIRONMENT, Pseudonyms, key_path

    if ENVIRONMENT not in os.environ and not key_path().exists():
        return Check("pseudonym key", True, "none yet; made on first use")
    fingerprint = Pseudonyms.load().fingerprint
    place = ENVIRONMENT if os.environ.get(ENVIRONMENT) else str(key_path())
    return Check("pseudonym key", True, f"fingerprint {fingerprint}, from {place}; keep a copy of it safe")


def _prefect() -> list[Check]:
    from flows import reach
    from flows.recording import configured_api

    return reach.prefect(configured_api())

"""dicom-validator with the tables of PS3.3 that the package dicom-standard ships (edition of 2020).

dicom-validator itself downloads the standard when it first runs; tests ask nobody. What is required only under a
condition (1C, 2C, C) is taken for optional here: the package has conditions in prose alone.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.prefix) / "standard"
OPTIONAL = {"1C": "3", "2C": "3"}


def available() -> bool:
    """Whether both packages are installed."""
    try:
        import dicom_validator  # noqa: F401
    except ImportError:
        return False
    return (FOLDER / "module_to_attributes.json").exists()


def problems(dataset: Any) -> list[str]:
    """What dicom-validator holds against a dataset: module, tag and kind of error, a line each."""
    from dicom_validator.validator.dicom_info import DicomInfo
    from dicom_validator.validator.iod_validator import IODValidator

    result = IODValidator(dataset, DicomInfo(*_tables(str(dataset.SOPClassUID)))).validate()
    found = [
        f"{module} {tag} {error.code.name}"
        for module, errors in (result.module_errors or {}).items()
        for tag, error in errors.items()
    ]
    return found or [] if result.status.name == "Passed" else [result.status.name, *found]


@functools.cache
def _tables(sop_class: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Dictionary, the IOD of one SOP class, and its modules, as dicom-validator keeps them."""
    names = {entry["name"]: entry["id"] for entry in _load("ciods")}
    iod = next(names[entry["ciod"]] for entry in _load("sops") if entry["id"] == sop_class)
    uses = {entry["moduleId"]: entry["usage"] for entry in _load("ciod_to_modules") if entry["ciodId"] == iod}
    listed = {name: {"ref": name, "use": "U" if use == "C" else use} for name, use in uses.items()}
    modules: dict[str, dict[str, Any]] = {name: {} for name in uses}
    for entry in _load("module_to_attributes"):
        _, *path = entry["path"].split(":")
        if entry["moduleId"] not in modules or any("x" in step for step in path):  # overlays: 60xx
            continue
        node = modules[entry["moduleId"]]
        for step in path[:-1]:
            node = node.setdefault(_tag(step), {"name": step, "type": "3"}).setdefault("items", {})
        kind = entry["type"] or "3"
        node.setdefault(_tag(path[-1]), {}).update(name=path[-1], type=OPTIONAL.get(kind, kind))
    words = {
        entry["tag"]: {
            "name": entry["name"],
            "vr": entry["valueRepresentation"],
            "vm": entry["valueMultiplicity"],
            "prop": "",
        }
        for entry in _load("attributes")
    }
    return words, {sop_class: {"title": iod, "modules": listed, "group_macros": {}}}, modules


def _tag(digits: str) -> str:
    return f"({digits[:4].upper()},{digits[4:].upper()})"


def _load(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))

"""Bytes: DICOM, NIfTI and pictures in, Zarr stores and the catalog; the lowest layer of voxbook."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archive.geometry import Geometry
    from archive.scan import scan
    from archive.series import read_series
    from archive.volume import Volume
    from archive.workspace import open_codes, open_volumes

__all__ = ["Geometry", "Volume", "open_codes", "open_volumes", "read_series", "scan"]

# Loaded when first asked for, so that `voxbook inspect` need not import pydicom, zarr and nibabel.
_HOMES = {
    "Geometry": "archive.geometry",
    "Volume": "archive.volume",
    "open_codes": "archive.workspace",
    "open_volumes": "archive.workspace",
    "read_series": "archive.series",
    "scan": "archive.scan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'archive' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """`archive.scan` is the function: importing the module of that name must not put itself in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

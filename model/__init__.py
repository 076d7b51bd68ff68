"""Tensors: the VQ-VAE, its training, encoding, decoding and measuring; no Prefect, no Dask, no DICOM here."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.bundle import load
    from model.dataset import CodesDataset
    from model.decode import decode_codes
    from model.decoded import open_decoded
    from model.encode import encode_volume
    from model.train import train

__all__ = ["CodesDataset", "decode_codes", "encode_volume", "load", "open_decoded", "train"]

# Loaded when first asked for: torch takes seconds to import.
_HOMES = {
    "CodesDataset": "model.dataset",
    "decode_codes": "model.decode",
    "encode_volume": "model.encode",
    "load": "model.bundle",
    "open_decoded": "model.decoded",
    "train": "model.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """`model.train` is the function: importing the module of that name must not put itself in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

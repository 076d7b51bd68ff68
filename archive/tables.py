"""Integer tables of a model's entropy coder: a file beside its weights, named by the sha256 of its bytes.

models/<model id>/tables.safetensors. Made known by opening codes of its workspace, or by VOXBOOK_TABLES (files, or
folders with such files at most two deep, separated like PATH), so that plain zarr.open decodes.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from archive.contexts import NEIGHBOURS
from archive.errors import StoreError
from archive.predictor import Network

FILE = "tables.safetensors"
FORMAT = "1"
VARIABLE = "VOXBOOK_TABLES"
_PARTS = {
    **{"vectors": np.int8, "coarser": np.int8, "inner_bias": np.int32, "second": np.int8, "second_bias": np.int32},
    **{"group": np.int8, "group_bias": np.int32, "member": np.int8, "member_bias": np.int32},
}  # fmt: skip
_known: dict[str, Tables] = {}


@dataclass(frozen=True)
class Tables:
    """What the coder of a model's codes knows before it sees any.

    name: sha256 hex of the file. priors: int32 [L, K], log2 of how often each code occurs, in 1/32 bits.
    folds: which levels are coded as one (archive.folds). networks: one per fold. distances: int64 [L, bins], how far
    training's latents lay from their codes (model.unlike); None in tables that were fitted before that was kept.
    """

    name: str
    priors: np.ndarray
    networks: tuple[Network, ...]
    distances: np.ndarray | None = None
    folds: tuple[int, ...] = ()


def to_bytes(
    priors: np.ndarray,
    networks: tuple[Network, ...],
    distances: np.ndarray | None = None,
    folds: tuple[int, ...] = (),
) -> bytes:
    """The file's bytes, the same for the same tables; folds: none where every level is coded by itself."""
    parts: dict[str, np.ndarray] = {
        "format": np.frombuffer(FORMAT.encode(), np.uint8),
        "priors": priors.astype(np.int32),
    }
    if distances is not None:
        parts["distances"] = distances.astype(np.int64)
    if set(folds) - {1}:
        parts["folds"] = np.array(folds, np.int32)
    for level, network in enumerate(networks):
        for key, kind in _PARTS.items():
            parts[f"{level}.{key}"] = getattr(network, key).astype(kind)
        for number, inner in enumerate(network.inner):
            parts[f"{level}.inner.{number}"] = inner.astype(np.int8)
        parts[f"{level}.place"] = network.place.astype(np.int32)
        parts[f"{level}.patience"] = np.array([network.patience], np.int32)
    return serialise(parts)


def from_bytes(data: bytes) -> Tables:
    """Tables of a file's bytes, made known to every later `find`. Raises StoreError DAMAGED, SCHEMA."""
    try:
        parts = parse(data)
        if parts["format"].tobytes() != FORMAT.encode():
            raise StoreError("SCHEMA", "tables of another format", hint="use the voxbook that wrote them")
        levels = len(parts["priors"])
        folds = tuple(int(fold) for fold in parts.get("folds", np.ones(levels, np.int32)))
        if min(folds, default=0) < 1 or sorted(folds) != list(folds) or sum(fold * fold for fold in folds) != levels:
            raise ValueError("folds of other levels")
        networks = tuple(_network(parts, number) for number in range(len(folds)))
        distances = parts.get("distances")
        if distances is not None and (distances.ndim != 2 or len(distances) != levels):
            raise ValueError("distances of other levels")
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        raise StoreError("DAMAGED", f"a model's tables do not read ({type(error).__name__})") from None
    tables = Tables(hashlib.sha256(data).hexdigest(), parts["priors"], networks, distances, folds)
    return _known.setdefault(tables.name, tables)


def of_model(models: Path, model: str) -> Tables | None:
    """Tables of a stored model; None where it has none. Raises as from_bytes does."""
    path = models / model / FILE
    return _read(path) if path.is_file() else None


def find(name: str) -> Tables:
    """Tables by their sha256. Raises StoreError NO_TABLES where nobody has made them known."""
    if name not in _known:
        for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
            path = Path(entry)
            for file in [path] if path.is_file() else [found for depth in ("", "*/", "*/*/") for found in
                                                       sorted(path.glob(depth + FILE))]:  # fmt: skip
                _read(file)
    if name not in _known:
        raise StoreError("NO_TABLES", tables=name)
    return _known[name]


@functools.lru_cache(maxsize=32)
def _read(path: Path) -> Tables:
    return from_bytes(path.read_bytes())


def _network(parts: dict[str, np.ndarray], level: int) -> Network:
    network = Network(
        **{key: parts[f"{level}.{key}"].astype(np.float32) for key in _PARTS},
        inner=tuple(parts[f"{level}.inner.{number}"].astype(np.float32) for number in range(len(NEIGHBOURS))),
        place=parts[f"{level}.place"],
        patience=int(parts[f"{level}.patience"][0]),
    )
    size, (groups, _, members) = network.size, network.member.shape
    if len(network.vectors) != size + 1 or network.place.min() < 0 or network.place.max() >= groups * members:
        raise ValueError("tables whose parts do not fit each other")
    return network

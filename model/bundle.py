"""A model as a folder that names itself: weights, config, card and training record, under the sha256 of the first three.

models/<model id>/ model.safetensors, config.json, tables.safetensors (of the entropy coder), README.md,
metrics.jsonl, progress.png, TensorBoard event files
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from archive.commit import STAGE, fault_point
from archive.errors import MismatchError, StoreError
from archive.owner import Owner
from archive.tables import FILE as TABLES
from archive.workspace import CONFIG, WEIGHTS
from model.card import card
from model.config import ModelConfig
from model.device import pick
from model.vqvae import VQVAE

CARD = "README.md"
# The moving averages are for going on with training.
_LEARNING_ONLY = ("quantizer.counts", "quantizer.sums", "quantizer.spread")


def identify(weights: Mapping[str, Tensor], config: bytes, tables: bytes | None = None) -> str:
    """The model id: sha256 hex over config.json as it lies, every weight's name, dtype, shape and bytes, and the tables.

    The bytes, not the config that they say: a field added to ModelConfig later must not give old bundles new ids.
    """
    digest = hashlib.sha256(config)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().tobytes())
    if tables is not None:
        digest.update(b"\0tables\0" + hashlib.sha256(tables).digest())
    return digest.hexdigest()


def save(
    model: VQVAE,
    config: ModelConfig,
    models: Path,
    summary: Mapping[str, Any],
    attachments: Mapping[str, Path] | None = None,
    tables: bytes | None = None,
) -> str:
    """Write `models/<model id>` and give the id; the folder appears whole or not at all.

    summary: plain numbers and words for the card (fidelity, data). attachments: name in the folder = file to copy,
    where it exists. tables: of the entropy coder (model.tables.fit); none: its codes cost their zero-order entropy.
    A whole bundle that is there already is left as it is: equal ids are equal models. One that lost files or was
    changed is replaced.
    """
    weights = _kept(model)
    written = _canonical(config)
    name = identify(weights, written, tables)
    target = models / name
    if check(target):
        stage, broken = (models / STAGE / f"{Owner.me().tag()}.{uuid.uuid4().hex}" for _ in "ab")
        stage.mkdir(parents=True)  # gc tells by the name whether its process is dead
        try:
            save_file(weights, stage / WEIGHTS, metadata={"format": "voxbook 1"})
            (stage / CONFIG).write_bytes(written)
            if tables is not None:
                (stage / TABLES).write_bytes(tables)
            (stage / CARD).write_text(card(name, model, config, summary))
            for file, source in (attachments or {}).items():
                if source.exists():
                    shutil.copyfile(source, stage / file)
            for path in [*stage.iterdir(), stage]:
                _sync(path)
            fault_point("bundle.staged")
            if check(target) and target.exists():
                with contextlib.suppress(FileNotFoundError):  # another process had the same in hand
                    target.rename(broken)
                fault_point("bundle.moved")
            try:
                stage.rename(target)
            except OSError:
                if not target.exists():  # another process that had the same model in hand may have been first
                    raise
            fault_point("bundle.renamed")
            _sync(models)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            shutil.rmtree(broken, ignore_errors=True)
    model.model_id = name
    return name


def load(folder: Path | str, model: str | None = None, device: str | None = None) -> VQVAE:
    """The model of a bundle, ready to encode and decode; kept per process, so a second call costs nothing.

    model: the id that it must have; None: the folder's name. device: None is the CPU. Raises StoreError MISSING,
    DAMAGED; MismatchError WRONG_MODEL where weights and config do not hash to the id.
    """
    folder = Path(folder)
    return _load(folder.resolve(), model or folder.name, str(pick(device or "cpu")))


def check(folder: Path) -> str:
    """The reason code of what is wrong with a bundle, its files read anew and hashed: empty, MISSING or DAMAGED.

    Not by `load`, which may have the model in memory from before its files changed.
    """
    try:
        read(folder, folder.name)
    except StoreError:
        return "MISSING"
    except (MismatchError, OSError):  # EIO, EACCES: the bytes are there and cannot be had
        return "DAMAGED"
    return ""


@functools.lru_cache(maxsize=8)
def _load(folder: Path, name: str, device: str) -> VQVAE:
    weights, written = read(folder, name)
    try:
        config = ModelConfig.model_validate_json(written)
    except ValidationError:
        raise MismatchError("WRONG_MODEL", "a model's config is not of this version of voxbook", model=name) from None
    model = VQVAE(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - set(_LEARNING_ONLY):
        raise MismatchError("WRONG_MODEL", "a model's weights do not fit its config", model=name)
    model.model_id = name
    return model.to(torch.device(device)).eval().requires_grad_(False)


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], bytes]:
    """Weights and config.json of the bundle of that id, read anew and hashed.

    Raises StoreError MISSING; MismatchError WRONG_MODEL.
    """
    try:
        written = (folder / CONFIG).read_bytes()
        weights = load_file(folder / WEIGHTS)
        tables = (folder / TABLES).read_bytes() if (folder / TABLES).exists() else None
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            "MISSING",
            "a model's files are gone",
            hint="restore its folder in models/ from a copy, or voxbook train, then voxbook encode",
            model=name,
        ) from None
    except SafetensorError as error:
        raise MismatchError(
            "WRONG_MODEL", f"a model's files do not read ({type(error).__name__})", model=name
        ) from None
    if identify(weights, written, tables) != name:
        raise MismatchError("WRONG_MODEL", "a model's weights, config or tables are not those of its id", model=name)
    return weights, written


def _kept(model: VQVAE) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in _LEARNING_ONLY
    }


def _canonical(config: ModelConfig) -> bytes:
    return json.dumps(config.model_dump(mode="json"), sort_keys=True, indent=1).encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

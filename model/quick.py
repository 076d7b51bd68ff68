"""The `fast` profile's encoder: channels last, compiled where that helps."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor

from model.quantize import Found
from model.vqvae import VQVAE

_made: weakref.WeakKeyDictionary[VQVAE, Quick] = weakref.WeakKeyDictionary()


class Quick:
    """A model's encoder in a memory format of its own; the model's weights, and so its exact codes, stay as they are."""

    def __init__(self, model: VQVAE) -> None:
        self.layout: Any = torch.channels_last if model.config.dims == 2 else torch.channels_last_3d
        encoder: Any = copy.deepcopy(model.encoder)
        self.encoder: Any = encoder.to(memory_format=self.layout)
        self.quantizer = model.quantizer
        self.plain = self.encoder
        if model.device.type == "cuda":
            self.encoder = torch.compile(self.encoder, dynamic=False)

    def find(self, x: Tensor, levels: int | None = None) -> Found:
        """The codebooks' part of VQVAE.find, under the caller's autocast; the search is in float32."""
        x = x.contiguous(memory_format=self.layout)
        try:
            latents = self.encoder(x)
        except Exception:
            if self.encoder is self.plain:
                raise
            self.encoder = self.plain  # no compiler on this machine
            latents = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.quantizer.find(latents.float(), levels)


def quick(model: VQVAE) -> Quick:
    """Made once per model; a model whose weights move afterwards needs a new one."""
    found = _made.get(model)
    if found is None or next(found.plain.parameters()).device != model.device:
        found = _made[model] = Quick(model)
    return found

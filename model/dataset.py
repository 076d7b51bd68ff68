"""Codes as training data: a torch Dataset over the encoded series of a workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class CodesDataset(Dataset[dict[str, Any]]):
    """One item a slab of codes: {"codes": int64 [L, z, y, x], "series": str, "t": int, "z": int}.

    codes: series = StoredCodes, as archive.open_codes(workspace) gives. rows: rows of the code grid along z in an
    item; None takes the whole series, whose sizes then differ. Items of a DataLoader worker are read there.
    """

    def __init__(self, codes: Mapping[str, Any], rows: int | None = 1, levels: int | None = None) -> None:
        self._codes = {name: codes[name] for name in sorted(codes)}
        self._levels = levels
        self._places: list[tuple[str, int, int, int]] = []
        for name, stored in self._codes.items():
            frames = stored.shape[1] if len(stored.shape) == 5 else 1
            depth = stored.shape[-3]
            step = min(rows or depth, depth)
            self._places += [(name, t, z, z + step) for t in range(frames) for z in range(0, depth - step + 1, step)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, t, start, stop = self._places[index]
        stored = self._codes[name]
        found = stored.slab(start, stop, levels=self._levels, t=t if len(stored.shape) == 5 else None)
        codes: Tensor = torch.from_numpy(np.asarray(found).astype(np.int64))
        return {"codes": codes, "series": name, "t": t, "z": start}

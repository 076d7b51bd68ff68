"""Codes as training data: an endless supply of shuffled patches of codes, shared out over ranks and workers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from archive.codes import StoredCodes
from archive.errors import ConfigError, StoreError

Item = dict[str, Any]
_Place = tuple[str, int, int, int, int]  # series, t, z, y, x


class CodesDataset(IterableDataset[Item]):
    """Patches of the code grid, {"codes": int64 [L, z, y, x], "series": str, "at": (t, z, y, x)}, each once an epoch.

    workspace: its folder or Workspace, or a mapping of series to StoredCodes. group: only that group's series; series
    of one batch should be of one model. patch: rows of the code grid along (z, y, x), None along an axis for all of it;
    a smaller grid gives what it has, and what is left over at an axis' end is in a patch that overlaps its neighbour.
    levels: only the first so many. The order follows from seed, epoch (set_epoch before each) and the number of ranks
    and DataLoader workers, who share out whole series. Under torch.distributed rank and ranks are found.
    cache_bytes: codes kept decoded by each worker; what fits is decoded once, in the first epoch.

    Raises ConfigError BAD_VALUE; StoreError NOT_FOUND without codes, and what reading raises.
    """

    def __init__(
        self,
        workspace: Any,
        *,
        group: str | None = None,
        patch: tuple[int | None, int | None, int | None] = (1, None, None),
        levels: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
        cache_bytes: int = 2**30,
    ) -> None:
        if any(size is not None and size < 1 for size in patch) or len(patch) != 3:
            raise ConfigError("BAD_VALUE", f"a patch is three sizes from 1 up, or None, not {patch}")
        self._codes = _stored(workspace, group)
        if not self._codes:
            raise StoreError("NOT_FOUND", "there are no codes to read", hint="voxbook encode")
        self._patch, self._levels = patch, levels
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._rank, self._ranks = _rank(rank, ranks)
        self._cache_bytes, self._held = cache_bytes, 0
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()  # [L, t, z, y, x]

    def set_epoch(self, epoch: int) -> None:
        """Order the next pass as that epoch's; persistent DataLoader workers keep their copy and do not hear of it."""
        self._epoch = epoch

    @property
    def patches(self) -> int:
        """Of one epoch over all ranks and workers."""
        return sum(len(self._places(series)) for series in self._codes)

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        share, shares = self._rank * workers + number, self._ranks * workers
        for place in self._order(share, shares):
            yield self._item(*place)

    def _order(self, share: int, shares: int) -> list[_Place]:
        """The patches of one reader; series go to readers for good, so that each reader's cache holds its own."""
        load = [0] * shares
        mine: list[str] = []
        # Largest first, each to the reader that has least: the same everywhere, and even to one series.
        sizes = {series: len(self._places(series)) for series in self._codes}
        for series in sorted(sizes, key=lambda one: (-sizes[one], one)):
            reader = load.index(min(load))
            load[reader] += sizes[series]
            if reader == share:
                mine.append(series)
        places = [place for series in mine for place in self._places(series)]
        if self._shuffle:
            generator = np.random.default_rng([self._seed, self._epoch, share])
            places = [places[index] for index in generator.permutation(len(places))]
            if not self._fits(mine):
                # Series by series where not all can be held: each is decoded once an epoch.
                order = {series: at for at, series in enumerate(generator.permutation(np.array(mine)).tolist())}
                places.sort(key=lambda place: order[place[0]])
        return places

    def _places(self, series: str) -> list[_Place]:
        shape = self._codes[series].shape
        frames = shape[1] if len(shape) == 5 else 1
        starts = [_starts(size, step or size) for size, step in zip(shape[-3:], self._patch, strict=True)]
        return [(series, t, z, y, x) for t in range(frames) for z in starts[0] for y in starts[1] for x in starts[2]]

    def _fits(self, series: list[str]) -> bool:
        return sum(2 * int(np.prod(self._codes[one].shape)) for one in series) <= self._cache_bytes

    def _item(self, series: str, t: int, z: int, y: int, x: int) -> Item:
        whole = self._whole(series)
        deep, high, wide = (step or size for size, step in zip(whole.shape[-3:], self._patch, strict=True))
        found = whole[:, t, z : z + deep, y : y + high, x : x + wide]
        return {"codes": torch.from_numpy(found.astype(np.int64)), "series": series, "at": (t, z, y, x)}

    def _whole(self, series: str) -> np.ndarray:
        """Codes uint16 [L, t, z, y, x] of a series, decoded once while they are held."""
        if series in self._cache:
            self._cache.move_to_end(series)
            return self._cache[series]
        array = self._codes[series].read(self._levels).array
        array = array if array.ndim == 5 else array[:, None]
        self._cache[series] = array
        self._held += array.nbytes
        while self._held > self._cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return array


def _stored(workspace: Any, group: str | None) -> dict[str, StoredCodes]:
    """Current codes by series, sorted; folders only, so that it can go to workers."""
    if isinstance(workspace, Mapping):
        if group is not None:
            raise ConfigError("BAD_USAGE", "group= is for a workspace", hint="choose the series yourself")
        return {series: workspace[series] for series in sorted(workspace)}
    from archive.workspace import Workspace, open_codes

    opened = workspace if isinstance(workspace, Workspace) else Workspace.open(Path(workspace))
    current = open_codes(opened)
    rows = opened.catalog.series(group=group)
    return {name: current[name] for name in sorted(row.series for row in rows if row.codes_version)}


def _rank(rank: int | None, ranks: int | None) -> tuple[int, int]:
    from torch import distributed

    if (rank is None) != (ranks is None):
        raise ConfigError("BAD_VALUE", "rank and ranks go together")
    if rank is not None and ranks is not None:
        if not 0 <= rank < ranks:
            raise ConfigError("BAD_VALUE", f"rank {rank} of {ranks}")
        return rank, ranks
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _starts(size: int, step: int) -> list[int]:
    """Where patches begin along an axis; the last one ends with the axis."""
    if step >= size:
        return [0]
    return [*range(0, size - step, step), size - step]

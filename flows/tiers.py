"""One time point of a series, of its volume, its codes or their bounded layer: read where it is looked at, then kept."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archive.arrays import read_region
from archive.bounded import Bounded
from archive.volumes import StoredVolume

Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Tier:
    """What can be read of one tier.

    read(t, region): stored values [(c), z, y, x] of a region (voxels z y x) of one time point. cuts: voxels along z, y
    and x, both ends included; a part between them costs as much to read as any of its voxels.
    """

    read: Callable[[int, Region], np.ndarray] = field(repr=False)
    cuts: tuple[list[int], list[int], list[int]]
    channels: int | None
    dtype: np.dtype

    @classmethod
    def of_volume(cls, volume: StoredVolume) -> Tier:
        """The lossless volume: parts are its chunks."""

        def read(t: int, region: Region) -> np.ndarray:
            named = dict(zip("zyx", region, strict=True)) | {"t": slice(t, t + 1), "c": slice(0, volume.channels)}
            block = read_region(volume.array, volume.folder / "0", tuple(named[name] for name in volume.axes))
            return block[0] if "t" in volume.axes else block

        z, y, x = (
            [*range(0, size, step), size]
            for size, step in zip(volume.shape[-3:], volume.array.chunks[-3:], strict=True)
        )
        return cls(read, (z, y, x), volume.channels if "c" in volume.axes else None, volume.dtype)

    @classmethod
    def of_decoded(cls, decoded: Any) -> Tier:
        """Codes through the network (model.decoded.DecodedVolume): parts are its windows."""
        timed, colour = decoded.axes.startswith("t"), "c" in decoded.axes

        def read(t: int, region: Region) -> np.ndarray:
            return decoded[(t, ..., *region)] if timed else decoded[(..., *region)]

        channels = decoded.shape[decoded.axes.index("c")] if colour else None
        return cls(read, decoded.cuts, channels, decoded.dtype)

    @classmethod
    def of_bounded(cls, layer: Bounded) -> Tier:
        """The layer that bounds every voxel's error: parts are slices; owes nothing to the network."""
        axes, shape, dtype = layer.attributes["axes"], layer.attributes["shape"], np.dtype(layer.attributes["dtype"])
        channels = shape[axes.index("c")] if "c" in axes else None

        def read(t: int, region: Region) -> np.ndarray:
            sizes = [part.stop - part.start for part in region]
            block = np.empty((*([] if channels is None else [channels]), *sizes), dtype)
            layer.into(block, t, region)
            return block

        depth, rows, columns = shape[-3:]
        return cls(read, (list(range(depth + 1)), [0, rows], [0, columns]), channels, dtype)


class Held:
    """What was read of one time point of one tier: stored values, and which parts of them are there.

    Grows to the time point's size at most: memory is taken by what is written. Safe to use from several threads.
    """

    def __init__(self, tier: Tier, t: int) -> None:
        self.tier, self.t = tier, t
        shape = tuple(cuts[-1] for cuts in tier.cuts)
        self._array = np.zeros((*([] if tier.channels is None else [tier.channels]), *shape), tier.dtype)
        self._known = np.zeros([len(cuts) - 1 for cuts in tier.cuts], bool)
        self._reading = threading.Lock()

    def look(self, region: Region, patience_s: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Stored values [z, y, x, (c)] of a region, which of its voxels are there, bool [z, y, x], and their share.

        Reads what is missing for `patience_s` and then shows what there is; one part at least is read.
        """
        deadline = time.monotonic() + patience_s
        spans = [
            range(bisect.bisect_right(cuts, part.start) - 1, bisect.bisect_left(cuts, part.stop))
            for cuts, part in zip(self.tier.cuts, region, strict=True)
        ]
        with self._reading:
            for place in itertools.product(*spans):
                if self._known[place]:
                    continue
                inside = self._part(place)
                self._array[(..., *inside)] = self.tier.read(self.t, inside)
                self._known[place] = True
                if time.monotonic() > deadline:
                    break
            values = self._array[(..., *region)]
            values = np.moveaxis(values, 0, -1).copy() if self.tier.channels is not None else values.copy()
            known = self._mask(region, spans)
        return values, known, float(known.mean())

    def _part(self, place: tuple[int, ...]) -> Region:
        z, y, x = (slice(cuts[at], cuts[at + 1]) for cuts, at in zip(self.tier.cuts, place, strict=True))
        return z, y, x

    def _mask(self, region: Region, spans: list[range]) -> np.ndarray:
        mask = np.zeros([part.stop - part.start for part in region], bool)
        for place in self._known_places(spans):
            own = [
                slice(max(part.start, want.start) - want.start, min(part.stop, want.stop) - want.start)
                for part, want in zip(self._part(place), region, strict=True)
            ]
            mask[tuple(own)] = True
        return mask

    def _known_places(self, spans: list[range]) -> Iterator[tuple[int, ...]]:
        return (place for place in itertools.product(*spans) if self._known[place])

"""Training patches: what a batch holds depends on the seed and the step alone, so a resumed run sees the same."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from archive.errors import InputError
from model import intensity
from model.balance import drawing_weights
from model.config import ModelConfig
from model.source import Source, as_source, channel_slab, channels

log = logging.getLogger(__name__)

SLAB = 8  # slices read at once, the stores' chunk along z
FLAT = 0.02  # a patch whose standard deviation, in the model's range of 2, is below this counts as air
TRIES = 4  # a flat patch is drawn again so often, then taken: air is capped, not banned
POOL_STEPS = 128  # steps that share a pool of slabs, where not all of them fit in memory


class PatchSampler:
    """Batches of patches float32 [B, C, *patch] in the model's range.

    Series are drawn with voxels ** temperature (cells of `balance` first: model/balance.py), slices and places evenly,
    flat patches again up to three times; flips along y and x, their exchange, and intensity jitter. Small images are
    padded by their edges to the patch.
    Slabs stay in memory, mapped to the model's range as float16, least recently used out first, within `cache_bytes`.
    """

    def __init__(self, volumes: Mapping[str, Any], config: ModelConfig, seed: int, cache_bytes: int) -> None:
        self.config, self.seed, self.cache_bytes = config, seed, cache_bytes
        self.sources: list[Source] = []
        self.mappings: list[intensity.Mapping] = []
        for name in sorted(volumes):
            source = as_source(volumes[name])
            if channels(source) != config.channels:
                raise InputError("UNSUPPORTED_PIXELS", "grey and colour series need models of their own")
            try:
                self.mappings.append(intensity.fit(source, config.intensity))
            except InputError as error:  # encoding will refuse it too, and name it
                log.warning("a series is left out of this training (%s): voxbook verify tells which", error.code)
                continue
            self.sources.append(source)
        if not self.sources:
            raise InputError("NOTHING_FOUND", "no volumes to train on")
        sizes = np.array([float(np.prod(source.shape)) for source in self.sources])
        self.weights = drawing_weights(self.sources, config)
        self.slab_bytes = int(max(2 * SLAB * np.prod(source.shape[-2:]) * config.channels for source in self.sources))
        self._clips = all(mapping.clip for mapping in self.mappings)
        self._fits = bool(2 * sizes.sum() <= cache_bytes)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    @property
    def pieces(self) -> int:
        """Slices of all series (blocks of the patch's depth, in 3D): as many patches make an epoch."""
        return sum(max(1, round(source.slices / self.config.patch[0])) for source in self.sources)

    def batch(self, step: int) -> np.ndarray:
        """The batch of a step, float32 [B, C, *patch]."""
        rng = np.random.default_rng([self.seed, 7, step])
        pool = None if self._fits else self._pool(step // POOL_STEPS)
        return np.stack([self._patch(rng, pool) for _ in range(self.config.batch_size)])

    def batches(self, start: int, stop: threading.Event, ahead: int = 2) -> Iterator[np.ndarray]:
        """Batches from step `start` on, made ahead by one thread until `stop` is set."""
        with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
            coming: list[Future[np.ndarray]] = [pool.submit(self.batch, start + i) for i in range(ahead)]
            step = start + ahead
            while not stop.is_set():
                yield coming.pop(0).result()
                coming.append(pool.submit(self.batch, step))
                step += 1
            for future in coming:
                future.cancel()

    def _patch(self, rng: np.random.Generator, pool: list[tuple[int, int]] | None) -> np.ndarray:
        best, most = np.empty(0), -1.0
        for _ in range(TRIES):
            candidate = self._draw(rng, pool)
            deviation = float(candidate.std())
            if deviation > most:
                best, most = candidate, deviation
            if most > FLAT or rng.random() < 0.1:
                break
        return self._jittered(rng, best)

    def _jittered(self, rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
        """Half of the patches brighter or darker and of other contrast, so that the codes learn more than these patients.

        Contrast is stretched from the low end (air) by up to `jitter`, then all is shifted by up to 0.3 of that; worth
        2 dB on a patient of another scanner (docs/log.md). Geometry stays as it is.
        """
        share, stretch, shift = rng.random(), *rng.uniform(-self.config.jitter, self.config.jitter, 2)
        if share < 0.5 or not self.config.jitter:
            return patch
        moved = (patch + 1) * np.float32(1 + stretch) - np.float32(1 - 0.3 * shift)
        return moved.clip(-1, 1) if self._clips else moved

    def _draw(self, rng: np.random.Generator, pool: list[tuple[int, int]] | None) -> np.ndarray:
        depth_wanted, *window = self.config.patch
        if pool is None:
            which = int(rng.choice(len(self.sources), p=self.weights))
            first = None
        else:
            which, first = pool[int(rng.integers(len(pool)))]
        source = self.sources[which]
        depth = source.shape[-3]
        if self.config.dims == 3:
            start, stop = self._deep(rng, source, depth, depth_wanted, first)
        else:
            low, high = (0, source.slices) if first is None else (first, min(first + SLAB, source.slices))
            start = int(rng.integers(low, high))
            stop = start + 1
        sizes = source.shape[-2:]
        corner = [int(rng.integers(0, max(1, size - want + 1))) for size, want in zip(sizes, window, strict=True)]
        where = tuple(slice(at, at + want) for at, want in zip(corner, window, strict=True))
        block = self._read(which, start, stop, where)  # [n, c, y, x]
        block = block[..., :: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        short = [(0, depth_wanted - len(block)), (0, 0)]
        short += [(0, want - size) for want, size in zip(window, block.shape[-2:], strict=True)]
        if any(after for _, after in short):
            block = np.pad(block, short, mode="edge")
        if window[0] == window[1] and rng.random() < 0.5:
            block = np.swapaxes(block, -1, -2)
        patch = np.moveaxis(block, 1, 0).astype(np.float32)  # [c, z, y, x]
        return patch if self.config.dims == 3 else patch[:, 0]

    @staticmethod
    def _deep(rng: np.random.Generator, source: Source, depth: int, wanted: int, first: int | None) -> tuple[int, int]:
        take = min(wanted, depth)
        t = int(rng.integers(source.slices // depth)) if first is None else first // depth
        z = int(rng.integers(depth - take + 1)) if first is None else min(first % depth, depth - take)
        return t * depth + z, t * depth + z + take

    def _pool(self, epoch: int) -> list[tuple[int, int]]:
        """Slabs that the steps of one epoch draw from: half of what the cache holds, so that it need not thrash."""
        rng = np.random.default_rng([self.seed, 11, epoch])
        count = max(4, int(self.cache_bytes // 2 // self.slab_bytes))
        picks = rng.choice(len(self.sources), size=count, p=self.weights)
        return [(int(i), int(rng.integers(-(-self.sources[i].slices // SLAB))) * SLAB) for i in picks]

    def _read(self, which: int, start: int, stop: int, where: tuple[slice, ...]) -> np.ndarray:
        parts = []
        for at in range(start // SLAB * SLAB, stop, SLAB):
            slab = self._slab(which, at)
            parts.append(slab[max(start - at, 0) : stop - at, :, where[0], where[1]])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _slab(self, which: int, start: int) -> np.ndarray:
        key = (which, start)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        source = self.sources[which]
        mapping = self.mappings[which]
        values = channel_slab(source, start, min(start + SLAB, source.slices))
        if not np.isfinite(values).all():  # encoding refuses such a series by name; training must only not stop on it
            values = np.nan_to_num(values, nan=mapping.low, posinf=mapping.high, neginf=mapping.low)
        # float16 keeps 11 bits of the model's range: below the noise of any scanner, half the memory.
        slab = np.clip(mapping.to_model(values), -60_000, 60_000).astype(np.float16)
        with self._lock:
            self._cache[key] = slab
            self._cached += slab.nbytes
            while self._cached > self.cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return slab

"""Codes as training data: every patch once an epoch, shared out whole, in an order that a seed gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from archive import codes as code_store
from archive.codes import Codes, StoredCodes
from archive.errors import ConfigError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume
from model.dataset import CodesDataset

SHAPES = {"a": (2, 5, 6, 7), "b": (2, 1, 4, 4), "c": (2, 3, 2, 6, 7), "d": (2, 8, 6, 7)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredCodes]:
    root = tmp_path_factory.mktemp("codes")
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        array = np.random.default_rng(number).integers(0, 64, shape).astype(np.uint16)
        voxels = np.zeros(
            [size * 4 if axis >= len(shape) - 3 else size for axis, size in enumerate(shape)][1:], np.int16
        )
        source = Volume(voxels, "tzyx"[-voxels.ndim :], Geometry.pixels(voxels.shape[-3:]), "CT")
        codes = Codes(array, "m" * 64, 2, 64, (4, 4, 4), source.attributes())
        found[name] = StoredCodes(root / name / code_store.write(codes, root, name).version)
    return found


def places(dataset) -> list[tuple]:
    return [(item["series"], *item["at"]) for item in dataset]


def test_patches_are_the_codes_there(stored) -> None:
    dataset = CodesDataset(stored, patch=(2, 4, None), levels=1)
    covered = {name: np.zeros(one.read().array[0].shape, bool) for name, one in stored.items()}
    for item in dataset:
        series, (t, z, y, _) = item["series"], item["at"]
        whole = stored[series].read().array
        whole = whole if whole.ndim == 5 else whole[:, None]
        assert np.array_equal(item["codes"].numpy(), whole[:1, t, z : z + 2, y : y + 4])
        seen = covered[series] if covered[series].ndim == 4 else covered[series][None]
        seen[t, z : z + 2, y : y + 4] = True
    assert all(seen.all() for seen in covered.values())


def test_order_follows_from_seed_and_epoch(stored) -> None:
    first, again, other = CodesDataset(stored), CodesDataset(stored), CodesDataset(stored, seed=1)
    assert places(first) == places(again) == places(first)
    assert places(first) != places(other)
    assert sorted(places(first)) == sorted(places(other))
    again.set_epoch(1)
    assert places(first) != places(again)
    plain = places(CodesDataset(stored, shuffle=False))
    assert len(plain) == first.patches == len(set(plain)) and plain == sorted(plain, key=lambda p: plain.index(p))
    assert plain != places(first)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (3, 2)])
def test_readers_share_every_patch(stored, ranks: int, workers: int) -> None:
    found = []
    for rank in range(ranks):
        dataset = CodesDataset(stored, rank=rank, ranks=ranks)
        # From a process of its own: this one has threads of whatever ran before, and a fork of it may not live.
        context = "forkserver" if workers else None
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
        found += [(item["series"], *item["at"]) for item in loader]
    assert sorted(found) == sorted(places(CodesDataset(stored)))


def test_little_room_decodes_each_series_once_an_epoch(stored, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = StoredCodes.read
    monkeypatch.setattr(
        StoredCodes, "read", lambda self, levels=None: (reads.append(self.folder), real(self, levels))[1]
    )
    small = CodesDataset(stored, cache_bytes=1)
    assert sorted(places(small)) == sorted(places(CodesDataset(stored, cache_bytes=1)))
    assert len(reads) == 2 * len(stored)
    reads.clear()
    large = CodesDataset(stored)
    assert places(large) and places(large) and len(reads) == len(stored)


def test_what_cannot_be_is_refused(stored) -> None:
    with pytest.raises(StoreError, match="NOT_FOUND"):
        CodesDataset({})
    for about in ({"patch": (0, 1, 1)}, {"rank": 1}, {"rank": 2, "ranks": 2}, {"group": "ct"}):
        with pytest.raises(ConfigError):
            CodesDataset(stored, **about)

"""Levels that are places of one finer grid: seen as that grid and back, and coded as one."""

from __future__ import annotations

import numpy as np
import pytest
from test_archive_entropy import SIZE, network, smooth

from archive import entropy, folds, tables
from archive.errors import StoreError

FOLDS = (1, 1, 2, 4)


def levels(grid: tuple[int, int, int], count: int = 22, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZE, (count, *grid)).astype(np.uint16)


def folding() -> tables.Tables:
    priors = np.random.default_rng(3).integers(-400, 0, (22, SIZE))
    networks = tuple(network(number, coarser=number > 0) for number in range(len(FOLDS)))
    return tables.from_bytes(tables.to_bytes(priors, networks, None, FOLDS))


def test_places_of_a_cell_are_neighbours_and_come_back() -> None:
    codes = levels((3, 5, 7), 16)
    plane = folds.folded(codes)
    assert plane.shape == (3, 20, 28)
    for place in range(16):
        assert np.array_equal(plane[:, place // 4 :: 4, place % 4 :: 4], codes[place])
    assert np.array_equal(folds.unfolded(plane, 4), codes)
    coarse = codes[0]
    assert np.array_equal(folds.refined(coarse, plane.shape)[:, 2::4, 3::4], coarse)
    assert folds.refined(coarse, coarse.shape) is coarse


def test_spans_are_whole_folds_and_single_levels_for_the_rest() -> None:
    assert list(folds.spans(22, FOLDS)) == [(0, 1, 0), (1, 1, 1), (2, 2, 2), (6, 4, 3)]
    assert list(folds.spans(4, FOLDS)) == [(0, 1, 0), (1, 1, 1), (2, 1, None), (3, 1, None)]
    assert list(folds.spans(2, ())) == [(0, 1, None), (1, 1, None)]
    assert [part.shape for part in folds.planes(levels((2, 3, 4), 7), FOLDS)] == [(2, 3, 4), (2, 3, 4), (2, 6, 8)]


@pytest.mark.parametrize("grid", [(3, 9, 8), (2, 3, 3), (1, 12, 11)])
@pytest.mark.parametrize("count", [22, 9, 6, 2])
def test_folded_levels_are_coded_as_one_and_read_by_any_prefix(grid: tuple[int, int, int], count: int) -> None:
    have = folding()
    codes = levels(grid, count)
    codes[0] = smooth((1, *grid))[0]
    codes[2:] = np.where(np.random.default_rng(1).random(codes[2:].shape) < 0.95, 0, codes[2:])
    coded = entropy.encode(codes, SIZE, have)
    about = entropy.head(coded)
    within = [level for level, mode in enumerate(about.modes) if mode == entropy.WITHIN]
    assert within == {22: [3, 4, 5, *range(7, 22)], 9: [3, 4, 5], 6: [3, 4, 5], 2: []}[count]
    for stop in range(1, count + 1):
        prefix = coded[: about.end(stop)]
        for deep in (1, grid[0]):
            found = entropy.decode(prefix, grid[1:], SIZE, have, stop, deep)
            np.testing.assert_array_equal(found, codes[:stop, :deep])


def test_places_that_differ_are_coded_apart() -> None:
    """A decoder that draws a pattern leaves the same over at the same place of every cell."""
    have = folding()
    rng = np.random.default_rng(0)
    codes = levels((3, 24, 24))
    codes[2:6] = (np.arange(4) * 11)[:, None, None, None] + (rng.random((4, 3, 24, 24)) < 0.02)
    codes[6:] = np.where(rng.random(codes[6:].shape) < 0.99, 0, codes[6:])
    coded = entropy.encode(codes, SIZE, have)
    modes = entropy.head(coded).modes
    assert entropy.WITHIN not in modes[2:6] and modes[7:] == (entropy.WITHIN,) * 15
    for stop in (3, 6, 22):
        np.testing.assert_array_equal(entropy.decode(coded, (24, 24), SIZE, have, stop), codes[:stop])


def test_a_head_whose_folds_are_no_squares_is_damage() -> None:
    have = folding()
    coded = entropy.encode(levels((1, 9, 9), 6), SIZE, have)
    for modes in ([1, 1, 1, 4, 4, 1], [4, 1, 1, 1, 1, 1]):
        head = entropy._HEAD.pack(1, 6) + b"".join(entropy._LEVEL.pack(mode, 0) for mode in modes)
        broken = head + entropy._crc(head) + coded[len(head) + 4 :]
        with pytest.raises(StoreError) as caught:
            entropy.decode(broken, (9, 9), SIZE, have)
        assert caught.value.code == "DAMAGED"


def test_folds_that_are_not_of_the_levels_are_damage() -> None:
    good = folding()
    for wrong in ((1, 1, 2, 2), (1, 1, 0, 4), (5,), (1, 1, 4, 2)):
        with pytest.raises(StoreError) as caught:
            tables.from_bytes(tables.to_bytes(good.priors, good.networks, None, wrong))
        assert caught.value.code == "DAMAGED"
    parts = tables.parse(tables.to_bytes(good.priors, good.networks, None, FOLDS))
    with pytest.raises(StoreError, match="DAMAGED"):
        tables.from_bytes(tables.serialise({**parts, "folds": np.array(1, np.int32)}))


def by_neighbours(codes, coarser, size, prior, network):
    """In place of the shortest: what it gives where contexts are the shortest."""
    if network is None:  # places coded apart: never the shortest here
        return entropy.FIXED, bytes(10**6)
    together = entropy.PART if codes[0].size // 4 > entropy.PART else 2**30
    mode = entropy.CONTEXT if together > entropy.PART else entropy.PARTS
    return mode, entropy._context(codes, coarser, network, together)


def test_long_passes_are_coded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = levels((2, 9, 13))
    monkeypatch.setattr(entropy, "_shortest", by_neighbours)
    whole = entropy.encode(codes, SIZE, folding())
    assert set(entropy.head(whole).modes) == {entropy.CONTEXT, entropy.WITHIN}
    monkeypatch.setattr(entropy, "PART", 200)  # the finest, of 36 x 52 places, has passes of 468
    coded = entropy.encode(codes, SIZE, folding())
    modes = entropy.head(coded).modes
    assert modes[6] == entropy.PARTS and set(modes[:6]) == {entropy.CONTEXT, entropy.WITHIN}
    assert coded != whole and abs(len(coded) - len(whole)) < 0.05 * len(whole)
    for data in (coded, whole):  # what was written whole is read whole
        for count in (1, 6, 7, 13, 22):
            assert np.array_equal(entropy.decode(data, (9, 13), SIZE, folding(), count), codes[:count])


def test_parts_are_chosen_where_a_pass_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def free(codes, coarser, network, together):
        asked.append((codes.shape[1:], together))
        return b""

    monkeypatch.setattr(entropy, "_context", free)
    monkeypatch.setattr(entropy, "PART", 18 * 26 - 1)
    modes = entropy.head(entropy.encode(levels((1, 9, 13)), SIZE, folding())).modes
    assert modes[6] == entropy.PARTS and asked[-1] == ((36, 52), 18 * 26 - 1)
    assert modes[2] == entropy.CONTEXT and asked[0][1] > 2**32


def test_bytes_that_fit_their_checksum_and_are_no_codes_are_damage() -> None:
    codes = levels((2, 9, 13))
    coded = entropy.encode(codes, SIZE, folding())
    about = entropy.head(coded)
    parts = [coded[about.end(level) : about.end(level) + size] for level, size in enumerate(about.sizes)]
    rng = np.random.default_rng(0)
    damaged = 0
    for _ in range(200):
        modes, forged = list(about.modes), list(parts)
        at = int(rng.choice([level for level, part in enumerate(parts) if part]))
        modes[at] = int(rng.choice([entropy.FIXED, entropy.OWN, entropy.PRIOR, entropy.CONTEXT]))
        forged[at] = forged[at][: int(rng.integers(len(forged[at]) + 1))]
        head = entropy._HEAD.pack(2, len(modes)) + b"".join(
            entropy._LEVEL.pack(mode, len(part)) for mode, part in zip(modes, forged, strict=True)
        )
        data = head + entropy._crc(head) + b"".join(part + entropy._crc(part) for part in forged)
        try:
            entropy.decode(data, (9, 13), SIZE, folding())
        except StoreError as error:
            assert error.code == "DAMAGED"
            damaged += 1
    assert damaged > 50

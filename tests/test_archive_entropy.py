"""The coder of the code store: exact whatever the machine does, small, readable by prefix, and damage that shows."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive import entropy, integers, predictor, tables
from archive.codec import CodesCodec
from archive.contexts import NEIGHBOURS, PASSES, Slab
from archive.errors import InputError, StoreError
from archive.predictor import Network, Predictor, distinct

SIZE, GROUPS, MEMBERS, VECTOR, HIDDEN = 60, 8, 8, 4, 16


def network(seed: int = 0, coarser: bool = False) -> Network:
    """Random weights: what it predicts is nonsense, and must still code anything."""
    rng = np.random.default_rng(seed)

    def whole(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.float32)

    return Network(
        vectors=whole(SIZE + 1, VECTOR),
        coarser=whole(SIZE if coarser else 0, VECTOR),
        inner=tuple(whole((len(around) + coarser) * VECTOR, HIDDEN) for around in NEIGHBOURS),
        inner_bias=whole(len(PASSES), HIDDEN) * 100,
        second=whole(HIDDEN, HIDDEN),
        second_bias=whole(HIDDEN) * 10,
        group=whole(HIDDEN, GROUPS) // 8,
        group_bias=whole(GROUPS) * 10,
        member=whole(GROUPS, HIDDEN, MEMBERS) // 8,
        member_bias=whole(GROUPS, MEMBERS) * 10,
        place=np.random.default_rng(1).permutation(GROUPS * MEMBERS)[:SIZE].astype(np.int32),
        patience=2,
    )


def made(levels: int = 2) -> tables.Tables:
    priors = np.random.default_rng(3).integers(-400, 0, (levels, SIZE))
    return tables.from_bytes(
        tables.to_bytes(priors, tuple(network(level, coarser=level > 0) for level in range(levels)))
    )


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Codes that depend on their neighbours."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[: shape[1], : shape[2], : shape[3]]
    plane = (z + y // 3 + x // 4) % SIZE + rng.integers(0, 3, shape)
    return np.minimum(plane, SIZE - 1).astype(np.uint16)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12)), st.booleans(), st.data()
)
def test_what_is_coded_is_decoded_with_any_prefix_of_levels_and_slices(levels, grid, known, data):
    codes = np.random.default_rng(0).integers(0, SIZE, (levels, *grid)).astype(np.uint16)
    codes[0] = smooth((1, *grid))[0]
    have = made(levels) if known else None
    coded = entropy.encode(codes, SIZE, have)
    np.testing.assert_array_equal(entropy.decode(coded, grid[1:], SIZE, have), codes)
    count, stop = data.draw(st.integers(1, levels)), data.draw(st.integers(1, grid[0]))
    prefix = coded[: entropy.head(coded).end(count)]
    found = entropy.decode(prefix, grid[1:], SIZE, have, count, stop)
    np.testing.assert_array_equal(found, codes[:count, :stop])


def test_every_mode_is_chosen_where_it_is_the_shortest():
    rng = np.random.default_rng(0)
    own = rng.choice(4, (1, 8, 32, 32)).astype(np.uint16)
    assert entropy.head(entropy.encode(own, SIZE)).modes == (entropy.OWN,)
    few = rng.integers(0, SIZE, (1, 1, 4, 4)).astype(np.uint16)
    assert entropy.head(entropy.encode(few, SIZE)).modes == (entropy.FIXED,)
    usual = np.full((1, 1, 4, 4), int(made(1).priors[0].argmax()), np.uint16)
    assert entropy.head(entropy.encode(usual, SIZE, made(1))).modes in ((entropy.PRIOR,), (entropy.OWN,))
    again = smooth((1, 12, 24, 24))
    assert entropy.head(entropy.encode(again, SIZE, made(1))).modes[0] in (entropy.OWN, entropy.CONTEXT)


def test_a_histogram_costs_little_beside_the_entropy_of_a_whole_series():
    rng = np.random.default_rng(0)
    shares = 0.995 ** np.arange(2048)
    codes = rng.choice(2048, (1, 30, 64, 64), p=shares / shares.sum()).astype(np.uint16)
    share = np.bincount(codes.reshape(-1)) / codes.size
    bits = -codes.size * (share[share > 0] * np.log2(share[share > 0])).sum()
    assert 8 * len(entropy.encode(codes, 2048)) < 1.05 * bits


def test_small_slabs_cost_little_more_than_their_bits():
    codes = np.random.default_rng(0).integers(0, 2048, (1, 8, 4, 4)).astype(np.uint16)
    assert len(entropy.encode(codes, 2048)) <= math.ceil(8 * 16 * 11 / 8) + 24


def test_a_pass_sees_only_what_is_decoded_by_then():
    slab = Slab((4, 7, 6), SIZE)
    when = np.full((4, 7, 6), -1)
    order = 0
    for z in range(4):
        for number in range(len(PASSES)):
            places = slab.places(z, number)
            around = slab.around(places, number)
            slab.put(places, np.full(len(places), order, np.int32))
            assert around.max(initial=0) <= max(order - 1, 0) or (around[around >= order] == SIZE).all()
            order += 1
    when = slab.inside
    assert (when >= 0).all() and when.max() == 15
    later = Slab((4, 7, 6), SIZE)
    later.inside[:] = when
    for z in range(4):
        for number in range(len(PASSES)):
            seen = later.around(later.places(z, number), number)
            assert (seen[seen != SIZE] < 4 * z + number).all()


def test_powers_logarithms_and_frequencies_are_whole_and_right():
    steps = np.arange(480)
    assert np.abs(integers._POWERS[:-1] - 2.0 ** (15 - steps / 32)).max() <= 0.5 + 1e-6
    values = np.concatenate([np.arange(1, 5000), 2 ** np.arange(50), 2 ** np.arange(2, 50) - 1])
    exact = np.array([(int(value) ** 32).bit_length() - 1 for value in values])
    np.testing.assert_array_equal(integers.logarithm(values), exact)
    scores = np.random.default_rng(0).integers(-900, 900, (200, 45)).astype(np.float32)
    wanted = np.exp2(scores / 32) / np.exp2(scores / 32).sum(1, keepdims=True)
    found = integers.frequencies(scores.copy())
    assert (found == np.floor(found)).all() and found.min() >= 0
    assert (found.sum(1) == 2**24 - 45).all()
    np.testing.assert_allclose(found / 2**24, wanted, atol=2e-4)


def test_a_network_whose_sums_may_round_is_refused():
    good = network()
    with pytest.raises(ValueError, match="float32"):
        Network(**{**good.__dict__, "second_bias": good.second_bias + 2**24})


def test_the_sums_of_a_network_are_those_of_integers():
    one = network()
    around = np.random.default_rng(0).integers(0, SIZE + 1, (500, len(NEIGHBOURS[1])))
    found = one.vectors.astype(np.int64)[around].reshape(500, -1)
    first = np.clip((found @ one.inner[1].astype(np.int64) + one.inner_bias[1].astype(np.int64)) >> 6, 0, 127)
    second = np.clip((first @ one.second.astype(np.int64) + one.second_bias.astype(np.int64)) >> 6, 0, 127)
    contexts = Predictor(one).contexts(around, 1, None)
    np.testing.assert_array_equal(contexts.hidden[contexts.which], second)


@pytest.mark.parametrize("size", [1, 2, 5000])
@pytest.mark.parametrize("largest", [1, 40, 65536])
def test_kinds_of_rows(size, largest):
    rng = np.random.default_rng(size)
    rows = rng.integers(max(0, largest - 2), largest + 1, (size, 14)).astype(np.int32)
    rows[rng.random(size) < 0.5] = largest
    first, which, order = distinct(rows)
    np.testing.assert_array_equal(rows[first][which], rows)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert (np.diff(which[order]) >= 0).all() and len(first) <= size
    if size == 5000:
        assert len(first) < size / 1.5  # at least the half that is one kind was found


def test_codes_of_one_kind_share_their_prediction_and_no_byte_changes(monkeypatch):
    codes = smooth((2, 3, 48, 50), 5)
    codes[:, :, 10:40, 8:] = 7
    made = []
    for few in (0, 10**9):
        monkeypatch.setattr(predictor, "FEW", few)
        data = by_context(codes)
        found = entropy._by_context(data, codes[1].shape, codes[0], network(1, coarser=True))
        np.testing.assert_array_equal(found, codes[1])
        made.append(data)
    assert made[0] == made[1]


ELSEWHERE = """
import sys, hashlib, numpy as np
sys.path.insert(0, {here!r})
from test_archive_entropy import by_context, smooth, network
from archive import entropy
codes = smooth((2, 6, 40, 36), 5)
data = sys.stdin.buffer.read()
found = entropy._by_context(data, codes[1].shape, codes[0], network(1, coarser=True))
print(hashlib.sha256(by_context(codes)).hexdigest(), np.array_equal(found, codes[1]))
"""
MACHINES = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1"},
    "old processor": {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Prescott",
                      "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX"},
}  # fmt: skip


def by_context(codes: np.ndarray) -> bytes:
    """The second level, coded by its neighbours and the first, whatever that costs."""
    return entropy._context(codes[1], codes[0], network(1, coarser=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_other_threads_and_instructions_give_and_take_the_same_bytes(machine):
    coded = by_context(smooth((2, 6, 40, 36), 5))
    program = ELSEWHERE.format(here=str(Path(__file__).parent))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=coded, capture_output=True, env={**os.environ, **MACHINES[machine]}, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()[-2000:]
    assert found.stdout.decode().split() == [hashlib.sha256(coded).hexdigest(), "True"]


@pytest.mark.parametrize("at", [0, 4, 9, 20, -1])
def test_a_flipped_bit_shows(at):
    coded = bytearray(entropy.encode(smooth((2, 4, 16, 16)), SIZE))
    coded[at] ^= 1
    with pytest.raises(StoreError) as caught:
        entropy.decode(bytes(coded), (16, 16), SIZE)
    assert caught.value.code == "DAMAGED"


def test_codes_whose_tables_are_not_known_say_so(tmp_path, monkeypatch):
    unknown = CodesCodec(SIZE, "0" * 64)
    with pytest.raises(StoreError) as caught:
        unknown.known()
    assert caught.value.code == "NO_TABLES"
    data = tables.to_bytes(np.zeros((1, SIZE), np.int32) - 77, (network(9),))
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / "m" / "x").mkdir(parents=True)
    (tmp_path / "m" / "x" / tables.FILE).write_bytes(data)
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path))
    assert CodesCodec(SIZE, name).known().name == name


def test_tables_that_are_damaged_are_refused():
    data = tables.to_bytes(np.zeros((1, SIZE), np.int32), (network(),))
    for bad in (data[:-5], b"", b"not tables"):
        with pytest.raises(StoreError) as caught:
            tables.from_bytes(bad)
        assert caught.value.code == "DAMAGED"


def test_a_code_outside_the_codebook_is_refused():
    with pytest.raises(InputError):
        CodesCodec(SIZE).encode_chunk(np.full((1, 1, 2, 2), SIZE, np.uint16), 65535)

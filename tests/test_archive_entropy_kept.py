"""Bytes that an earlier coder wrote: today's must read them and write the same, whatever libraries were updated.

Where one of these fails after an update of constriction or numpy, that update makes stores unreadable: pin the old one.
Nothing here comes from a random generator, whose streams may change too.
"""

from __future__ import annotations

import base64

import numpy as np
import pytest

from archive import entropy, tables
from archive.contexts import NEIGHBOURS, PASSES
from archive.predictor import Network

SIZE, GROUPS, MEMBERS, VECTOR, HIDDEN = 60, 8, 8, 4, 16
GRID = (9, 10)
KEPT = {
    "fixed": (
        "ltdWBIUY8MfzsRpavXziqiLqdL8WM0uJTpMl8FODVD5GeZ/o0AkeHdnYYuHaqUE8NANDUO8VFMIXVhQKw1q+nkekiO0/sOhzd1Qr"
        "rQ1PeOI4TixU/3Bqnqo9W0Tle7tbjoFLzhNcXCfuOrSafEGTVOE7ke/b2KhKbpMhv3uj1rEMUQxkwaiYv68dGZt923lZaM3Jy6eq"
        "bTqWpusxtZ7+fuCaeEL9h1BP/hunfEKKtBCq9BkeCT7PgezF2lgn2qKnxPwPXkJw08Ex3KtK7KV93Gc7ji2okTOCqQQTfwS3C7yA"
        "4K3CIg1RC907Wyf3fhUGoynPB01gazao9PEakx+Df28pAtPYCPOKDcqsFA=="
    ),
    "own": (
        "AAYAAMov8hCJ4RqH05Yl175lW+SNAAAAGOAFE+p4MHOkYLpADjbCvadJaybCu8/90e2PkkvQP0AtxU7rAyPCKogo8L82tgC4ZdbZ"
        "bm/7KckgolizVELgOH/yLvz33eQ5q+Tm6b8pW0SDYNmGxvB4TN8k6uxEbhIU4VM9P47MbN64lmTK/8cbu+iBPKlHtkxXTmGa2BKi"
        "62d2wITR8CrCulZhySozXbEbX83xqxR8XacVfKTiSD+dWH0y4Pv/Tk7ag9b13v/hd5ZJSIOL1ffYILy1ZJ01ogZHrR3wjSMSZd61"
        "h0lNe5/ZkvTQCTOqGr8BUTiN6ZVGtviKd+mWtrbQFb5IOnRv37NJp28G+4N94j0="
    ),
    "prior": (
        "1f8VAGHAJ1RwnbwiTAOOYR6Dja9wTbKHdAP8sEXvOM+Ld6kCtA5ua1+kzKBVQU/rIOU8B3004MoQOKBrWqU8E/iNaIzlr854H14y"
        "nAl+Ieu0l9pIwImxBLBotJwkwcFiNbjirHWKfyXisyMa2ZCdA0LSzAZmhIRjWbg7uarfu9kZpCkaqbpK4No9FeTvnM6u06xlN4Rt"
        "OdNrGPS/YRgAEaZ5Rc7PRn0faq+18pA573PisGlp3c/pqAXeZfBg9ouHH5MrecKl/z6IQEn/IPSn31gkQqejbBR4f5kJ2BjnQ3wJ"
        "ix9MTuulDTFzrJVQBRiLSq7j4c5K2ddJn6qOfxQBuzuPN9xk2n6FkY1JMvf4eq8OvrwXl6NE+myp/1as5FEOamQrEe7tbuS2isFR"
        "6zirfHwoBszZ84hNiWTdwCjYiagqzs9ZDYxGxUpXHPdyA+Qu8IBQJJbry4YVPtq/xWtcu88tWaht36ntx9ATEV+XWPj4YH4Tav5w"
        "K7wGvbXyymGXmSj9lhg42B/dr6M3+8FFKwrJfH0PWXcpr14QC8ai127G3o51"
    ),
    "context": (
        "DTMapjKZ/90ix9i4GqJp/nwrP42ksewn2d4MJp309P1x+DtFNvTq6pySm+yYg2uXG2mNQQfr29k4ei/jRcyI8MJmoVFcvauOONLN"
        "evZw57Zwlo++VQRV0FKzDWro6XJ2mmUMhCn1eS2sIgrezXvge/TZv+gSKNyP/BRIzU2bscZ+q4FEFwt2Q/bCXjPijUQ0qFibAguc"
        "oGgYe+wqHR/zEZSHqenZO5kZoJjZCKPdtq+xzM0Mma5aIoaS/KnT4MA+disCsBxmPgeOPbW3rMBnrClGlRGwBESWIZIR0FWsFd+a"
        "uAKW8XSClRNoE9WVxoV5lnvcag=="
    ),
    "context, second level": (
        "BZbX4iS2bta2q08JbazIgYgUkAN/+GFGPiOxn6moYY7v+3qfkGgeiLub92InRR5RwFjC3CYRqAv3DG0cDFKbNfjeERLme3FBJRC7"
        "etyBbYKXfavKCYe6g38VlEHLITy7xOpj7JgyRrUprUlq6D4qKt6Dtief9vHxzcVJPvIQcG3aB4TIY0iB0LFSpXwBppuxhk6JJtN9"
        "krnQVo5LmmxUNNKO/sbBiiv3ZJHwkP/DAg9sc5oYYAHaWmYugevGet6U5bvu8zY5s7zxgJi5ONR2019Bs0mUzwFXkm9aww=="
    ),
    "chunk": (
        "BAACAasAAAABvgAAAPwIGBQbAAAAKLUv/SA8lQAAYAUQFBYZGRcXEw4JAAEARSAJ55GXAWsaId/pLGmFbJWD/Hke0cDSBHWCLn1+"
        "JDVLNAuq7EWzkoZyggYTkJxzX02gEP5YyVCuQrQCq7uD2YNfdyiobE16SYj5OIvRKEwARPfaXoUJdbtJFI45lcSbb9eu5hcOoFOf"
        "5LR6GYgC0RDfU83vb1EIxeCaKGVzatFDFl9OzjSOh4BpAe/N8AMGJh2qLgAAACi1L/0gPC0BANgAAAAAAAUAABAAABQAABYAABkX"
        "EwAADgAACQADALjKQBgvZwcymZcBiRqp13bjWjQikoiWFCJjIWpruk++7HPnBi5p+r0R2ITeX1+YOI0TX8vJx5WHnSQiWBczlZ72"
        "Wl7KrmIPprNG5ZhEMi6V1+NV58fDy4xSdJnYC2iFPsP5QBBRGmfS1KPkajbYmcobJY5/rr6YhgXwgLfReq4gXutJ610l7MIsIuhp"
        "rywTOyOlliLo2OE="
    ),
}


def numbers(count: int, seed: int, low: int, high: int) -> np.ndarray:
    """Whole numbers low <= n < high by a linear congruential generator (Park and Miller 1988)."""
    found, state = np.empty(count, np.int64), seed
    for at in range(count):
        state = state * 48271 % (2**31 - 1)
        found[at] = low + (state >> 8) % (high - low)
    return found


def network(seed: int, coarser: bool) -> Network:
    """Weights of one level, each part from its own seed."""
    seeds = iter(range(seed, seed + 99))

    def whole(*shape: int, most: int = 127) -> np.ndarray:
        return numbers(int(np.prod(shape)), next(seeds), -most, most + 1).reshape(shape).astype(np.float32)

    return Network(
        vectors=whole(SIZE + 1, VECTOR),
        coarser=whole(SIZE if coarser else 0, VECTOR),
        inner=tuple(whole((len(around) + coarser) * VECTOR, HIDDEN) for around in NEIGHBOURS),
        inner_bias=whole(len(PASSES), HIDDEN, most=9999),
        second=whole(HIDDEN, HIDDEN),
        second_bias=whole(HIDDEN, most=999),
        group=whole(HIDDEN, GROUPS, most=9),
        group_bias=whole(GROUPS, most=999),
        member=whole(GROUPS, HIDDEN, MEMBERS, most=9),
        member_bias=whole(GROUPS, MEMBERS, most=999),
        place=np.arange(SIZE, dtype=np.int32) * 29 % (GROUPS * MEMBERS),
        patience=2,
    )


def known() -> tables.Tables:
    """Two levels."""
    priors = numbers(2 * SIZE, 7, -400, 0).reshape(2, SIZE)
    return tables.Tables(
        "kept", priors.astype(np.int32), tuple(network(11 + 50 * level, level > 0) for level in (0, 1))
    )


def codes() -> np.ndarray:
    """uint16 [2, 4, 9, 10]: a surface, and one that follows from it."""
    z, y, x = np.ogrid[:4, : GRID[0], : GRID[1]]
    first = (z + y // 2 + x // 3 + numbers(4 * 9 * 10, 3, 0, 2).reshape(4, *GRID)) % SIZE
    return np.stack([first, (3 * first + 5) % SIZE]).astype(np.uint16)


def streams() -> dict[str, bytes]:
    """What today's coder writes, by mode; the level coded, where it is one."""
    slab, have = codes(), known()
    flat = slab[0].reshape(-1).astype(np.int32)
    histogram = np.bincount(flat, minlength=SIZE).astype(np.uint8)
    return {
        "fixed": entropy._coded(flat, np.zeros(SIZE)),
        "own": entropy._coded(flat, entropy._of(histogram)),
        "prior": entropy._coded(flat, have.priors[0].astype(np.float64)),
        "context": entropy._context(slab[0], None, have.networks[0]),
        "context, second level": entropy._context(slab[1], slab[0], have.networks[1]),
    }


@pytest.mark.parametrize("mode", ["fixed", "own", "prior", "context", "context, second level"])
def test_the_same_codes_give_the_bytes_that_were_kept(mode):
    assert base64.b64encode(streams()[mode]).decode() == "".join(KEPT[mode])


def test_bytes_that_were_kept_give_the_codes():
    slab, have = codes(), known()
    data = {mode: base64.b64decode("".join(text)) for mode, text in KEPT.items()}
    count = slab[0].size
    for mode, number in (("fixed", entropy.FIXED), ("prior", entropy.PRIOR)):
        found = entropy._by_table(data[mode], number, count, SIZE, have.priors[0])
        np.testing.assert_array_equal(found, slab[0].reshape(-1))
    first = entropy._by_context(data["context"], slab[0].shape, None, have.networks[0])
    np.testing.assert_array_equal(first, slab[0])
    second = entropy._by_context(data["context, second level"], slab[1].shape, slab[0], have.networks[1])
    np.testing.assert_array_equal(second, slab[1])


def test_a_whole_chunk_that_was_kept_decodes():
    """As it lies in a store: head, the slab's own histogram packed by zstd, checksums."""
    data = base64.b64decode("".join(KEPT["chunk"]))
    assert entropy.head(data).modes == (entropy.OWN, entropy.OWN)
    np.testing.assert_array_equal(entropy.decode(data, GRID, SIZE), codes())

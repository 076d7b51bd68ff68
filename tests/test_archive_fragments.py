"""Which bytes belong to which frame of encapsulated pixel data, however it was cut up."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from archive.errors import InputError
from archive.fragments import index_frames, read_frame_bytes

DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
HEAD = b"what comes before"


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(data)) + data


def encapsulated(frames: list[list[bytes]], table: bool, delimiter: bool = True) -> bytes:
    """Frames of fragments (PS3.5 A.4), with or without offsets in the table."""
    offsets, position = [], 0
    for fragments in frames:
        offsets.append(position)
        position += sum(8 + len(fragment) for fragment in fragments)
    data = item(struct.pack(f"<{len(offsets)}L", *offsets) if table else b"")
    data += b"".join(item(fragment) for fragments in frames for fragment in fragments)
    return HEAD + data + DELIMITER * delimiter


def frames_of(raw: bytes, frames: int) -> list[bytes]:
    file = io.BytesIO(raw)
    return [read_frame_bytes(file, one) for one in index_frames(file, len(HEAD), len(raw), frames)]


# No byte of these can look like a marker of a beginning, as none of a codestream can.
inside = some.binary(min_size=1, max_size=6).map(lambda data: data.replace(b"\xff", b"\xfe").replace(b"\0", b"\1"))
starts = some.sampled_from([b"\xff\xd8\xff\xe0", b"\xff\x4f\xff\x51"])
cut_frames = some.lists(
    some.tuples(starts, some.lists(inside, max_size=3)).map(lambda pair: [pair[0], *pair[1]]), min_size=1, max_size=5
)


@given(frames=cut_frames, table=some.booleans(), delimiter=some.booleans())
def test_every_frame_is_put_together_again(frames, table, delimiter):
    found = frames_of(encapsulated(frames, table, delimiter), len(frames))
    assert found == [b"".join(fragments) for fragments in frames]


@given(frames=some.lists(inside, min_size=2, max_size=6), wrong=some.integers(0, 2**32 - 1))
def test_one_fragment_a_frame_needs_no_table_and_survives_a_wrong_one(frames, wrong):
    raw = bytearray(encapsulated([[frame] for frame in frames], table=True))
    raw[len(HEAD) + 12 : len(HEAD) + 16] = struct.pack("<L", wrong)
    assert frames_of(bytes(raw), len(frames)) == frames


@given(frames=cut_frames, table=some.booleans(), cut=some.integers(0, 10_000))
def test_a_cut_file_never_gives_other_frames(frames, table, cut):
    whole = encapsulated(frames, table)
    raw = whole[: len(HEAD) + cut % (len(whole) - len(HEAD) + 1)]
    try:
        found = frames_of(raw, len(frames))
    except InputError as error:
        assert error.code in ("TRUNCATED", "DECODE_FAILED")
        return
    expected = [b"".join(fragments) for fragments in frames]
    assert found[:-1] == expected[:-1]
    assert expected[-1].startswith(found[-1])  # the codec finds out about a lost last fragment


def test_a_missing_table_is_not_a_missing_frame():
    raw = HEAD + item(b"\xff\xd8\xff\xe0one") + item(b"\xff\xd8\xff\xe0two") + DELIMITER
    assert frames_of(raw, 2) == [b"\xff\xd8\xff\xe0one", b"\xff\xd8\xff\xe0two"]


def test_empty_fragments_are_nobodys():
    raw = HEAD + item(b"") + item(b"one") + item(b"") + item(b"two") + DELIMITER
    assert frames_of(raw, 2) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("body", "frames", "code"),
    [
        (item(b"") + item(b"one") + DELIMITER, 2, "TRUNCATED"),
        (item(b"") + DELIMITER, 1, "TRUNCATED"),
        (b"", 1, "TRUNCATED"),
        (item(b"") + item(b"\xff\xd8\xff1") + item(b"\xff\xd8\xff2") + DELIMITER, 1, "DECODE_FAILED"),
        (item(b"") + item(b"one") + item(b"two") + item(b"six") + DELIMITER, 2, "DECODE_FAILED"),
        (item(b"\0\0\0\0\7\0\0\0") + item(b"one") + item(b"two") + item(b"six") + DELIMITER, 2, "DECODE_FAILED"),
        (item(b"") + b"\x08\x00\x05\x00CS\x02\x00ab", 1, "DECODE_FAILED"),
        (item(b"") + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item(b"one"), 1, "DECODE_FAILED"),
        (item(b"") + b"\xfe\xff\x00\xe0\xff\xff\xff\x7f" + b"one", 1, "TRUNCATED"),
        (item(b"") + item(b"one") + DELIMITER, 2**31 - 1, "TRUNCATED"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(body, frames, code):
    with pytest.raises(InputError, match=code):
        frames_of(HEAD + body, frames)

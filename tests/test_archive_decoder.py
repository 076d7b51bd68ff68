"""The process that decodes compressed pixels: limits, crashes, and what it answers."""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGExtended12Bit, RLELossless
from tiny import save, tiny

import archive.decoder
from archive.decoder import NEEDED, PixelDecoder, _answer
from archive.errors import InputError
from archive.headers import read_header
from archive.pixels import frame_bytes, read_frame
from archive.scan import read_series, scan
from archive.settings import IngestSettings

SIDE = 64


def compressed(path: Path, syntax: str = RLELossless) -> np.ndarray:
    """A 64 x 64 file in that syntax; returns its pixels."""
    pixels = np.random.default_rng(7).integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
    dataset = tiny(0, Rows=SIDE, Columns=SIDE, pixels=pixels)
    save(dataset, path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return pixels


def decode(decoder: PixelDecoder, path: Path, frame: int = 0, **changes) -> np.ndarray:
    """One frame of what `compressed` wrote (the first header found is kept, as a plan keeps it)."""
    plain = path if path.is_file() else path.with_name("one.dcm")
    header = read_header(plain) | changes
    return decoder.decode(path, header, frame, frame_bytes(header)).array


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder(IngestSettings(decode_seconds=20)) as one:
        yield one


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_slices_equal_the_original(tmp_path, decoder, syntax):
    pixels = compressed(tmp_path / "one.dcm", syntax)
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan, decoder=decoder)
    assert np.array_equal(volume.voxels[0], pixels)
    assert volume.voxels.dtype == np.uint16


def test_one_process_serves_many_files(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    compressed(path)
    decode(decoder, path)
    child = decoder._child.pid
    decode(decoder, path)
    assert decoder._child.pid == child


def test_it_starts_again_after_it_died(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    pixels = compressed(path)
    decode(decoder, path)
    os.kill(decoder._child.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert np.array_equal(decode(decoder, path), pixels)


def test_every_damaged_byte_is_an_input_error_or_pixels(tmp_path, decoder):
    """pylibjpeg-rle panics with a BaseException on some of these."""
    path = tmp_path / "one.dcm"
    compressed(path)
    whole = path.read_bytes()
    header = read_header(path)
    start = header["pixels"][1]
    random = np.random.default_rng(3)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[start + int(random.integers(8, 400))] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            read_frame(path, header, 0, decoder)
            outcomes.add("pixels")
        except InputError as error:
            outcomes.add(error.code)
    assert outcomes <= {"pixels", "TRUNCATED", "DECODE_FAILED", "DECODE_LIMIT"}
    assert "DECODE_FAILED" in outcomes


def test_a_header_that_asks_for_gigabytes_is_refused_before_it_is_tried(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    compressed(path)
    with pytest.raises(InputError, match="DECODE_LIMIT"):
        decode(decoder, path, rows=65535, columns=65535)


def test_memory_of_the_child_is_limited(tmp_path):
    path = tmp_path / "one.dcm"
    compressed(path)
    raw = path.read_bytes()
    # The file's own header claims 40000 x 40000 while the caller was told 64 x 64, as after an exchange of files.
    marker = b"\x28\x00\x10\x00US\x02\x00" + struct.pack("<H", SIDE)
    wide = b"\x28\x00\x11\x00US\x02\x00" + struct.pack("<H", SIDE)
    assert raw.count(marker) == raw.count(wide) == 1
    raw = raw.replace(marker, marker[:-2] + struct.pack("<H", 40000)).replace(
        wide, wide[:-2] + struct.pack("<H", 40000)
    )
    path.write_bytes(raw)
    with PixelDecoder(IngestSettings(decode_bytes=2**30)) as small, pytest.raises(InputError, match="DECODE_"):
        decode(small, path)


def test_time_is_limited_and_the_next_file_is_read(tmp_path):
    pipe, path = tmp_path / "pipe", tmp_path / "one.dcm"
    os.mkfifo(pipe)  # opening it for reading hangs, as a codec would
    pixels = compressed(path)
    with PixelDecoder(IngestSettings(decode_seconds=1)) as quick:
        assert np.array_equal(decode(quick, path), pixels)
        start = time.monotonic()
        with pytest.raises(InputError, match="DECODE_LIMIT"):
            decode(quick, pipe)
        assert time.monotonic() - start < 5
        assert np.array_equal(decode(quick, path), pixels)


def test_another_shape_than_the_header_says_is_refused(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    compressed(path)
    with pytest.raises(InputError, match="DECODE_FAILED"):
        decode(decoder, path, rows=SIDE // 2)


def test_nothing_is_left_when_it_is_closed(tmp_path):
    path = tmp_path / "one.dcm"
    compressed(path)
    with PixelDecoder() as one:
        decode(one, path)
        child = one._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# -- one file of many frames


def many(path: Path, frames: int = 3) -> np.ndarray:
    """A file of that many 64 x 64 frames in RLE; returns their pixels."""
    pixels = np.random.default_rng(8).integers(0, 4096, (frames, SIDE, SIDE)).astype(np.uint16)
    dataset = tiny(0, Rows=SIDE, Columns=SIDE, NumberOfFrames=frames, pixels=pixels)
    save(dataset, path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return pixels


def test_a_file_of_many_frames_is_opened_and_indexed_once(tmp_path):
    path = tmp_path / "one.dcm"
    pixels = many(path)
    header = read_header(path)
    question = {key: header[key] for key in (*NEEDED, "frames")}
    question |= {"path": str(path), "offset": header["pixels"][1], "frame_bytes": frame_bytes(header), "inflate": False}
    source = None
    for frame in (2, 0, 1):
        _, data, kept = _answer(question | {"frame": frame}, source)
        assert data == pixels[frame].tobytes()
        assert source is None or kept is source
        source = kept
    os.utime(path, ns=(1, 1))  # as after an exchange of files
    _, data, kept = _answer(question | {"frame": 0}, source)
    assert kept is not source and source.file.closed
    assert data == pixels[0].tobytes()


def test_deflated_frames_are_read_in_any_order(tmp_path, decoder):
    pixels = np.random.default_rng(8).integers(0, 4096, (5, SIDE, SIDE)).astype(np.uint16)
    dataset = tiny(0, Rows=SIDE, Columns=SIDE, NumberOfFrames=5, pixels=pixels)
    path = save(dataset, tmp_path / "one.dcm", DeflatedExplicitVRLittleEndian)
    header = read_header(path)
    for frame in (1, 2, 4, 0, 3, 3):
        assert np.array_equal(read_frame(path, header, frame, decoder), pixels[frame])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="TRUNCATED"):
        read_frame(path, header, 4, decoder)


# -- limits


def test_whoever_waits_for_a_processor_gets_more_time(tmp_path, monkeypatch):
    """A busy machine is no reason to refuse an image; a process that does nothing is (the test above)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    compressed(tmp_path / "one.dcm")
    with PixelDecoder(IngestSettings(decode_seconds=0.1)) as one:
        monkeypatch.setattr(archive.decoder, "_processor", lambda pid: (0.0, True))
        start = time.monotonic()
        with pytest.raises(InputError, match="DECODE_LIMIT"):
            decode(one, pipe)
        assert time.monotonic() - start > 0.9  # ten times what is allowed, no more
        monkeypatch.setattr(archive.decoder, "_processor", lambda pid: (time.monotonic(), True))
        start = time.monotonic()
        with pytest.raises(InputError, match="DECODE_LIMIT"):
            decode(one, pipe)


def test_the_frames_of_one_file_share_a_limit(tmp_path):
    path = tmp_path / "one.dcm"
    many(path)
    compressed(tmp_path / "two.dcm")
    with PixelDecoder(IngestSettings(decode_seconds=20)) as one:
        decode(one, path, 0)
        assert 4 * 20 - 5 < one._left < 4 * 20 + 1
        one._left = 0.0
        with pytest.raises(InputError, match="DECODE_LIMIT"):
            decode(one, path, 1)
        assert decode(one, tmp_path / "two.dcm").shape == (SIDE, SIDE)


# -- codestreams that lie


def lying(tmp_path: Path, data: bytes, syntax: str, **changes) -> tuple[Path, dict]:
    """A file whose only frame is that codestream."""
    dataset = tiny(0, Rows=SIDE, Columns=SIDE, pixels=encapsulate([data]), **changes)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    path = save(dataset, tmp_path / "lying.dcm", syntax)
    return path, read_header(path)


@pytest.mark.parametrize("size", [(60000, 60000), (SIDE, SIDE + 1), (0, 0)])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path, decoder, size):
    rows, columns = size
    siz = struct.pack(">2sH2xLL8xLL8xH3B", b"\xff\x51", 41, columns, rows, columns, rows, 1, 11, 1, 1)
    path, header = lying(tmp_path, b"\xff\x4f" + siz + b"\xff\xd9", JPEG2000Lossless)
    with pytest.raises(InputError, match="DECODE_FAILED: the codestream has another shape"):
        read_frame(path, header, 0, decoder)
    sof = struct.pack(">2s2sHBHHB3B", b"\xff\xd8", b"\xff\xc1", 11, 12, rows, columns, 1, 1, 0x11, 0)
    path, header = lying(tmp_path, sof + b"\xff\xd9", JPEGExtended12Bit)
    with pytest.raises(InputError, match=r"DECODE_FAILED: (the codestream has another shape|no frame header)"):
        read_frame(path, header, 0, decoder)


def test_more_bits_than_allocated_are_refused(tmp_path, decoder):
    siz = struct.pack(">2sH2xLL8xLL8xH3B", b"\xff\x51", 41, SIDE, SIDE, SIDE, SIDE, 1, 19, 1, 1)
    path, header = lying(tmp_path, b"\xff\x4f" + siz + b"\xff\xd9", JPEG2000Lossless)
    with pytest.raises(InputError, match="DECODE_FAILED: the codestream has more bits"):
        read_frame(path, header, 0, decoder)


@pytest.mark.parametrize(
    "changes", [{"rows": SIDE // 2}, {"columns": SIDE // 2}, {"rows": SIDE * 2}, {"allocated": 32}]
)
def test_run_lengths_of_another_size_are_refused(tmp_path, decoder, changes):
    path = tmp_path / "one.dcm"
    compressed(path)
    with pytest.raises(InputError, match="DECODE_FAILED"):
        decode(decoder, path, **changes)


@pytest.mark.parametrize("name", ["CT1_J2KR", "CT1_JLSL", "CT1_JPLL", "MR4_JPLY", "CT1_RLE"])
def test_damaged_codestreams_end_in_a_reason_or_in_pixels(shared_data, tmp_path, decoder, name):
    raw = (shared_data / "codecs" / "wg04" / name).read_bytes()
    header = read_header(shared_data / "codecs" / "wg04" / name)
    random = np.random.default_rng(5)
    path = tmp_path / "damaged.dcm"
    for trial in range(12):
        damaged = bytearray(raw)
        start = header["pixels"][1]
        for _ in range(3):  # half of them early, where the codestream's own header is
            damaged[start + int(random.integers(0, 300 if trial % 2 else len(raw) - start))] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            array = read_frame(path, header, 0, decoder)
        except InputError as error:
            assert error.code in ("DECODE_FAILED", "DECODE_LIMIT", "TRUNCATED")
        else:
            assert array.shape == (512, 512)

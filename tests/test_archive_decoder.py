"""The process that decodes compressed pixels: limits, crashes, and what it answers."""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless
from tiny import save, tiny

from archive.decoder import PixelDecoder
from archive.dicom import read_slice
from archive.errors import InputError
from archive.headers import read_header
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
    decoder.decode(path, SIDE, SIDE, 1, 16)
    child = decoder._child.pid
    decoder.decode(path, SIDE, SIDE, 1, 16)
    assert decoder._child.pid == child


def test_it_starts_again_after_it_died(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    pixels = compressed(path)
    decoder.decode(path, SIDE, SIDE, 1, 16)
    os.kill(decoder._child.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert np.array_equal(decoder.decode(path, SIDE, SIDE, 1, 16), pixels)


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
            read_slice(path, header, decoder)
            outcomes.add("pixels")
        except InputError as error:
            outcomes.add(error.code)
    assert outcomes <= {"pixels", "DECODE_FAILED", "DECODE_LIMIT"}
    assert "DECODE_FAILED" in outcomes


def test_a_header_that_asks_for_gigabytes_is_refused_before_it_is_tried(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    compressed(path)
    with pytest.raises(InputError, match="DECODE_LIMIT"):
        decoder.decode(path, 65535, 65535, 1, 16)


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
        small.decode(path, SIDE, SIDE, 1, 16)


def test_time_is_limited_and_the_next_file_is_read(tmp_path):
    pipe, path = tmp_path / "pipe", tmp_path / "one.dcm"
    os.mkfifo(pipe)  # opening it for reading hangs, as a codec would
    pixels = compressed(path)
    with PixelDecoder(IngestSettings(decode_seconds=1)) as quick:
        assert np.array_equal(quick.decode(path, SIDE, SIDE, 1, 16), pixels)
        start = time.monotonic()
        with pytest.raises(InputError, match="DECODE_LIMIT"):
            quick.decode(pipe, SIDE, SIDE, 1, 16)
        assert time.monotonic() - start < 5
        assert np.array_equal(quick.decode(path, SIDE, SIDE, 1, 16), pixels)


def test_another_shape_than_the_header_says_is_refused(tmp_path, decoder):
    path = tmp_path / "one.dcm"
    compressed(path)
    with pytest.raises(InputError, match="DECODE_FAILED"):
        decoder.decode(path, SIDE // 2, SIDE, 1, 16)


def test_nothing_is_left_when_it_is_closed(tmp_path):
    path = tmp_path / "one.dcm"
    compressed(path)
    with PixelDecoder() as one:
        one.decode(path, SIDE, SIDE, 1, 16)
        child = one._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)

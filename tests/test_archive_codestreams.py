"""What codestreams say of themselves, and the ones that end early."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from coded import RGB8, read, read_all, write_coded, ybr
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit
from tiny import stored

from archive.codestreams import DEFLATED_FRAME
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.headers import read_header
from archive.pixels import read_frame


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder() as one:
        yield one


@pytest.mark.parametrize("adobe", [None, 0, 1])
@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL_422"])
def test_a_jpegs_own_markers_tell_its_colour(tmp_path, decoder, adobe, stated):
    """Red, coded as YCbCr; the header may say what it likes where the codestream is clear."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (250, 10, 20)).save(buffer, "JPEG", quality=95, subsampling=0)
    stream = buffer.getvalue()
    length = struct.unpack(">H", stream[4:6])[0]
    assert stream[2:4] == b"\xff\xe0" and stream[6:10] == b"JFIF"
    bare = stream[:2] + stream[4 + length :]
    if adobe is not None:
        bare = bare[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([adobe]) + bare[2:]
    for coded, told in ((stream, "YBR"), (bare, {0: "RGB", 1: "YBR", None: stated[:3]}[adobe])):
        changes = {"Rows": 16, "Columns": 16, **RGB8, "PhotometricInterpretation": stated}
        path = write_coded(tmp_path / "one.dcm", encapsulate([coded]), JPEGBaseline8Bit, **changes)
        array = read(path, decoder)
        expected = (250, 10, 20) if told == "YBR" else ybr((250, 10, 20), False)
        assert np.abs(array[:, 8, 8].astype(int) - expected).max() <= 3


def test_a_frame_may_be_deflated_by_itself(tmp_path, decoder):
    frames = [stored(index).tobytes() for index in range(3)]
    deflated = []
    for frame in frames:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        deflated.append(engine.compress(frame) + engine.flush())
    path = write_coded(tmp_path / "one.dcm", encapsulate(deflated), JPEGBaseline8Bit, NumberOfFrames=3)
    path.write_bytes(path.read_bytes().replace(JPEGBaseline8Bit.encode(), DEFLATED_FRAME.encode() + b"\0"))
    assert np.array_equal(read_all(path, decoder), np.stack([stored(index) for index in range(3)]))


@pytest.mark.parametrize("name", ["wg04/CT1_JLSL", "wg04/CT1_JPLL", "wg04/MR4_JPLY", "wg04/CT1_J2KR", "wg04/CT1_RLE"])
def test_a_codestream_that_ends_early_is_not_filled_up(shared_data, tmp_path, decoder, name):
    raw = (shared_data / "codecs" / name).read_bytes()
    header = read_header(shared_data / "codecs" / name)
    table = header["pixels"][1]
    fragment = table + 8 + struct.unpack("<L", raw[table + 4 : table + 8])[0]
    length = struct.unpack("<L", raw[fragment + 4 : fragment + 8])[0]
    for share in (0.3, 0.9):
        kept = int(length * share) // 2 * 2
        data = raw[fragment + 8 : fragment + 8 + kept]
        end = b"\xfe\xff\xdd\xe0\0\0\0\0"
        for cut in (struct.pack("<L", kept) + data + end, struct.pack("<L", length) + data):
            (tmp_path / "cut.dcm").write_bytes(raw[: fragment + 4] + cut)
            with pytest.raises(InputError, match=r"TRUNCATED|DECODE_FAILED"):
                read_frame(tmp_path / "cut.dcm", header, 0, decoder)


def test_12_bit_jpeg_is_near_the_original(shared_data, decoder):
    """Its scans say that they end with coefficient 0, so that libjpeg refuses them as they are."""
    folder = shared_data / "codecs" / "wg04"
    for name in ("MR4", "NM1"):
        lossy, plain = (read(folder / f"{name}_{tail}", decoder).astype(int) for tail in ("JPLY", "UNC"))
        assert np.abs(lossy - plain).mean() < 0.01 * plain.max()
    mended = shared_data / "codecs" / "pydicom_misc" / "JPGExtended.dcm"  # the same, mended by hand
    assert np.array_equal(read(folder / "NM1_JPLY", decoder), read(mended, decoder))

"""Frames as stored values: bits, signs, byte orders, colour, tables, transfer syntaxes; held against real files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from coded import GREY8, RGB8, read, read_all, rle, write, write_coded, ybr
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from tiny import save, stored, tiny

from archive.codestreams import UNCOMPRESSED
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.headers import read_header
from archive.pixels import damage, frame_bytes, legal, pixel_digest, read_frame

PACKAGED = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder() as one:
        yield one


# -- uncompressed


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_syntaxes_give_the_same_voxels(tmp_path, syntax):
    pixels = stored(3).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    path = write(tmp_path / "one.dcm", pixels, syntax)
    header = read_header(path)
    assert header["syntax"] == syntax
    with PixelDecoder() as decoder:
        array = read_frame(path, header, 0, decoder)
        started = decoder._child is not None
    assert array.dtype.isnative
    assert np.array_equal(array, stored(3))
    assert started == (syntax == DeflatedExplicitVRLittleEndian)  # else no process is started


def test_pixels_of_ges_private_syntax_are_big_endian(tmp_path, decoder):
    path = write(tmp_path / "one.dcm", stored(3).astype(">u2"), ImplicitVRLittleEndian)
    raw = path.read_bytes()
    syntax, private = b"1.2.840.10008.1.2\0", b"1.2.840.113619.5.2"
    assert raw.count(syntax) == 1
    path.write_bytes(raw.replace(syntax, private))
    assert np.array_equal(read(path, decoder), stored(3))


BITS = [
    # allocated, stored, high, signed, raw, expected
    (16, 12, 11, 0, [0x0FFF, 0xF00F, 0x1000], [4095, 15, 0]),  # overlay bits above the value
    (16, 12, 11, 1, [0x0FFF, 0x0800, 0xF7FF], [-1, -2048, 2047]),
    (16, 12, 15, 0, [0xFFFF, 0x00F0, 0x000F], [4095, 15, 0]),  # the value in the high bits, junk below
    (16, 12, 15, 1, [0xFFF0, 0x8007, 0x7FF0], [-1, -2048, 2047]),
    (16, 12, 13, 0, [0xFFFF, 0xC003, 0x0004], [4095, 0, 1]),  # junk on both sides
    (16, 16, 15, 1, [0xFFFF, 0x8000, 1], [-1, -32768, 1]),
    (16, 16, 15, 0, [0xFFFF, 0x8000, 1], [65535, 32768, 1]),
    (16, 1, 0, 0, [0xFFFF, 0x8000, 1], [1, 0, 1]),
    (8, 8, 7, 0, [255, 128, 1], [255, 128, 1]),
    (8, 8, 7, 1, [255, 128, 1], [-1, -128, 1]),
    (8, 6, 5, 0, [0xFF, 0xC1, 0x3F], [63, 1, 63]),
    (32, 32, 31, 0, [0xFFFFFFFF, 0x80000000, 1], [2**32 - 1, 2**31, 1]),
    (32, 24, 23, 1, [0x00FFFFFF, 0xFF800000, 1], [-1, -(2**23), 1]),
]


@pytest.mark.parametrize(("allocated", "bits", "high", "signed", "raw", "expected"), BITS)
@pytest.mark.parametrize("coded", [False, True])
def test_only_the_stored_bits_count(tmp_path, decoder, allocated, bits, high, signed, raw, expected, coded):
    changes = {"BitsAllocated": allocated, "BitsStored": bits, "HighBit": high, "PixelRepresentation": signed}
    pixels = np.array([*raw, 0], dtype=f"<u{allocated // 8}")
    path = tmp_path / "one.dcm"
    if coded:  # RLE codes the container as it lies in memory
        planes = [pixels.view("u1")[byte :: allocated // 8].tobytes() for byte in reversed(range(allocated // 8))]
        write_coded(path, encapsulate([rle(planes)]), RLELossless, Rows=1, Columns=4, **changes)
    else:
        write(path, pixels, Rows=1, Columns=4, **changes)
    array = read(path, decoder)
    assert array.dtype == np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    assert array[0].tolist() == [*expected, 0]


@pytest.mark.parametrize("columns", [2, 3])
def test_8_bit_words_of_big_endian_are_unswapped(tmp_path, decoder, columns):
    frames = np.arange(1, 1 + 3 * columns, dtype=np.uint8)
    swapped = np.pad(frames, (0, len(frames) % 2)).view("<u2").byteswap()
    path = write(tmp_path / "one.dcm", swapped, ExplicitVRBigEndian, Rows=1, Columns=columns, NumberOfFrames=3, **GREY8)
    assert read_all(path, decoder).ravel().tolist() == frames.tolist()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("columns", [5, 8])
def test_bitmaps_are_unpacked_across_frames(tmp_path, decoder, syntax, columns):
    bits = np.random.default_rng(1).integers(0, 2, (3, 3, columns)).astype(np.uint8)
    changes = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "Rows": 3, "Columns": columns, "NumberOfFrames": 3}
    if syntax == RLELossless:  # each frame begins with a byte of its own
        coded = [rle([np.packbits(frame, bitorder="little").tobytes()]) for frame in bits]
        path = write_coded(tmp_path / "one.dcm", encapsulate(coded), syntax, **changes)
    else:
        path = write(tmp_path / "one.dcm", np.packbits(bits, bitorder="little"), syntax, **changes)
    header = read_header(path)
    assert (legal(header), damage(header, path.stat().st_size)) == ("", "")
    assert np.array_equal(read_all(path, decoder), bits)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("keyword", "size"), [("FloatPixelData", 4), ("DoubleFloatPixelData", 8)])
def test_float_pixels_are_read_or_refused_where_they_are_not_finite(tmp_path, decoder, keyword, size, order):
    values = np.array([[1.5, -2e30], [0, 3]], f"{order}f{size}")
    syntax = ExplicitVRLittleEndian if order == "<" else ExplicitVRBigEndian
    for values[1, 0] in (0.25, np.nan):
        dataset = tiny(0, Rows=2, Columns=2, BitsAllocated=8 * size, BitsStored=None, HighBit=None)
        del dataset.PixelData, dataset.PixelRepresentation
        dataset.add_new(keyword, "OF" if size == 4 else "OD", values.tobytes())
        path = save(dataset, tmp_path / "one.dcm", syntax)
        header = read_header(path)
        if np.isnan(values[1, 0]):
            with pytest.raises(InputError, match="NON_FINITE"):
                read_frame(path, header, 0, decoder)
        else:
            array = read_frame(path, header, 0, decoder)
            assert array.dtype == np.dtype(f"f{size}")
            assert np.array_equal(array, values)
            assert legal({**header, "allocated": 16}) == "BAD_HEADER"


# -- colour


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, UNCOMPRESSED])
def test_colour_comes_out_channels_first(tmp_path, decoder, planar, size, syntax):
    frames = np.random.default_rng(2).integers(0, 256**size, (2, 3, 4, 5)).astype(f"<u{size}")  # frame, channel, y, x
    laid = frames if planar else np.moveaxis(frames, 1, -1)
    changes = {"Rows": 4, "Columns": 5, "NumberOfFrames": 2, **RGB8, "PlanarConfiguration": planar}
    changes |= {"BitsAllocated": 8 * size, "BitsStored": 8 * size, "HighBit": 8 * size - 1}
    path = tmp_path / "one.dcm"
    if syntax == UNCOMPRESSED:
        write_coded(path, encapsulate([np.ascontiguousarray(frame).tobytes() for frame in laid]), syntax, **changes)
    else:
        write(path, np.ascontiguousarray(laid), syntax, **changes)
    for index in (1, 0):
        array = read(path, decoder, index)
        assert array.dtype == np.dtype(f"u{size}") and array.flags.c_contiguous
        assert np.array_equal(array, frames[index])


COLOURS = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (12, 200, 99), (128, 128, 128)]


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "full size YBR_FULL_422"])
@pytest.mark.parametrize("colour", COLOURS)
def test_luminance_and_chroma_become_rgb(tmp_path, decoder, photometric, colour):
    y, cb, cr = ybr(colour, "PARTIAL" in photometric)
    halved = photometric.endswith("_422") and " " not in photometric
    pixels = np.array([y, y, cb, cr] * 2 if halved else [y, cb, cr] * 4, np.uint8)
    changes = {"Rows": 2, "Columns": 2, **RGB8, "PhotometricInterpretation": photometric.split()[-1]}
    path = write(tmp_path / "one.dcm", pixels, **changes)
    header = read_header(path)
    assert frame_bytes(header) == len(pixels)
    assert (legal(header), damage(header, path.stat().st_size)) == ("", "")
    array = read_frame(path, header, 0, decoder)
    assert array.dtype == np.uint8
    assert np.abs(array.reshape(3, 4).astype(int) - np.array(colour)[:, None]).max() <= 2  # Y, Cb, Cr were rounded


def test_only_the_pixels_of_a_pair_share_their_chroma(tmp_path, decoder):
    pixels = np.array([10, 20, 128, 128, 30, 40, 128, 255], np.uint8)
    changes = {"Rows": 1, "Columns": 4, **RGB8, "PhotometricInterpretation": "YBR_FULL_422"}
    array = read(write(tmp_path / "one.dcm", pixels, **changes), decoder)
    assert array[2, 0].tolist() == [10, 20, 30, 40]  # blue depends on Cb alone
    assert array[0, 0].tolist() == [10, 20, 208, 218]


def test_16_bit_luminance_is_converted_in_its_own_range(tmp_path, decoder):
    pixels = np.array([40000, 32768, 32768, 65535, 65535, 32768], "<u2")
    changes = {"Rows": 1, "Columns": 2, **RGB8, "PhotometricInterpretation": "YBR_FULL", "BitsAllocated": 16}
    path = write(tmp_path / "one.dcm", pixels, **{**changes, "BitsStored": 16, "HighBit": 15})
    array = read(path, decoder)
    assert array[:, 0, 0].tolist() == [40000] * 3
    assert array[2, 0, 1] == 65535  # clipped, not wrapped


# -- coded


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [0, 1])
def test_coded_frames_equal_the_original(tmp_path, decoder, syntax, signed):
    dtype = "<i2" if signed else "<u2"
    pixels = np.random.default_rng(7).integers(-2048 * signed, 2048, (3, 32, 40)).astype(dtype)
    dataset = tiny(0, Rows=32, Columns=40, pixels=pixels.tobytes(), NumberOfFrames=3, PixelRepresentation=signed)
    path = save(dataset, tmp_path / "one.dcm")
    plain = [pixel_digest(path, read_header(path), index, decoder) for index in range(3)]
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    header = read_header(path)
    for index in (2, 0, 1):
        array = read_frame(path, header, index, decoder)
        assert array.dtype == pixels.dtype
        assert np.array_equal(array, pixels[index])
    assert [pixel_digest(path, header, index, decoder) for index in range(3)] == plain


def test_an_icon_is_never_taken_for_the_image(tmp_path, decoder):
    """pydicom's #2324: behind a coded icon in an item of stated length, the image itself was lost."""
    pixels = np.random.default_rng(7).integers(0, 4096, (32, 40)).astype(np.uint16)
    dataset = tiny(0, Rows=32, Columns=40, pixels=pixels)
    path = save(dataset, tmp_path / "one.dcm")
    dataset.compress(RLELossless, generate_instance_uid=False)
    icon = tiny(0, Rows=2, Columns=2, pixels=encapsulate([rle([b"\x01\x02\x03\x04"])]), **GREY8)
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    for undefined in (False, True):
        dataset.IconImageSequence = [icon]
        dataset["IconImageSequence"].is_undefined_length = undefined
        dataset.IconImageSequence[0].is_undefined_length_sequence_item = undefined
        dataset.save_as(path, enforce_file_format=True)
        header = read_header(path)
        assert (header["rows"], header["columns"]) == (32, 40)
        assert np.array_equal(read_frame(path, header, 0, decoder), pixels)


# -- refusals

GOOD = {
    "pixels": [0x7FE00010, 1000, 60, 0, 1],
    "syntax": ExplicitVRLittleEndian,
    "rows": 6,
    "columns": 5,
    "samples": 1,
    "allocated": 16,
    "stored": 12,
    "high": 11,
    "signed": 0,
    "photometric": "MONOCHROME2",
    "planar": None,
    "frames": None,
    "lut": False,
}
COLOUR = {"samples": 3, "photometric": "RGB", "planar": 0}
CODED = {"syntax": RLELossless, "pixels": [0x7FE00010, 1000, -1, 0, 0]}
ILLEGAL = [
    ({}, ""),
    ({"high": None, "samples": None}, ""),
    (COLOUR, ""),
    (CODED, ""),
    ({"photometric": "PALETTE COLOR"}, ""),
    ({"syntax": ""}, ""),  # with a length, it can only be uncompressed
    ({"rows": None}, "BAD_HEADER"),
    ({"columns": 0}, "BAD_HEADER"),
    ({"frames": -1}, "BAD_HEADER"),
    ({"photometric": ""}, "BAD_HEADER"),
    ({"signed": 2}, "BAD_HEADER"),
    ({"stored": None}, "BAD_HEADER"),
    ({"stored": 17}, "BAD_HEADER"),
    ({"stored": 0}, "BAD_HEADER"),
    ({"high": 16}, "BAD_HEADER"),
    ({"high": 10}, "BAD_HEADER"),
    ({"samples": 3}, "BAD_HEADER"),
    ({**COLOUR, "samples": 1}, "BAD_HEADER"),
    ({"photometric": "ARGB", "samples": 4}, "UNSUPPORTED_PIXELS"),
    ({"photometric": "HSV", "samples": 3}, "UNSUPPORTED_PIXELS"),
    ({"allocated": 12}, "UNSUPPORTED_PIXELS"),
    ({"allocated": 64, "stored": 64, "high": 63}, "UNSUPPORTED_PIXELS"),
    ({**COLOUR, "photometric": "YBR_RCT"}, "BAD_HEADER"),  # what nobody but a JPEG 2000 codec undoes
    ({**COLOUR, **CODED, "photometric": "YBR_ICT"}, "BAD_HEADER"),
    ({**COLOUR, "photometric": "YBR_FULL", "signed": 1}, "BAD_HEADER"),
    ({**CODED, "syntax": ""}, "BAD_HEADER"),
    ({"syntax": RLELossless}, "BAD_HEADER"),  # coded, but of a stated length
    ({**CODED, "syntax": "1.2.840.10008.1.2.4.100"}, "UNSUPPORTED_PIXELS"),  # MPEG-2
    ({**CODED, "syntax": "1.2.3"}, "UNSUPPORTED_PIXELS"),
    ({"pixels": [0x7FE00008, 1000, 60, 0, 0]}, "BAD_HEADER"),
]


@pytest.mark.parametrize(("changes", "code"), ILLEGAL)
def test_headers_that_no_pixels_can_be_read_by(tmp_path, decoder, changes, code):
    header = {**GOOD, **changes}
    assert legal(header) == code
    if code:
        with pytest.raises(InputError, match=code):
            read_frame(tmp_path / "never opened", header, 0, decoder)


@pytest.mark.parametrize(
    ("changes", "length", "size", "code"),
    [
        ({}, 60, 1060, ""),
        ({}, 60, 1059, "TRUNCATED"),
        ({}, 58, 2000, "TRUNCATED"),
        ({}, 118, 2000, ""),  # trailing junk
        ({}, 120, 2000, "BAD_HEADER"),  # another frame
        ({"frames": 3}, 180, 1180, ""),
        ({"frames": 3}, 178, 1180, "TRUNCATED"),
        ({"frames": 3}, 240, 2000, "BAD_HEADER"),
        ({"rows": 1, "columns": 1, "allocated": 8, "stored": 8, "high": 7}, 2, 2000, ""),  # padded to an even length
        ({"rows": 3, "columns": 3, "allocated": 1, "stored": 1, "high": 0, "frames": 5}, 6, 1006, ""),
        ({"rows": 3, "columns": 3, "allocated": 1, "stored": 1, "high": 0, "frames": 6}, 6, 1006, "TRUNCATED"),
        ({"frames": 2**31 - 1}, 60, 1060, "TRUNCATED"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, 60, 500, ""),  # offsets are those of the inflated data set
        (CODED, -1, 1100, ""),
        (CODED, -1, 1007, "TRUNCATED"),
    ],
)
def test_lengths_that_lie(changes, length, size, code):
    header = {**GOOD, **changes, "pixels": [0x7FE00010, 1000, length, 0, 1]}
    assert legal(header) == ""
    assert damage(header, size) == code


def test_frames_beyond_the_last_are_refused(tmp_path, decoder):
    path = write(tmp_path / "one.dcm", stored(0))
    for frame in (-1, 1):
        with pytest.raises(InputError, match="BAD_HEADER"):
            read(path, decoder, frame)


# -- peers


def test_pydicoms_own_files_read_as_pydicom_reads_them(decoder):
    compared = 0
    for path in sorted(PACKAGED.glob("*.dcm")):
        dataset = pydicom.dcmread(path, force=True)
        try:
            peer, header = dataset.pixel_array, read_header(path)
        except Exception:
            continue  # pixels that pydicom cannot read, or a header that is refused
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            peer = apply_color_lut(peer, dataset)
        assert (legal(header), damage(header, path.stat().st_size)) == ("", ""), path.name
        array = read_all(path, decoder)
        assert array.dtype == peer.dtype.newbyteorder("="), path.name
        assert np.array_equal(array, peer), path.name
        compared += 1
    assert compared >= 50


FOLDERS = ("codecs", "projection_us", "multiframe", "robustness")
BETTER = {"MR4_JPLY", "NM1_JPLY", "RG3_JPLY", "liver_rle.dcm", "liver_deflate.dcm"}  # the manifest's reader gave up


def test_real_files_have_the_outcome_of_the_manifest_or_a_better_one(shared_data, decoder):
    entries = json.loads((shared_data / "manifest.json").read_text())["entries"]
    rows = [row for entry in entries if entry["path"].startswith(FOLDERS) for row in entry.get("files", [])]
    equal, better, wrong = 0, set(), []
    for row in rows:
        path, want = shared_data / row["path"], row.get("pixel_sha256_16")
        if path.suffix == ".gz":
            continue
        try:
            header = read_header(path)
            refused = header["pixels"] is None or legal(header) or damage(header, path.stat().st_size)
            array = None if refused else read_all(path, decoder)
        except InputError:
            array = None
        if array is None:
            found = None
        elif header["photometric"] == "PALETTE COLOR":  # the manifest has its indices
            dataset = pydicom.dcmread(path)
            found = want if np.array_equal(array, apply_color_lut(dataset.pixel_array, dataset)) else "other"
        else:
            little = array.astype(array.dtype.newbyteorder("<"))
            found = hashlib.sha256(little.tobytes()).hexdigest()[:16]
        if found is not None and want is None:
            better.add(path.name)
        elif found != want:
            wrong.append(path.name)
        else:
            equal += found is not None
    assert wrong == []
    assert equal >= 150
    assert better >= BETTER


def test_lossless_encodings_of_one_image_are_equal(shared_data, decoder):
    groups = json.loads((shared_data / "manifest.json").read_text())["lossless_parity"]
    compared = 0
    for group in groups:
        folder = shared_data / group["group"]
        folder = folder if folder.is_dir() else folder.parent
        for members in group["members"]:
            first, *others = [read_all(folder / name, decoder) for name in members]
            for array in others:
                assert array.dtype == first.dtype
                assert np.array_equal(array, first)
                compared += 1
    livers = [shared_data / "codecs" / "pydicom_misc" / f"liver_{tail}.dcm" for tail in ("rle", "deflate")]
    for path in livers:
        plain = read_all(shared_data / "robustness" / "non_image" / "liver.dcm", decoder)
        assert np.array_equal(read_all(path, decoder), plain)
    assert compared == 16


def test_overlay_bits_do_not_reach_the_voxels(shared_data, decoder):
    names = sorted((shared_data / "pairs" / "12bit" / "In").glob("*.dcm"))
    assert len(names) == 3
    for path in names:
        header = read_header(path)
        array = read_frame(path, header, 0, decoder)
        assert array.min() >= (-2048 if header["signed"] else 0)
        assert array.max() < (2048 if header["signed"] else 4096)
        assert np.array_equal(array, pydicom.dcmread(path).pixel_array)

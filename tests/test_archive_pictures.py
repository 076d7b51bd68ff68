"""Pictures of every kind as single-slice volumes."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from archive.errors import InputError
from archive.keys import Pseudonyms
from archive.scan import read_series, scan
from archive.settings import IngestSettings

RANDOM = np.random.default_rng(5)
GREY = RANDOM.integers(0, 256, (7, 9)).astype(np.uint8)
RGB = RANDOM.integers(0, 256, (7, 9, 3)).astype(np.uint8)
ALPHA = RANDOM.integers(0, 256, (7, 9, 1)).astype(np.uint8)
WIDE = RANDOM.integers(0, 65536, (7, 9)).astype(np.uint16)

KINDS = [
    ("grey.png", Image.fromarray(GREY), GREY),
    ("grey.tif", Image.fromarray(GREY), GREY),
    ("rgb.png", Image.fromarray(RGB), RGB),
    ("rgb.tiff", Image.fromarray(RGB), RGB),
    ("alpha.png", Image.fromarray(np.concatenate([RGB, ALPHA], axis=2)), RGB),
    ("grey-alpha.png", Image.fromarray(np.concatenate([GREY[..., None], ALPHA], axis=2), mode="LA"), GREY),
    ("wide.png", Image.fromarray(WIDE), WIDE),
    ("wide.tif", Image.fromarray(WIDE), WIDE),
    ("float.tif", Image.fromarray(WIDE.astype(np.float32)), WIDE.astype(np.float32)),
    ("bits.png", Image.fromarray(GREY > 127), (GREY > 127).astype(np.uint8) * 255),
    ("palette.png", Image.fromarray(RGB).quantize(16), np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB"))),
]


@pytest.mark.parametrize(("name", "image", "expected"), KINDS, ids=[row[0] for row in KINDS])
def test_pixels_are_kept(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan)
    colour = expected.ndim == 3
    assert volume.axes == ("czyx" if colour else "zyx")
    assert volume.voxels.dtype == expected.dtype
    assert np.array_equal(volume.voxels, np.moveaxis(expected, -1, 0)[:, None] if colour else expected[None])
    assert (plan.group, plan.modality) == ("picture-rgb" if colour else "picture", "PICTURE")
    assert (volume.units, volume.photometric) == (("rgb", "RGB") if colour else ("a.u.", "MONOCHROME2"))
    assert plan.voxels == volume.voxels.size


@pytest.mark.parametrize(("array", "group"), [(GREY, "picture"), (RGB, "picture-rgb")])
def test_jpeg_is_flagged_as_lossy(tmp_path, array, group):
    Image.fromarray(array).save(tmp_path / "one.JPG", quality=95)
    (plan,) = scan(tmp_path).plans
    assert plan.group == group
    assert "LOSSY_SOURCE" in read_series(plan).flags


def test_each_picture_is_its_own_series_and_patient(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    plans = scan(tmp_path, alias="here").plans
    assert len({plan.series for plan in plans}) == len({plan.patient for plan in plans}) == 2
    assert {plan.identity for plan in plans} == {("here", "a.png"), ("here", "b.png")}


def test_the_folder_of_a_picture_is_its_class_under_a_pseudonym(tmp_path):
    """As torchvision's ImageFolder has it; alike in every source, and never by its name."""
    places = ("Hand/a.png", "Hand/b.png", "test/Hand/c.png", "Müller^Eva/d.png", "top.png")
    for name in places:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / name)
    keys = Pseudonyms(b"of no worth to anybody")
    plans = {plan.files[0]: plan for plan in scan(tmp_path, alias="here", pseudonyms=keys).plans}
    found = [read_series(plans[name]).acquisition for name in places]
    assert found[0] == found[1] == found[2] != found[3]
    assert found[4] == {}
    assert re.fullmatch("[0-9a-f]{16}", str(found[0]["class"]))
    other = scan(tmp_path, alias="here", pseudonyms=Pseudonyms(b"another, as worthless"))
    assert found[0]["class"] not in {read_series(plan).acquisition.get("class") for plan in other.plans}


def test_a_packed_picture_has_the_class_of_its_folder_within(tmp_path):
    for name in ("Hand/a.png", "top.png"):
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / "plain" / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "plain").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "plain"))
    keys = Pseudonyms(b"of no worth to anybody")
    plain, packed = (scan(place, pseudonyms=keys) for place in (tmp_path / "plain", tmp_path / "all.zip"))
    classes = [
        {str(read_series(plan).acquisition.get("class", "")) for plan in result.plans} for result in (plain, packed)
    ]
    assert classes[0] == classes[1]
    assert len(classes[0]) == 2


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_grey_with_alpha_keeps_its_bits(tmp_path, interlaced):
    """Pillow gives the high bytes only; written by hand, as Pillow cannot write it."""
    alpha = RANDOM.integers(0, 65536, WIDE.shape).astype(np.uint16)
    pixels = np.stack([WIDE, alpha], axis=-1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::down, x::right] for y, x, down, right in passes] if interlaced else [pixels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", WIDE.shape[1], WIDE.shape[0], 16, 4, 0, 0, int(interlaced))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    (tmp_path / "wide.png").write_bytes(data)
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan)
    assert (volume.voxels.dtype, volume.bits_stored) == (np.uint16, 16)
    assert np.array_equal(volume.voxels[0], WIDE)
    assert plan.voxels == WIDE.size


def _save_pages(path, **options):
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY[::-1])], **options)


def test_pages_are_slices(tmp_path):
    _save_pages(tmp_path / "pages.tif")
    (plan,) = scan(tmp_path).plans
    volume = read_series(plan)
    assert (volume.axes, volume.flags, plan.voxels) == ("zyx", (), volume.voxels.size)
    assert np.array_equal(volume.voxels, np.stack([GREY, GREY[::-1]]))


def test_pages_that_differ_and_animations_are_refused(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[:2])]
    pages[0].save(tmp_path / "differ.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(GREY[::-1])])
    assert [finding.code for finding in scan(tmp_path).findings] == ["MULTIFRAME"] * 2


@pytest.mark.parametrize("name", ["16rgb", "16rgba"])
def test_16_bit_colour_is_read_whole(shared_data, name):
    (plan,) = scan(shared_data / "nifti" / "png_tif" / f"sub-png_sample-{name}_SEM.png").plans
    volume = read_series(plan)
    assert (volume.axes, volume.voxels.dtype, volume.bits_stored, plan.group) == ("czyx", np.uint16, 16, "picture-rgb")
    with Image.open(shared_data / "nifti" / "png_tif" / f"sub-png_sample-{name}_SEM.png") as image:
        high = np.asarray(image)[..., :3]  # Pillow's own reading: the high bytes
    assert np.array_equal(volume.voxels[:, 0] >> 8, np.moveaxis(high, -1, 0))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_colour_tiff_is_read_whole(tmp_path, order, compression):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(3).integers(0, 65536, (2, 7, 9, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "one.tif", values, photometric="rgb", byteorder=order, compression=compression)
    (plan,) = scan(tmp_path).plans
    assert np.array_equal(read_series(plan).voxels, np.moveaxis(values, -1, 0))


def test_a_thumbnail_page_is_not_a_second_picture(shared_data):
    (plan,) = scan(shared_data / "nifti" / "png_tif" / "sub-tif_sample-16gray_SEM.tif").plans
    assert read_series(plan).voxels.dtype == np.uint16


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "UNKNOWN_FORMAT"), (b"\x89PNG\r\n\x1a\nnothing", "UNKNOWN_FORMAT")]
)
def test_junk_named_like_a_picture(tmp_path, content, code):
    (tmp_path / "one.png").write_bytes(content)
    assert [finding.code for finding in scan(tmp_path).findings] == [code]


@pytest.mark.parametrize("name", ["one.png", "one.jpg", "one.tif"])
def test_a_cut_picture_is_refused(tmp_path, name):
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) * 2 // 3])
    result = scan(tmp_path)
    if result.plans:
        with pytest.raises(InputError) as caught:
            read_series(result.plans[0])
        assert caught.value.code in ("TRUNCATED", "DECODE_FAILED")
    else:
        assert [finding.code for finding in result.findings] == ["UNKNOWN_FORMAT"]


def test_too_large_is_refused_from_the_header(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "one.png")
    small = IngestSettings(max_series_bytes=RGB.size - 1)
    assert [finding.code for finding in scan(tmp_path, settings=small).findings] == ["TOO_LARGE"]


def test_not_a_number_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "one.tif")
    (plan,) = scan(tmp_path).plans
    with pytest.raises(InputError, match="NON_FINITE"):
        read_series(plan)


def test_real_pictures_are_read(shared_data):
    result = scan(shared_data / "train" / "imagefolder_medmnist64" / "Hand")
    assert (len(result.plans), len(result.findings)) == (90, 0)
    assert {read_series(plan).voxels.shape for plan in result.plans[:10]} == {(1, 64, 64)}

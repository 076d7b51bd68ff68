"""Palettes and modality LUTs, held against pydicom's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from coded import read
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from tiny import save, tiny

from archive import lookup
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.headers import read_header
from archive.pixels import legal, read_frame


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder() as one:
        yield one


def palette_file(path: Path, depth: int, first: int, signed: bool, segmented: bool, order: str = "<") -> Dataset:
    """4 x 4 indices around the range of a palette of 6 entries."""
    indices = np.arange(16).reshape(4, 4) + first - 4
    dataset = tiny(0, Rows=4, Columns=4, PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=int(signed))
    dataset.BitsStored, dataset.HighBit = 16, 15
    dataset.PixelData = indices.astype(f"{order}{'i' if signed else 'u'}2").tobytes()
    for number, name in enumerate(("Red", "Green", "Blue")):
        keyword = f"{name}PaletteColorLookupTable"
        dataset.add_new(f"{keyword}Descriptor", "SS" if signed else "US", [6, first, depth])
        top = 2**depth - 1 - number
        if segmented:  # 3 discrete, a line over 2, then the discrete ones again: one too many
            data = [0, 3, 5 + number, 1, 9, 1, 2, top, 2, 1, 0] + ([0, 0, 0] if depth == 8 else [0])
        else:
            data = [5 + number, 1, 9, 200, top, number]
        dtype = np.uint8 if depth == 8 else f"{order}u2"
        raw = np.array(data + [0] * (len(data) % 2), dtype)
        raw = raw.view("<u2").byteswap() if depth == 8 and order == ">" else raw
        dataset.add_new(f"Segmented{keyword}Data" if segmented else f"{keyword}Data", "OW", raw.tobytes())
    save(dataset, path, ExplicitVRLittleEndian if order == "<" else ExplicitVRBigEndian)
    return dataset


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("first", "signed"), [(10, False), (-3, True), (40000, False)])
@pytest.mark.parametrize("segmented", [False, True])
def test_palettes_become_rgb_as_pydicom_has_it(tmp_path, decoder, depth, first, signed, segmented):
    path = tmp_path / "one.dcm"
    palette_file(path, depth, first, signed, segmented)
    array = read(path, decoder)
    dataset = pydicom.dcmread(path)
    assert array.dtype == np.dtype(f"u{depth // 8}")
    assert array[:, 0, 0].tolist() == [5, 6, 7]  # below the range: the first entry
    peer = apply_color_lut(dataset.pixel_array, dataset)
    assert np.array_equal(np.moveaxis(array, 0, -1), peer)


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes_of_big_endian_files_are_swapped(tmp_path, decoder, depth):
    palette_file(tmp_path / "little.dcm", depth, 10, False, False)
    palette_file(tmp_path / "big.dcm", depth, 10, False, False, ">")
    assert np.array_equal(read(tmp_path / "big.dcm", decoder), read(tmp_path / "little.dcm", decoder))


def test_a_palette_that_is_missing_or_too_short_is_refused(tmp_path, decoder):
    dataset = palette_file(tmp_path / "one.dcm", 16, 10, False, False)
    dataset.GreenPaletteColorLookupTableData = b"\1\0" * 3
    with pytest.raises(InputError, match="BAD_HEADER"):
        read(save(dataset, tmp_path / "short.dcm"), decoder)
    del dataset.GreenPaletteColorLookupTableData
    with pytest.raises(InputError, match="BAD_HEADER"):
        read(save(dataset, tmp_path / "none.dcm"), decoder)


def test_a_segmented_palette_cannot_grow_without_end():
    bomb = np.array([0, 1, 7] + [1, 65535, 9] * 20_000 + [2, 65535, 0, 0] * 5_000, np.uint16)
    assert lookup.expand(bomb, 65536).shape == (65536,)
    with pytest.raises(InputError, match="BAD_HEADER"):
        lookup.expand(np.array([0, 1, 7, 2, 1, 3, 0], np.uint16), 100)  # an indirect segment that repeats itself


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize(("first", "signed"), [(3, False), (-2, True)])
def test_modality_tables_are_applied_as_pydicom_does(tmp_path, decoder, vr, first, signed):
    values = (np.arange(30).reshape(6, 5) + first - 5).clip(None if signed else 0).astype("<i2")
    dataset = tiny(0, pixels=values.tobytes(), PixelRepresentation=int(signed), RescaleSlope=None)
    dataset.BitsStored, dataset.HighBit = 16, 15
    del dataset.RescaleIntercept
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [8, first, 16])
    entries = np.array([9, 8, 60000, 6, 5, 4, 3, 77], "<u2")
    item.add_new("LUTData", vr, entries.tobytes() if vr == "OW" else entries.tolist())
    dataset.ModalityLUTSequence = [item]
    path = save(dataset, tmp_path / "one.dcm")
    header = read_header(path)
    assert header["lut"] and legal(header) == ""
    array = read_frame(path, header, 0, decoder)
    assert array.dtype == np.uint16
    assert np.array_equal(array, apply_modality_lut(values, pydicom.dcmread(path)))

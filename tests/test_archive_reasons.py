"""Every reason code that ingestion can give: a source that provokes it, from the scan to the refusal."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from tiny import SERIES, save, save_all, stored, tiny

from archive.errors import REASONS, InputError
from archive.scan import scan
from archive.series import read_series
from archive.settings import IngestSettings
from archive.workspace import Workspace
from flows.ingest import ingest

NOT_INGESTION = set(list(REASONS)[list(REASONS).index("UNEXPECTED") + 1 :])
TELLING = 12  # a hint of fewer characters tells nobody what to do


@dataclass(frozen=True)
class Provoke:
    """A way to be refused. make: writes the source; settings: of the ingest; meanwhile: between scan and read."""

    make: Callable[[Path], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    meanwhile: Callable[[Path], Any] | None = None


def series(folder: Path, count: int = 5, **changes: Any) -> None:
    """A plain series, each slice changed alike."""
    save_all([tiny(index, **changes) for index in range(count)], folder)


def text(name: str, content: bytes = b"of no known kind at all") -> Callable[[Path], Any]:
    """One file of these bytes."""
    return lambda folder: (folder / name).write_bytes(content)


def damaged(change: Callable[[bytes], bytes], **changes: Any) -> Callable[[Path], Any]:
    """A series whose second file's bytes are changed."""

    def make(folder: Path) -> None:
        series(folder, **changes)
        path = folder / "001.dcm"
        path.write_bytes(change(path.read_bytes()))

    return make


def compressed(syntax: str, fragment: bytes, **changes: Any) -> Callable[[Path], Any]:
    """A series of encapsulated frames."""

    def make(folder: Path) -> None:
        for index in range(3):
            dataset = tiny(index, pixels=encapsulate([fragment]), **changes)
            dataset["PixelData"].is_undefined_length = True
            save(dataset, folder / f"{index:03d}.dcm", syntax)

    return make


def conflict(folder: Path) -> None:
    """One SOPInstanceUID on two images."""
    series(folder)
    save(tiny(2, pixels=stored(9)), folder / "again.dcm")


def gap(folder: Path) -> None:
    """Every slice but the middle one."""
    save_all([tiny(index) for index in range(9) if index != 4], folder)


def uneven(folder: Path) -> None:
    """Slices whose distances are not one."""
    save_all(
        [
            tiny(number, ImagePositionPatient=[0.0, 0.0, place])
            for number, place in enumerate((0.0, 2.0, 4.5, 6.0, 8.5, 10.0))
        ],
        folder,
    )


def twice(folder: Path) -> None:
    """Two different images at every place, and nothing that orders them."""
    for index in range(10):
        save(
            tiny(index, ImagePositionPatient=[0.0, 0.0, 2.0 * (index // 2)], InstanceNumber=None),
            folder / f"{index:03d}.dcm",
        )


def touched(folder: Path) -> None:
    """A file replaced after it was looked at."""
    path = folder / "001.dcm"
    path.write_bytes(path.read_bytes() + b"\0\0")


def nested(folder: Path) -> None:
    """Sequences in sequences, 200 deep, before the pixels."""
    save(tiny(), folder / "deep.dcm")
    data = (folder / "deep.dcm").read_bytes()
    at = data.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    opened = struct.pack("<HH2sHL", 0x0021, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 2**32 - 1
    )
    (folder / "deep.dcm").write_bytes(data[:at] + opened * 200 + data[at:])


def wrong_syntax(folder: Path) -> None:
    """Explicit elements under a meta header that says implicit."""
    series(folder, 1)
    data = (folder / "000.dcm").read_bytes()
    one, other = b"1.2.840.10008.1.2.1\0", ImplicitVRLittleEndian.encode().ljust(20, b"\0")
    (folder / "000.dcm").write_bytes(data.replace(one, other, 1))


def packed_twice(folder: Path) -> None:
    """A zip in a tar."""
    series(folder / "x", 1)
    with zipfile.ZipFile(folder / "inner.zip", "w") as inner:
        inner.write(folder / "x" / "000.dcm", "000.dcm")
    with tarfile.open(folder / "outer.tar", "w") as outer:
        outer.add(folder / "inner.zip", "inner.zip")
    (folder / "inner.zip").unlink()
    (folder / "x" / "000.dcm").unlink()


def bomb(folder: Path) -> None:
    """A zip of zeros, a thousand times its own size."""
    with zipfile.ZipFile(folder / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("000.dcm", bytes(8 * 2**20))


def pages(folder: Path) -> None:
    """A TIFF of two pages that are no stack: one is larger than the other."""
    first, second = (Image.fromarray(np.full((size, 20), 7, np.uint8)) for size in (30, 20))
    first.save(folder / "pages.tif", save_all=True, append_images=[second])


RLE_ASKS_MUCH = struct.pack("<16L", 1, 64, *[0] * 14) + bytes(200)
REFUSALS: dict[str, Provoke] = {
    "NOT_DICOM": Provoke(text("000.dcm")),
    "UNKNOWN_FORMAT": Provoke(text("thing")),
    "TRUNCATED": Provoke(damaged(lambda data: data[:-20])),
    "DECODE_FAILED": Provoke(compressed(JPEG2000Lossless, b"\xff\x4f\xff\x51" + bytes(60))),
    "DECODE_LIMIT": Provoke(compressed(RLELossless, RLE_ASKS_MUCH, Rows=30_000, Columns=30_000)),
    "TOO_LARGE": Provoke(series, {"max_series_bytes": 299}),
    "BAD_HEADER": Provoke(lambda folder: series(folder, Rows=None)),
    "NO_PIXELS": Provoke(lambda folder: series(folder, PixelData=None)),
    "HEADER_LIMIT": Provoke(nested),
    "WRONG_SYNTAX": Provoke(wrong_syntax),
    "UNREADABLE": Provoke(series, meanwhile=touched),
    "ARCHIVE_NOT_UNPACKED": Provoke(packed_twice),
    "ARCHIVE_LIMIT": Provoke(bomb, {"max_archive_bytes": 2**20}),
    "NO_SERIES_UID": Provoke(lambda folder: series(folder, SOPInstanceUID=None)),
    "UID_CONFLICT": Provoke(conflict),
    "MISSING_SLICE": Provoke(gap),
    "IRREGULAR_SPACING": Provoke(uneven),
    "DUPLICATE_POSITION": Provoke(twice),
    "NO_GEOMETRY": Provoke(lambda folder: series(folder, ImagePositionPatient=None)),
    "NON_FINITE": Provoke(lambda folder: series(folder, RescaleSlope=0)),
    "MULTIFRAME": Provoke(pages),
    "UNSUPPORTED_MODALITY": Provoke(
        lambda folder: series(folder, Modality="SM", SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6")
    ),
    "UNSUPPORTED_PIXELS": Provoke(lambda folder: series(folder, BitsAllocated=24, BitsStored=24, HighBit=23)),
    "BURNED_IN": Provoke(lambda folder: series(folder, BurnedInAnnotation="YES")),
    "SECONDARY_CAPTURE": Provoke(lambda folder: series(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")),
}


def refused(provoke: Provoke, folder: Path) -> set[str]:
    """The codes of a scan and of reading whatever it planned; nothing but InputError may come out."""
    settings = IngestSettings(**provoke.settings)
    provoke.make(folder)
    result = scan(folder, settings=settings)
    codes = {finding.code for finding in result.findings}
    if provoke.meanwhile is not None:
        provoke.meanwhile(folder)
    for plan in result.plans:
        try:
            read_series(plan, settings=settings)
        except InputError as error:
            codes.add(error.code)
    return codes


@pytest.mark.parametrize("code", list(REFUSALS))
def test_a_source_is_refused_for_this_reason_alone(code, tmp_path):
    assert refused(REFUSALS[code], tmp_path) == {code}


@pytest.mark.parametrize("code", list(REFUSALS))
def test_the_whole_ingest_lists_it_and_goes_on(code, tmp_path):
    source, root = tmp_path / "in", tmp_path / "ws"
    source.mkdir()
    provoke = REFUSALS[code]
    if provoke.meanwhile is not None:
        pytest.skip("what happens between scan and read is in the test above")
    provoke.make(source)
    save_all([tiny(index, SeriesInstanceUID=f"{SERIES}.77", PatientID="well") for index in range(4)], source / "good")
    for index, path in enumerate(sorted((source / "good").iterdir())):
        save(
            tiny(index, SeriesInstanceUID=f"{SERIES}.77", PatientID="well", SOPInstanceUID=f"{SERIES}.77.{index}"),
            path,
        )
    overrides = [f"ingest.{key}={value}" for key, value in provoke.settings.items()]
    home = Workspace.open(root, create=True)
    alias = home.register_source(source)
    outcome = ingest.fn(workspace=str(root), sources=[alias], settings=["cluster=inline", *overrides])
    assert set(outcome.reasons) == {code}
    assert outcome.counts["ingested"] == 1
    rows = home.catalog.quarantine(alias)
    assert {row.code for row in rows} == {code} and len(rows) == outcome.counts["quarantined"]
    again = ingest.fn(workspace=str(root), sources=[alias], settings=["cluster=inline", *overrides])
    assert (set(again.reasons), again.counts["ingested"], again.counts["unchanged"]) == ({code}, 0, 1)


def test_an_unforeseen_error_is_one_row_not_the_end(tmp_path, monkeypatch):
    import archive.batches

    real = archive.batches.ingest_series
    save_all([tiny(index) for index in range(4)], tmp_path / "in" / "a")
    others = [tiny(index, SeriesInstanceUID="1.2.9", SOPInstanceUID=f"1.2.9.{index}") for index in range(4)]
    save_all(others, tmp_path / "in" / "b")

    def fragile(plan, *rest):
        if plan.files[0].startswith("a/"):
            raise RuntimeError("patient-7 lives in " + plan.root)
        return real(plan, *rest)

    monkeypatch.setattr(archive.batches, "ingest_series", fragile)
    home = Workspace.open(tmp_path / "ws", create=True)
    alias = home.register_source(tmp_path / "in")
    outcome = ingest.fn(workspace=str(home.root), sources=[alias], settings=["cluster=inline"])
    assert (outcome.reasons, outcome.counts["ingested"]) == ({"UNEXPECTED": 1}, 1)


@pytest.mark.timeout(120)
def test_a_worker_that_dies_costs_its_series_alone(tmp_path, monkeypatch):
    """A real Dask worker ends itself on one series."""
    save_all([tiny(index) for index in range(4)], tmp_path / "in" / "a")
    others = [tiny(index, SeriesInstanceUID="1.2.9", SOPInstanceUID=f"1.2.9.{index}") for index in range(4)]
    save_all(others, tmp_path / "in" / "b")
    import dask
    import deadly
    import distributed  # noqa: F401  (its defaults first: a key set before them takes them along when it goes)

    import tasks.ingest

    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))  # where the worker finds `deadly`
    monkeypatch.setattr(tasks.ingest, "ingest_batch", deadly.ingest_batch)
    home = Workspace.open(tmp_path / "ws", create=True)
    alias = home.register_source(tmp_path / "in")
    settings = ["cluster.address=local", "cluster.workers=1"]
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):  # once is enough to see it
        outcome = ingest.fn(workspace=str(home.root), sources=[alias], settings=settings)
    assert (outcome.reasons, outcome.counts["ingested"]) == ({"WORKER_KILLED": 1}, 1)


def test_no_code_of_ingestion_is_without_its_case():
    cases = set(REFUSALS) | {"UNEXPECTED", "WORKER_KILLED"}
    assert cases | NOT_INGESTION == set(REASONS)


def test_every_reason_says_what_to_do():
    dull = [code for code, reason in REASONS.items() if len(reason.text) < TELLING or len(reason.hint) < TELLING]
    assert dull == []
    assert all(code == code.upper() and code.replace("_", "").isalpha() for code in REASONS)


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**15), 2**16 - 1),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.sampled_from(["", "abc", "nan", "1e400", "-0", "1\\2\\3", "../../x"]),
)
KEYWORDS = ("RescaleSlope", "RescaleIntercept", "SliceThickness", "EchoTime", "TriggerTime", "InstanceNumber")


@examples(max_examples=40, deadline=None)
@given(st.sampled_from(KEYWORDS), VALUES, st.integers(0, 3))
def test_no_number_in_a_header_is_an_error_of_ours(tmp_path_factory, keyword, value, which):
    folder = tmp_path_factory.mktemp("numbers")
    for index in range(4):
        dataset = tiny(index)
        if index == which:
            if keyword in dataset:
                delattr(dataset, keyword)
            if value is not None:
                vr = "IS" if keyword == "InstanceNumber" else "DS"
                dataset.add_new(keyword, vr, None)
                dataset[keyword]._value = str(value)
        save(dataset, folder / f"{index:03d}.dcm")
    result = scan(folder)
    assert result.plans or result.findings
    for plan in result.plans:
        volume = read_series(plan)
        assert np.isfinite(volume.slope).all() and all(volume.slope)

"""An archive full of words that must not get through, and a search that finds them wherever they hide."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import ClassVar

import nibabel
import numpy as np
import pydicom
from numcodecs import zstd
from phantoms import ct_volume, mr_volume, write_ct_series
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x0088, 0x2030, 0x4008)
# What the words would make into another image, or into none.
LEFT_ALONE = (
    *("StackID", "RescaleType", "Manufacturer", "ModalityLUTType", "PatientID", "IssuerOfPatientID", "PatientName"),
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ProtocolName"),
)
START = date(1903, 5, 1)


@dataclass
class Words:
    """Planted words, and where each was put. patients: PatientID and its issuer by the name of their folder."""

    planted: dict[str, str] = field(default_factory=dict)
    patients: dict[str, tuple[str, str]] = field(default_factory=dict)
    days: int = 0

    def text(self, where: str) -> str:
        """Eleven characters that nothing else holds."""
        return self._note(f"Qzv{len(self.planted):04d}kWx", where)

    def uid(self, where: str) -> str:
        """A legal UID."""
        return self._note(f"1.2.826.0.1.3680043.99{len(self.planted):04d}.7", where)

    def day(self, where: str) -> str:
        """A date as DICOM writes it, from 1903 on."""
        self.days += 1
        return self._note(f"{START + timedelta(days=31 * self.days):%Y%m%d}", where)

    def _note(self, word: str, where: str) -> str:
        self.planted[word] = where
        return word

    def of(self, name: str) -> Finder:
        """Finds what was planted in one folder's series."""
        mine = [word for word, where in self.planted.items() if where.startswith(name + " ")]
        assert len(mine) > 100
        return Finder(frozenset(word.lower().encode() for word in mine))

    @property
    def pattern(self) -> Finder:
        """Finds every one."""
        return Finder(frozenset(word.lower().encode() for word in self.planted))


@dataclass(frozen=True)
class Finder:
    """Looks for words by their form first, as thousands of them in one regular expression would take minutes."""

    words: frozenset[bytes]

    FORM: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"qzv\d{4}kwx|1\.2\.826\.0\.1\.3680043\.99\d{4,5}\.7"
        # Eight digits inside a longer number or a hash are chance: a server's database is full of both.
        rb"|(?<![0-9a-f]{2})[12]\d{3}[-./]?\d\d[-./]?\d\d(?![0-9a-f]{2})"
    )

    def find(self, data: bytes) -> set[bytes]:
        """The words in lower-case bytes; days also with dashes and dots."""
        found = {match.group() for match in self.FORM.finditer(data)}
        plain = {re.sub(rb"[-./]", b"", hit) if len(hit) == 10 else hit for hit in found}
        return plain & self.words


def plant_archive(root: Path) -> Words:
    """Write DICOM, NIfTI, pictures and packed files below `root`, good ones and ones to be refused."""
    words = Words()
    _series(words, root / words.text("folder") / "ct", ct_volume(seed=1))
    _series(words, root / "mr", mr_volume(seed=2), gap=True)
    _series(words, root / "cut", ct_volume(seed=3, shape=(5, 40, 56)), cut=-300)
    _series(words, root / "head", ct_volume(seed=4, shape=(1, 40, 56)), cut=-6000)
    _series(words, root / "early", ct_volume(seed=7, shape=(1, 40, 56)), cut=900)
    traversal = f"../../../../../../tmp/{words.text('path in an identifier')}"
    _series(words, root / "paths", ct_volume(seed=5, shape=(4, 48, 40)), traversal=traversal)
    _jpeg(words, root / "jpeg")
    _objects(words, root / "others")
    _nifti(words, root / "nifti")
    _pictures(words, root / "pictures")
    _packed(words, root / "packed")
    (root / f"{words.text('name of a refused file')}.dcm").write_text(words.text("text in a .dcm"))
    (root / words.text("name of an unknown file")).write_text(words.text("text in an unknown file"))
    (root / "notes.txt").write_text(words.text("a note"))
    return words


def plant(words: Words, dataset: Dataset, name: str) -> None:
    """Every attribute that takes text, dates or UIDs and that an image can do without, nested and private ones too."""
    for tag, (vr, multiplicity, *_, keyword) in sorted(DicomDictionary.items()):
        if tag >> 16 not in GROUPS or keyword in LEFT_ALONE or not keyword or keyword in dataset:
            continue
        if vr in TEXTS and multiplicity in ("1", "1-n", "1-n or 1"):
            dataset.add_new(tag, vr, words.text(f"{name} {keyword}"))
        elif vr == "DA":
            dataset.add_new(tag, vr, words.day(f"{name} {keyword}"))
        elif vr == "UI" and tag >> 16 in (0x0008, 0x0020) and "Class" not in keyword:
            dataset.add_new(tag, vr, words.uid(f"{name} {keyword}"))
    dataset.PatientAge = "093Y"
    dataset.PatientName = f"{words.text(name + ' PatientName')}^{words.text(name + ' given name')}"
    dataset.ImageType = [*dataset.ImageType, words.text(f"{name} ImageType").upper()]
    dataset.BodyPartExamined = words.text(f"{name} BodyPartExamined").upper()
    dataset.Manufacturer = words.text(f"{name} Manufacturer")
    dataset.ProtocolName = words.text(f"{name} ProtocolName")
    inner = Dataset()
    for depth in range(5):
        outer = Dataset()
        outer.CodeMeaning = words.text(f"{name} nested {depth}")
        outer.PatientName = words.text(f"{name} nested name {depth}")
        outer.ReferencedSOPInstanceUID = words.uid(f"{name} nested uid {depth}")
        outer.ConceptCodeSequence = Sequence([inner]) if len(inner) else Sequence()
        inner = outer
    dataset.RequestAttributesSequence = Sequence([inner])
    for group in (0x0009, 0x0019, 0x0029, 0x0043, 0x2001, 0x2005):
        block = dataset.private_block(group, words.text(f"{name} creator {group:04x}"), create=True)
        block.add_new(0x10, "LO", words.text(f"{name} private {group:04x}"))
        block.add_new(0x11, "OB", b"\0\1" + words.text(f"{name} private bytes {group:04x}").encode() * 2)
        block.add_new(0x12, "UN", words.text(f"{name} private UN {group:04x}").encode("utf-16-le"))
        item = Dataset()
        item.add_new(0x00080080, "LO", words.text(f"{name} in private sequence {group:04x}"))
        block.add_new(0x13, "SQ", Sequence([item]))
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000011, "US", 16)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60000022, "LO", words.text(f"{name} overlay description"))
    dataset.add_new(0x60001500, "LO", words.text(f"{name} overlay label"))
    dataset.add_new(0x60003000, "OB", words.text(f"{name} overlay bits").encode().ljust(32, b"\0"))
    dataset.add_new(0x60004000, "LT", words.text(f"{name} overlay comments"))
    dataset.add_new(0x50003000, "OB", words.text(f"{name} curve").encode().ljust(12, b"\0"))
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.PhotometricInterpretation = 4, 3, 1, "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    icon.PixelData = words.text(f"{name} icon").encode().ljust(12, b"\0")
    dataset.IconImageSequence = Sequence([icon])
    dataset.add_new(0xFFFCFFFC, "OB", words.text(f"{name} trailing padding").encode().ljust(12, b"\0"))


def _series(
    words: Words, folder: Path, volume, *, gap: bool = False, cut: int | None = None, traversal: str = ""
) -> None:
    """A series of a patient of its own; words.patients knows who that is by the folder's name."""
    name = folder.name
    pattern = Dataset()
    pattern.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    plant(words, pattern, name)
    study, series = words.uid(f"{name} StudyInstanceUID"), traversal or words.uid(f"{name} SeriesInstanceUID")
    patient = traversal or words.text(f"{name} PatientID")
    words.patients[name] = (patient, pattern.InstitutionName)
    frame = words.uid(f"{name} FrameOfReferenceUID")
    for index, path in enumerate(write_ct_series(folder, volume, name=name)):
        dataset = pydicom.dcmread(path)
        dataset.update({tag: pattern[tag] for tag in pattern.keys()})  # noqa: SIM118
        dataset.PatientID, dataset.IssuerOfPatientID = patient, pattern.InstitutionName
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.SOPInstanceUID = words.uid(f"{name} SOPInstanceUID")
        meta = dataset.file_meta
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.ImplementationVersionName = words.text(f"{name} ImplementationVersionName")
        meta.SourceApplicationEntityTitle = words.text(f"{name} SourceApplicationEntityTitle")
        meta.SendingApplicationEntityTitle = words.text(f"{name} SendingApplicationEntityTitle")
        meta.PrivateInformationCreatorUID = words.uid(f"{name} PrivateInformationCreatorUID")
        meta.PrivateInformation = words.text(f"{name} PrivateInformation").encode() + b"\0"
        dataset.preamble = words.text(f"{name} preamble").encode().ljust(128, b"\0")
        path.unlink()
        if gap and index == 2:
            continue
        target = folder / f"{words.text(name + ' file name')}.dcm"
        dataset.save_as(target, enforce_file_format=True)
        data = target.read_bytes() + words.text(f"{name} trailing bytes").encode()
        target.write_bytes(data[:cut] if cut is not None and index == 0 else data)


def _jpeg(words: Words, folder: Path) -> None:
    """JPEG baseline frames with a comment in the codestream."""
    series, patient = words.uid("jpeg SeriesInstanceUID"), words.text("jpeg PatientID")
    for path in write_ct_series(folder, ct_volume(seed=6, shape=(3, 32, 32)), name="jpeg"):
        dataset = pydicom.dcmread(path)
        grey = np.clip(dataset.pixel_array // 8 + 100, 0, 255).astype(np.uint8)
        coded = io.BytesIO()
        Image.fromarray(grey).save(coded, "JPEG", comment=words.text("JPEG comment in DICOM"))
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.SeriesInstanceUID, dataset.PatientID = series, patient
        dataset.PixelData = encapsulate([coded.getvalue()])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.save_as(path, enforce_file_format=True)


def _objects(words: Words, folder: Path) -> None:
    """Objects that are no images, and an image with words where numbers belong."""
    folder.mkdir(parents=True)
    for number, (tail, modality) in enumerate((("88.11", "SR"), ("481.3", "RTSTRUCT"), ("11.1", "PR"), ("2", "CT"))):
        dataset = Dataset()
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{tail}"
        plant(words, dataset, modality)
        dataset.Modality, dataset.PatientID = modality, words.text(f"{modality} PatientID")
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = (
            words.uid(f"{modality} {kind}") for kind in ("SOP", "series")
        )
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        if modality == "CT":
            dataset.Rows = dataset.Columns = 4
            for keyword in ("RescaleSlope", "PixelSpacing", "SliceThickness"):
                dataset.add_new(keyword_dict[keyword], "LO", words.text(f"word for {keyword}"))
            dataset.BitsAllocated, dataset.PixelData = 16, bytes(32)
        dataset.save_as(folder / f"{words.text('object name')}{number}", enforce_file_format=True)


def _nifti(words: Words, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(2):
        image = nibabel.Nifti1Image(np.arange(6000, dtype=np.int16).reshape(20, 15, 20) + number, np.eye(4))
        for key in ("descrip", "db_name", "aux_file", "intent_name"):
            image.header[key] = words.text(f"NIfTI {key}").encode()
        extension = nibabel.nifti1.Nifti1Extension("comment", words.text("NIfTI extension").encode())
        image.header.extensions.append(extension)
        raw = image.to_bytes()
        name = folder / words.text("NIfTI name")
        if number:
            name.with_suffix(".nii").write_bytes(raw)
            continue
        with (
            name.with_suffix(".nii.gz").open("wb") as file,
            gzip.GzipFile(words.text("name in gzip"), "wb", fileobj=file) as packed,
        ):
            packed.write(raw)
    (folder / f"{words.text('NIfTI sidecar')}.json").write_text(words.text("text in a sidecar"))


def _pictures(words: Words, root: Path) -> None:
    grey = (np.add.outer(np.arange(48), np.arange(40)) % 251).astype(np.uint8)
    for kind in range(2):
        folder = root / words.text("class folder")
        folder.mkdir(parents=True)
        info = PngImagePlugin.PngInfo()
        info.add_text(words.text("PNG keyword"), words.text("PNG tEXt"))
        info.add_text("zTXt", words.text("PNG zTXt"), zip=True)
        info.add_itxt("iTXt", words.text("PNG iTXt"))
        Image.fromarray(grey + kind).save(folder / f"{words.text('PNG name')}.png", pnginfo=info)
        exif = Image.Exif()
        exif[0x010E], exif[0x013B], exif[0x9286] = (
            words.text(f"EXIF {part}") for part in ("description", "artist", "note")
        )
        Image.fromarray(grey + kind + 2).save(
            folder / f"{words.text('JPEG name')}.jpg", comment=words.text("JPEG comment"), exif=exif
        )
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        for tag in (269, 270, 271, 305, 315, 316, 33432):
            tags[tag] = words.text(f"TIFF tag {tag}")
        Image.fromarray(grey + kind + 4).save(folder / f"{words.text('TIFF name')}.tif", tiffinfo=tags)


def _packed(words: Words, folder: Path) -> None:
    """A series in a zip and one in a tar, under names, comments and owners."""
    inner = folder / "inner"
    _series(words, inner / "zipped", ct_volume(seed=8, shape=(4, 40, 32)))
    _series(words, inner / "tarred", ct_volume(seed=9, shape=(4, 40, 32)))
    with zipfile.ZipFile(folder / f"{words.text('zip name')}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.comment = words.text("zip comment").encode()
        for path in sorted((inner / "zipped").iterdir()):
            member = zipfile.ZipInfo(f"{words.text('zip folder')}/{path.name}")
            member.comment = words.text("zip member comment").encode()
            member.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(member, path.read_bytes())
            path.unlink()
    with tarfile.open(folder / f"{words.text('tar name')}.tar.gz", "w:gz") as packed:
        for path in sorted((inner / "tarred").iterdir()):
            member = packed.gettarinfo(path, f"{words.text('tar folder')}/{path.name}")
            member.uname, member.gname = words.text("tar owner"), words.text("tar group")
            member.pax_headers = {"comment": words.text("pax comment")}
            packed.addfile(member, io.BytesIO(path.read_bytes()))
            path.unlink()
    for leftover in (inner / "zipped", inner / "tarred", inner):
        leftover.rmdir()
    (folder / "broken.zip").write_bytes(b"PK\x03\x04" + words.text("broken zip").encode() * 9)


def leaks(pattern: Finder | re.Pattern[bytes], data: bytes, depth: int = 3) -> set[bytes]:
    """What of the pattern is in some bytes: as they are, in UTF-16, in base64 or hex, compressed in any common way."""
    found = set()
    lower = data.lower()
    for view in (lower, lower.replace(b"\0", b"")):
        found |= pattern.find(view) if isinstance(pattern, Finder) else set(pattern.findall(view))
    if depth:
        for inner in _unpacked(data):
            found |= leaks(pattern, inner, depth - 1)
    return found


def _unpacked(data: bytes):
    """Everything in the bytes that opens as something else."""
    if data.startswith(b"PK"):  # the streams in a zip have no head of their own
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as packed:
            yield from (packed.read(name) for name in packed.namelist())
    for match in re.finditer(rb"[A-Za-z0-9+/_-]{16,}", data):
        text = match.group().replace(b"-", b"+").replace(b"_", b"/")
        for shift in range(4):
            part = text[shift:]
            with suppress(ValueError):
                yield base64.b64decode(part[: len(part) // 4 * 4])
        with suppress(ValueError):
            yield bytes.fromhex(match.group().decode()[: len(match.group()) // 2 * 2])
    for magic, opened in (
        (b"\x1f\x8b\x08", 31),
        (b"\x78\x01", 15),
        (b"\x78\x9c", 15),
        (b"\x78\xda", 15),
        (b"\x78\x5e", 15),
    ):
        for at in _places(data, magic):
            with suppress(zlib.error):
                stream = zlib.decompressobj(opened)
                out = stream.decompress(memoryview(data)[at:], 2**26)
                if len(out) > 8:
                    yield out
    for magic, module, error in ((b"BZh", bz2, OSError), (b"\xfd7zXZ\0", lzma, lzma.LZMAError)):
        for at in _places(data, magic):
            with suppress(error, ValueError, EOFError):
                yield (bz2.BZ2Decompressor() if module is bz2 else lzma.LZMADecompressor()).decompress(data[at:])
    for at in _places(data, b"\x28\xb5\x2f\xfd"):
        with suppress(RuntimeError, ValueError, IndexError, struct.error):
            yield bytes(zstd.decompress(_frame(data, at)))


def _places(data: bytes, magic: bytes):
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _frame(data: bytes, at: int) -> bytes:
    """One zstd frame (RFC 8878, section 3.1.1): decoders refuse what follows it."""
    head = data[at + 4]
    single, content, checksum = head >> 5 & 1, head >> 6, head >> 2 & 1
    sizes = {0: single, 1: 2, 2: 4, 3: 8}
    position = at + 5 + (1 - single) + (0, 1, 2, 4)[head & 3] + sizes[content]
    last = 0
    while not last:
        block = int.from_bytes(data[position : position + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == 1 else size)
    return data[at : position + 4 * checksum]


def leaks_below(
    pattern: Finder | re.Pattern[bytes], root: Path, leave_out: tuple[str, ...] = ()
) -> dict[str, set[bytes]]:
    """Leaks per file below a folder, names of files and folders included, and rows of SQLite databases as text."""
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if path.name.startswith(leave_out) and leave_out:
            continue
        hits = leaks(pattern, relative.encode(), 0)
        if path.is_file():
            data = path.read_bytes()
            hits |= leaks(pattern, data)
            if data.startswith(b"SQLite format 3"):  # a value may be split over pages
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                    hits |= leaks(pattern, "\n".join(database.iterdump()).encode())
        if hits:
            found[relative] = hits
    return found


__all__ = ["Words", "leaks", "leaks_below", "plant_archive"]

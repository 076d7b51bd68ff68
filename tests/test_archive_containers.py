"""Zip and tar files: read like folders, under limits, without ever writing a name of theirs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tiny import SERIES, save, save_all, tiny

from archive import containers
from archive.containers import Unpacked
from archive.plans import FileEntry
from archive.scan import look, read_series, scan
from archive.settings import IngestSettings
from archive.walk import Seen

KINDS = {"all.zip": "", "all.tar": "w", "all.tgz": "w:gz", "all.tar.bz2": "w:bz2", "all.tar.xz": "w:xz", "none": "w:gz"}


def pack(folder, target, mode):
    """Everything below a folder, as an archive of the kind that the mode says; zip where it is empty."""
    if not mode:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, mode) as archive:
            archive.add(folder, ".")
    return target


@pytest.mark.parametrize(("name", "mode"), KINDS.items())
def test_a_series_in_an_archive_equals_the_folder(tmp_path, name, mode):
    plain = save_all([tiny(index) for index in range(3)], tmp_path / "plain")
    (plain / "notes.txt").write_text("hello")
    (tmp_path / "packed").mkdir()
    pack(plain, tmp_path / "packed" / name, mode)
    (one,) = scan(plain).plans
    result = scan(tmp_path / "packed")
    (plan,) = result.plans
    assert (plan.series, plan.patient, plan.voxels) == (one.series, one.patient, one.voxels)
    assert plan.files == tuple(f"{name}!/{number:03d}.dcm" for number in range(3))
    assert np.array_equal(read_series(plan).voxels, read_series(one).voxels)
    assert (result.skipped, result.files, result.findings) == ({"SIDECAR": 1}, 4, ())


def test_an_unchanged_archive_is_not_opened_again(tmp_path, monkeypatch):
    pack(save_all([tiny(index) for index in range(3)], tmp_path / "plain"), tmp_path / "all.zip", "")
    first = scan(tmp_path / "all.zip")
    known = {entry.path: FileEntry.from_dict(entry.as_dict()) for entry in first.entries}
    monkeypatch.setattr(containers, "members", lambda *_: pytest.fail("opened"))
    again = scan(tmp_path / "all.zip", known=known)
    assert (again.opened, again.plans, again.files) == (0, first.plans, first.files)


def test_what_is_no_plain_file_is_counted_and_names_reach_no_path(tmp_path):
    raw = save(tiny(0), tmp_path / "one.dcm").read_bytes()
    target = tmp_path / "in" / "evil.tar"
    target.parent.mkdir()
    with tarfile.open(target, "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("../../../out.dcm", "/abs/out.dcm", ".hidden/x.dcm"):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    before = set(tmp_path.rglob("*"))
    result = scan(target.parent)
    assert result.skipped == {"DEVICE": 1, "HIDDEN": 1, "LINK": 2}
    (plan,) = result.plans
    assert {*plan.files, *plan.folded} == {"evil.tar!/out.dcm", "evil.tar!/abs/out.dcm"}
    assert read_series(plan).voxels.shape == (1, 6, 5)
    assert set(tmp_path.rglob("*")) == before


def _bomb(folder):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.raw", bytes(5_000_000))


def _nested(folder):
    inner = pack(save_all([tiny(0)], folder.parent / "plain"), folder.parent / "inner.zip", "")
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.write(inner, "inner.zip")


def _cut(folder):
    path = pack(save_all([tiny(index) for index in range(9)], folder.parent / "plain"), folder / "x.tgz", "w:gz")
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(folder):
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(save(tiny(0), folder.parent / "one.dcm"), "one.dcm")
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)


def _locked(folder):
    _flipped(folder)
    path = folder / "x.zip"
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # general purpose bit 0: encrypted, in the local header and in the directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)


REFUSED = [
    (_bomb, "ARCHIVE_LIMIT"),
    (_nested, "ARCHIVE_NOT_UNPACKED"),
    (_cut, "TRUNCATED"),
    (_flipped, "TRUNCATED"),
    (_locked, "ARCHIVE_NOT_UNPACKED"),
]


@pytest.mark.parametrize(("make", "code"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_a_bad_archive_is_refused_whole(tmp_path, make, code):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    result = scan(tmp_path / "in", settings=IngestSettings(max_archive_bytes=4_000_000))
    assert [finding.code for finding in result.findings] == [code]
    assert result.plans == ()


def _with_a_bad_member(folder: Path, locked: bool) -> Path:
    """A zip of four slices and a fifth file that is locked, or has a flipped bit; the others are whole."""
    path = folder / "x.zip"
    save_all([tiny(index) for index in range(4)], folder.parent / "plain")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("000.dcm", "001.dcm"):
            archive.write(folder.parent / "plain" / name, name)
        archive.writestr("bad.dcm", save(tiny(9, SeriesInstanceUID="1.2.9"), folder.parent / "bad.dcm").read_bytes())
        for name in ("002.dcm", "003.dcm"):
            archive.write(folder.parent / "plain" / name, name)
        (info,) = (info for info in archive.infolist() if info.filename == "bad.dcm")
    raw = bytearray(path.read_bytes())
    if locked:  # general purpose bit 0, in the local header and in the directory
        raw[info.header_offset + 6] |= 1
        raw[raw.rindex(b"bad.dcm") - 46 + 8] |= 1
    else:
        raw[info.header_offset + 300] ^= 1
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("locked", "code"), [(True, "ARCHIVE_NOT_UNPACKED"), (False, "TRUNCATED")])
def test_a_bad_member_of_a_zip_is_refused_alone(tmp_path, locked, code):
    (tmp_path / "in").mkdir()
    _with_a_bad_member(tmp_path / "in", locked)
    result = scan(tmp_path / "in")
    assert [(finding.code, finding.paths) for finding in result.findings] == [(code, ("x.zip!/bad.dcm",))]
    (plan,) = result.plans
    assert read_series(plan).voxels.shape == (4, 6, 5)
    assert result.files == 5


def test_containers_are_looked_into_where_one_says(tmp_path, monkeypatch):
    """Not in the system's temporary folder, which may be small, and is not the workspace's."""
    (tmp_path / "in").mkdir()
    path = pack(save_all([tiny(index) for index in range(3)], tmp_path / "plain"), tmp_path / "in" / "x.zip", "")
    monkeypatch.setattr(containers.tempfile, "mkdtemp", lambda **_: pytest.fail("used"))
    status = path.stat()
    seen = Seen("x.zip", status.st_size, status.st_mtime_ns, status.st_ino)
    entries = look(path.parent, seen, scratch=tmp_path / "scratch")
    assert [entry.kind for entry in entries] == ["container", "dicom", "dicom", "dicom"]
    assert (tmp_path / "scratch").is_dir()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_bomb_is_known_by_its_ratio(monkeypatch, tmp_path):
    monkeypatch.setattr(containers, "RATIO_FROM", 1_000_000)
    _bomb(tmp_path)
    assert [finding.code for finding in scan(tmp_path).findings] == ["ARCHIVE_LIMIT"]


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path):
    save_all([tiny(0)], tmp_path / "odd.zip!" / "inner")
    (plan,) = scan(tmp_path).plans
    assert plan.files == ("odd.zip!/inner/000.dcm",)
    assert read_series(plan).voxels.shape == (1, 6, 5)


def test_what_was_unpacked_is_private_and_gone_afterwards(tmp_path):
    pack(save_all([tiny(0, SeriesInstanceUID=SERIES)], tmp_path / "plain"), tmp_path / "a.zip", "")
    with Unpacked(tmp_path, tmp_path / "scratch") as unpacked:
        path = unpacked.path("a.zip!/000.dcm")
        assert path.is_relative_to(tmp_path / "scratch") and "000" not in path.suffix
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert unpacked.path("plain/000.dcm") == tmp_path / "plain" / "000.dcm"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_dicom_file_packed_alone_is_read_and_other_packed_files_are_not(tmp_path):
    plain = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    for name, pack in (("a.gz", gzip.compress), ("b.bz2", bz2.compress), ("c", lzma.compress)):
        (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"nothing of interest" * 40))
    found = scan(tmp_path)
    assert [(finding.code, finding.paths) for finding in found.findings] == [("ARCHIVE_NOT_UNPACKED", ("notes.gz",))]
    (plan,) = found.plans  # three copies of one image
    assert len(plan.files) == 1 and np.array_equal(read_series(plan).voxels[0], pydicom.dcmread(plain).pixel_array)


def test_a_name_given_twice_never_takes_the_name_of_another_member(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("x", "x", "x~2", "x"):
            archive.writestr(name, b"data")
    names = [member.name for member in containers.members(path, 10**6, Counter())]
    assert len(set(names)) == 4 and names[:2] == ["x", "x~2"]

"""The linkage: originals go in, are found, are forgotten; nobody else may read the file."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from sqlalchemy import text

from archive.catalog_engine import writing
from archive.errors import StoreError
from archive.linkage import GroupOutcome, Linkage, PlannedSeries
from archive.plans import Filed, FileEntry, Finding

UID = "1.2.826.0.1.3680043"


@dataclass(frozen=True)
class Plan:
    """The part of a SeriesPlan that the linkage keeps."""

    series: str
    patient: str = "p" * 32
    identity: tuple[str, ...] = (UID, "512", "512")
    patient_identity: tuple[str, ...] = ("Doe^Jane", "")
    files: tuple[str, ...] = field(default=("a.dcm", "b.dcm"))


@pytest.fixture
def linkage(tmp_path):
    found = Linkage(f"sqlite:///{tmp_path / 'linkage.sqlite'}")
    found.register("src", "/data/src")
    yield found
    found.close()


def entry(path: str, size: int = 1, patient: str = "") -> FileEntry:
    header = {"series": f"{UID}.{size}", "patient": patient, "values": [1.5, None, "é"]}
    return FileEntry(path, size, 10**18 + size, 7, "dicom", header=header)


def filed(*paths: str, size: int = 1) -> list[Filed]:
    return [entry(path, size).filed() for path in paths]


def test_the_file_is_private(linkage, tmp_path):
    linkage.save_entries("src", filed("a.dcm"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_sources_have_a_path(linkage):
    linkage.register("src", "/moved/src")
    assert linkage.path_of("src") == "/moved/src"
    with pytest.raises(StoreError) as caught:
        linkage.path_of("other")
    assert caught.value.code == "NOT_FOUND"


def test_an_entry_is_filed_and_read_back():
    one = entry("a.dcm", 5, "Doe^J")
    assert one.filed().entry() == one
    assert (one.filed().grouped, one.filed().series, one.filed().patient) == (f"d:{UID}.5", f"{UID}.5", "Doe^J")
    assert FileEntry("x.txt", 1, 2, 3, "skipped", "SIDECAR").filed().blob is None


def test_entries_are_kept_changed_and_dropped(linkage):
    many = [entry(f"{number}.dcm", number) for number in range(1200)]
    linkage.save_entries("src", [one.filed() for one in many])
    linkage.save_entries("other", filed("0.dcm"))
    assert linkage.entries("src") == {one.path: one.as_dict() for one in many}
    linkage.save_entries("src", [entry("1.dcm", 99).filed()], gone=[one.path for one in many[3:]])
    assert linkage.stamps("src") == {
        "0.dcm": many[0].filed().stamp(),
        "1.dcm": entry("1.dcm", 99).filed().stamp(),
        "2.dcm": many[2].filed().stamp(),
    }
    assert linkage.grouped("src", [f"d:{UID}.99", f"d:{UID}.1"]) == {f"d:{UID}.99": [entry("1.dcm", 99).filed()]}
    assert list(linkage.stamps("other")) == ["0.dcm"]


OUTCOMES = [
    GroupOutcome(
        f"d:{UID}.{number}",
        (
            PlannedSeries("a" * 32, "mark"),
            PlannedSeries("b" * 32, "mark", Finding("DECODE_FAILED", "series", "b" * 32, 3, "CT", {"gap_mm": 2.5})),
        ),
        (Finding("MISSING_SLICE", "series", "c" * 32, 4),),
    )
    for number in range(3)
]


def test_outcomes_last_while_their_files_and_the_settings_do(linkage):
    for size in range(3):
        linkage.save_entries("src", filed(f"{size}.dcm", size=size))
    linkage.save_outcomes("src", "one", OUTCOMES)
    assert linkage.outcomes("src", "one") == {outcome.grouped: outcome for outcome in OUTCOMES}
    assert linkage.outcomes("src", "two") == linkage.outcomes("other", "one") == {}
    linkage.save_entries("src", filed("new.dcm", size=1), gone=["0.dcm"])
    assert set(linkage.outcomes("src", "one")) == {f"d:{UID}.2"}


def test_an_older_linkage_is_brought_up_to_date(tmp_path):
    url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    old = Linkage(url)
    old.register("src", "/data/src")
    with writing(old.engine) as connection:
        connection.execute(text("DROP TABLE linkage_entries"))
        connection.execute(text("DROP TABLE linkage_outcomes"))
        connection.execute(text("CREATE TABLE linkage_files (source TEXT, path TEXT, entry TEXT)"))
        connection.execute(text("UPDATE linkage_meta SET value = 'linkage-1'"))
    old.close()
    new = Linkage(url)
    new.save_entries("src", filed("a.dcm"))
    assert (new.path_of("src"), list(new.stamps("src"))) == ("/data/src", ["a.dcm"])
    new.close()


def test_series_are_found_by_uid_and_revealed(linkage):
    linkage.save_series([Plan("a" * 32), Plan("b" * 32, identity=(UID, "256", "256"))], "src")
    linkage.save_series([Plan("a" * 32, files=("c.dcm",))], "copy")
    linkage.save_series([Plan("a" * 32)], "src")
    assert linkage.find_uid(UID) == ["a" * 32, "b" * 32]
    assert linkage.find_uid("1.2") == []
    assert linkage.reveal("a" * 32) == {
        "series": "a" * 32,
        "patient": "p" * 32,
        "identity": [UID, "512", "512"],
        "patient_identity": ["Doe^Jane", ""],
        "sources": {"copy": None, "src": "/data/src"},
        "files": {"copy": ["c.dcm"], "src": ["a.dcm", "b.dcm"]},
    }
    with pytest.raises(StoreError):
        linkage.reveal("c" * 32)


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [({"series_id": "a" * 32}, ["a" * 32]), ({"patient": "p" * 32}, ["a" * 32, "b" * 32]), ({"patient": "x"}, [])],
)
def test_the_forgotten_leave_no_trace(linkage, tmp_path, wanted, gone):
    plans = [
        Plan("a" * 32, files=("a.dcm",), patient_identity=("Roe^A",)),
        Plan("b" * 32, files=("b.dcm",), patient_identity=("Roe^B",)),
        Plan("c" * 32, patient="q" * 32, files=("c.dcm",)),
    ]
    linkage.save_series(plans, "src")
    linkage.save_entries("src", [entry(f"{name}.dcm", index).filed() for index, name in enumerate("abc")])
    linkage.save_outcomes("src", "one", OUTCOMES)
    assert linkage.forget(**wanted) == gone
    left = {plan.series for plan in plans} - set(gone)
    assert set(linkage.find_uid(UID)) == left
    assert set(linkage.entries("src")) == {f"{name[0]}.dcm" for name in left}
    assert len(linkage.outcomes("src", "one")) == len(left)
    # Neither in the database's free pages nor in its log, while it is still open.
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"Roe^A" in data) is ("a" * 32 not in gone)


def test_forget_takes_exactly_one_of_series_and_patient(linkage):
    for wanted in ({}, {"series_id": "a", "patient": "b"}):
        with pytest.raises(ValueError):
            linkage.forget(**wanted)


def test_a_folder_keeps_its_origin_under_another_alias_and_no_other_folder_gets_it(linkage):
    linkage.register("a", "/x")
    linkage.register("b", "/x")
    assert (linkage.origin("a"), linkage.origin("b")) == ("a", "a")
    linkage.register("a", "/y")  # a stands for another folder now; what lay in the first is b's
    assert linkage.origin("b") == "a" != linkage.origin("a")
    linkage.register("c", "/y")
    assert linkage.origin("c") == linkage.origin("a")
    linkage.register("d", "/d")
    linkage.register("d", "/moved")  # the same source, mounted elsewhere
    assert linkage.origin("d") == "d"


def test_refused_files_are_found_by_their_reason(linkage):
    alone = FileEntry("x/note.dcm", 1, 2, 3, "refused", "NOT_DICOM").filed()
    groups = [entry("a/1.dcm", 5), entry("a/2.dcm", 5), entry("b/1.dcm", 6), entry("c/1.dcm", 7)]
    linkage.save_entries("src", [alone, *(one.filed() for one in groups)])
    gap = Finding("MISSING_SLICE", "series", "k" * 32, 2, "CT")
    cut = Finding("TRUNCATED", "series", "l" * 32, 1, "CT")
    planned = PlannedSeries("s" * 32, "mark", refused=cut)
    linkage.save_outcomes(
        "src",
        "settings",
        [
            GroupOutcome(f"d:{UID}.5", (), (gap,)),
            GroupOutcome(f"d:{UID}.6", (planned,)),
            GroupOutcome(f"d:{UID}.7", (PlannedSeries("t" * 32, "mark"),)),
        ],
    )
    assert linkage.refused("NOT_DICOM") == [("src", "x/note.dcm")]
    assert linkage.refused("MISSING_SLICE") == [("src", "a/1.dcm"), ("src", "a/2.dcm")]
    assert linkage.refused("TRUNCATED") == [("src", "b/1.dcm")]
    assert linkage.refused("UID_CONFLICT") == []

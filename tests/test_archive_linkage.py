"""The linkage: originals go in, are found, are forgotten; nobody else may read the file."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from archive.errors import StoreError
from archive.linkage import Linkage

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


def entry(size: int) -> dict:
    return {"path": "x", "size": size, "header": {"uid": UID, "values": [1.5, None, "é"]}}


def test_the_file_is_private(linkage, tmp_path):
    linkage.save_entries("src", {"a.dcm": entry(1)})
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_sources_have_a_path(linkage):
    linkage.register("src", "/moved/src")
    assert linkage.path_of("src") == "/moved/src"
    with pytest.raises(StoreError) as caught:
        linkage.path_of("other")
    assert caught.value.code == "NOT_FOUND"


def test_entries_are_those_of_the_last_scan(linkage):
    many = {f"{number}.dcm": entry(number) for number in range(1200)}
    linkage.save_entries("src", many)
    linkage.save_entries("other", {"0.dcm": entry(7)})
    assert linkage.entries("src") == many
    kept = {path: many[path] for path in list(many)[:3]} | {"1.dcm": entry(99), "new.dcm": entry(5)}
    linkage.save_entries("src", kept)
    assert linkage.entries("src") == kept
    assert linkage.entries("other") == {"0.dcm": entry(7)}
    linkage.save_entries("src", {})
    assert linkage.entries("src") == {}


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
    linkage.save_entries("src", {f"{name}.dcm": entry(1) for name in "abc"})
    assert linkage.forget(**wanted) == gone
    left = {plan.series for plan in plans} - set(gone)
    assert set(linkage.find_uid(UID)) == left
    assert set(linkage.entries("src")) == {f"{name[0]}.dcm" for name in left}
    # Neither in the database's free pages nor in its log, while it is still open.
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"Roe^A" in data) is ("a" * 32 not in gone)


def test_forget_takes_exactly_one_of_series_and_patient(linkage):
    for wanted in ({}, {"series_id": "a", "patient": "b"}):
        with pytest.raises(ValueError):
            linkage.forget(**wanted)

"""Erasing somebody: nothing of them is left, not even of files that no series lists."""

from __future__ import annotations

import json
import shutil

import pytest
from phantoms import ct_volume, mr_volume, write_ct_series

from archive.commit import name_of
from archive.erase import erase
from archive.errors import StoreError, TransientError
from archive.leases import Leases
from archive.workspace import Workspace
from flows.ingest import ingest

INLINE = ["cluster=inline"]


@pytest.fixture
def home(tmp_path):
    """Two patients, one with a folded copy and a truncated file."""
    first = write_ct_series(tmp_path / "in" / "a", ct_volume(), patient=1, name="one")
    write_ct_series(tmp_path / "in" / "b", mr_volume(), patient=2, name="two")
    shutil.copy(first[0], tmp_path / "in" / "a" / "copy.dcm")
    extra = write_ct_series(tmp_path / "in" / "c", ct_volume(seed=9), patient=1, name="three")
    extra[0].write_bytes(extra[0].read_bytes()[:-50])
    home = Workspace.open(tmp_path / "ws", create=True)
    alias = home.register_source(tmp_path / "in")
    ingest.fn(workspace=str(home.root), sources=[alias], settings=INLINE)
    return home


def test_a_patient_is_gone_from_the_linkage_with_folded_and_refused_files(home):
    ct, mr = home.catalog.series(group="ct")[0], home.catalog.series(group="mr")[0]
    (alias,) = [source.alias for source in home.catalog.sources()]
    before = json.dumps(home.linkage.entries(alias))
    erased = erase(home, patient=ct.patient[:12])
    assert (erased.series, erased.folders) == (1, 1)
    left = home.linkage.entries(alias)
    assert "copy.dcm" in before and not any("a/" in path or "c/" in path for path in left)
    assert [row.series for row in home.catalog.series()] == [mr.series]
    with pytest.raises(StoreError):
        erase(home, patient=ct.patient)


def test_what_a_living_run_holds_is_not_erased_under_it(home):
    row = home.catalog.series(group="ct")[0]
    with Leases(home.catalog, home.catalog.start_run("encode")) as other:
        assert other.acquire([f"series:{row.series}"])
        with pytest.raises(TransientError) as caught:
            erase(home, series=row.series)
    assert caught.value.code == "LEASED"
    assert (home.volumes / name_of(row.series)).exists()
    assert erase(home, series=row.series).series == 1


def test_slices_shown_by_a_killed_training_go_too(home):
    row = home.catalog.series(group="ct")[0]
    shown = {group: home.training / f"{group}-0123456789abcdef" / "progress.png" for group in ("ct", "mr")}
    for path in shown.values():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a slice of somebody")
    erase(home, series=row.series)
    assert [group for group, path in shown.items() if path.exists()] == ["mr"]


def test_a_patient_in_two_sources_is_gone_from_both(home, tmp_path):
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "other")
    other = home.register_source(tmp_path / "other")
    ingest.fn(workspace=str(home.root), sources=[other], settings=INLINE)
    erase(home, patient=home.catalog.series(group="ct")[0].patient)
    assert not home.linkage.entries(other)
    assert home.catalog.series(group="ct") == []

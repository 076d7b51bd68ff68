"""Repair makes codes again where the volume is whole, and says which volumes their source must give again."""

from __future__ import annotations

from pathlib import Path

from conftest import QUICK

from archive.workspace import Workspace
from flows.console import DAMAGE, OK, exit_code
from flows.ingest import ingest
from flows.repair import repair
from flows.verify import verify

THOROUGH = [*QUICK, "verify.read_data=true"]


def flip(folder: Path) -> None:
    """One bit in the middle of the largest file: no size changes."""
    victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


def test_volumes_that_are_damaged_are_named_with_their_source_and_the_rest_is_mended(workspace):
    home = Workspace.open(workspace)
    ct, mr, pt = (home.catalog.series(group=group)[0] for group in ("ct", "mr", "pt"))
    for row in (ct, mr):
        flip(home.codes / row.series / row.codes_version)
    for row in (mr, pt):  # of mr both tiers; of pt only the volume, which nobody need read to make codes again
        flip(home.volumes / row.series / row.volume_version)
    done = repair(workspace, [], None, QUICK)
    assert (done.counts["repaired"], done.counts["to_ingest"]) == (1, 1)
    assert [(one["series"], one["code"], one["source"]) for one in done.problems] == [(mr.series, "DAMAGED", mr.source)]
    assert mr.source in done.sentence and exit_code(done) == DAMAGE
    assert {one["series"] for one in verify.fn(workspace=str(workspace), settings=THOROUGH).problems} == {
        mr.series, pt.series
    }  # fmt: skip
    again = repair(workspace, [], None, QUICK)  # what verify noted counts without reading
    assert {one["series"] for one in again.problems} == {mr.series, pt.series}
    assert ingest.fn(workspace=str(workspace), settings=QUICK).counts["ingested"] == 2
    home.close()
    last = repair(workspace, [], None, QUICK)
    assert last.problems == () and exit_code(last) == OK
    assert verify.fn(workspace=str(workspace), settings=THOROUGH).damaged == 0


def test_nothing_to_repair_says_so(workspace):
    done = repair(workspace, [], None, QUICK)
    assert (done.counts["repaired"], exit_code(done)) == (0, OK)
    assert "all codes are whole" in done.sentence

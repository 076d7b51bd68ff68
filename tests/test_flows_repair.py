"""Repair makes codes again where the volume is whole, and says which volumes their source must give again."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import QUICK
from test_flows_again import another

from archive.catalog_schema import EncodingRow
from archive.settings import Settings
from archive.workspace import CONFIG, Workspace
from flows.console import DAMAGE, OK, QUALITY, exit_code
from flows.encode import encode
from flows.ingest import ingest
from flows.promote import promote
from flows.repair import _levels, repair
from flows.train import train
from flows.verify import verify
from model.config import resolve

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


def encoded(root: Path, series: str) -> EncodingRow:
    """The current codes of a series."""
    catalog = Workspace.open(root).catalog
    return catalog.encoding(catalog.one(series).codes_version)


def test_codes_are_made_again_by_their_own_model_profile_levels_and_gate(workspace):
    second = another(workspace)
    home = Workspace.open(workspace)
    first = home.catalog.current_model("ct").model
    one, other = home.catalog.series(group="ct")
    gated = [*QUICK, "encode.levels=1", "gate.min_psnr=1"]
    encode.fn(workspace=str(workspace), series=[one.series], model=second, profile="fast", settings=gated)
    encode.fn(workspace=str(workspace), series=[other.series], profile="fast", settings=QUICK)
    before = {row.series: encoded(workspace, row.series) for row in (one, other)}
    assert {name: (row.model, row.profile) for name, row in before.items()} == {
        one.series: (second, "fast"), other.series: (first, "fast")
    }  # fmt: skip
    for name, row in before.items():
        flip(home.codes / name / row.version)
    # `one` has whole codes by the current model too; `repair` must not point at those.
    done = repair(workspace, [], None, [*QUICK, "gate.min_psnr=1"])
    assert (done.counts["repaired"], done.counts["adopted"], exit_code(done)) == (2, 0, OK)
    assert "codes of 2 of 2 series made again" in done.sentence
    for name, row in before.items():
        now = encoded(workspace, name)
        assert now.version != row.version and now.manifest_digest == row.manifest_digest
        assert (now.model, now.profile) == (row.model, row.profile)
    assert encoded(workspace, one.series).settings_digest == before[one.series].settings_digest
    assert verify.fn(workspace=str(workspace), settings=THOROUGH).damaged == 0


def test_below_the_gate_they_are_made_again_too_and_stale_ones_with_the_current_model(workspace):
    home = Workspace.open(workspace)
    one, other = home.catalog.series(group="ct")
    gated = [*QUICK, "gate.min_psnr=99"]
    encode.fn(workspace=str(workspace), series=[one.series], settings=gated)
    second = another(workspace)
    flip(home.codes / one.series / encoded(workspace, one.series).version)
    done = repair(workspace, [], None, gated)
    assert (done.counts["repaired"], exit_code(done)) == (1, QUALITY)
    promote.fn(workspace=str(workspace), model=second, force=True, settings=QUICK)
    assert {row.state for row in home.catalog.series(group="ct")} == {"stale"}
    flip(home.codes / other.series / encoded(workspace, other.series).version)
    assert repair(workspace, [], None, QUICK).counts["repaired"] == 1
    assert encoded(workspace, other.series).model == second


def test_models_that_are_gone_are_named_and_what_needs_them_is_left(workspace):
    home = Workspace.open(workspace)
    lost = home.catalog.current_model("ct").model
    victim = home.catalog.series(group="ct")[0]
    flip(home.codes / victim.series / victim.codes_version)
    shutil.rmtree(home.models / lost)
    for _ in range(2):
        done = repair(workspace, [], None, QUICK)
        assert (done.counts["repaired"], done.counts["models"], exit_code(done)) == (0, 1, DAMAGE)
        (problem,) = done.problems
        assert (problem["tier"], problem["version"], problem["code"]) == ("model", lost, "MISSING")
        assert (problem["group"], problem["series_count"]) == ("ct", 2)
        assert "whole" not in done.sentence and lost[:12] in done.sentence and "voxbook train" in done.sentence
    assert exit_code(repair(workspace, [], "mr", QUICK)) == OK, "not asked about that group"
    train.fn(workspace=str(workspace), group="ct", settings=[*QUICK, "train.seed=9"])
    encode.fn(workspace=str(workspace), settings=QUICK)
    last = repair(workspace, [], None, QUICK)
    assert (last.problems, exit_code(last)) == ((), OK)
    assert verify.fn(workspace=str(workspace), settings=THOROUGH).damaged == 0


@pytest.mark.parametrize(("stored", "asked"), [(23, None), (1, 1), (7, 7)])
def test_levels_of_a_corrected_model_are_asked_for_as_they_were(tmp_path, stored, asked):
    """Made under another gate, so that what was stored must tell: all levels, corrections among them, mean none named."""
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / CONFIG).write_text(resolve("ct-2d-fine").model_dump_json())
    settings = Settings.model_validate({"gate": {"min_psnr": 50}})
    stage = SimpleNamespace(settings=settings, workspace=SimpleNamespace(models=tmp_path / "models"))
    codes = SimpleNamespace(profile="exact", settings_digest="of another gate")
    certificate = SimpleNamespace(data={"levels": stored})
    found = _levels(stage, SimpleNamespace(group="ct", model="m"), codes, certificate)
    assert found == asked
    assert settings.encode.model_validate({"levels": stored}).levels == stored

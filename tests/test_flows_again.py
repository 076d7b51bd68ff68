"""Encoding again: with another model, in part, under other groups; promotion; and readers who notice nothing of it."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
from conftest import QUICK
from phantoms import ct_volume, write_ct_series

from archive import open_codes, open_volumes
from archive.catalog_schema import SeriesRow
from archive.errors import ConfigError, MismatchError
from archive.workspace import Workspace
from flows.console import exit_code
from flows.encode import encode
from flows.gc import gc
from flows.nightly import nightly
from flows.promote import promote, table_of
from flows.train import train
from model import encode_volume, open_decoded
from model.bundle import load


def another(root, group: str = "ct", steps: int = 2) -> str:
    """A second model of a group; of two steps unless it is to be a good one."""
    outcome = train.fn(workspace=str(root), group=group, settings=[*QUICK, f"train.steps={steps}", "train.seed=5"])
    assert not outcome.counts["models"][0]["unchanged"]
    return outcome.counts["model"]


def rows_of(root, group: str = "ct") -> list[SeriesRow]:
    return Workspace.open(root).catalog.series(group=group)


def model_of(root, series: str) -> str:
    return open_codes(root)[series].attributes["model"]


def test_a_model_that_was_asked_for_counts_until_the_next_promotion(workspace):
    second = another(workspace)
    first = Workspace.open(workspace).catalog.current_model("ct").model
    one, other = (row.series for row in rows_of(workspace))
    before = Workspace.open(workspace).catalog.one(one).codes_version
    done = encode.fn(workspace=str(workspace), series=[one], model=second[:12], settings=QUICK)
    assert (done.counts["series"], done.counts["encoded"]) == (1, 1)
    assert (model_of(workspace, one), model_of(workspace, other)) == (second, first)
    assert before in {row.version for row in Workspace.open(workspace).catalog.encodings(one)}
    dry = encode.fn(workspace=str(workspace), dry_run=True, settings=QUICK)
    assert (dry.counts["planned"], dry.counts["unchanged"]) == (0, 4)
    again = encode.fn(workspace=str(workspace), settings=QUICK)
    assert (again.counts["encoded"], again.counts["unchanged"]) == (0, 4)
    assert model_of(workspace, one) == second
    # Asked for by name, the first one's codes are there already and count again.
    back = encode.fn(workspace=str(workspace), series=[one], model=first, settings=QUICK)
    assert (back.counts["encoded"], back.counts["unchanged"]) == (0, 1)
    assert Workspace.open(workspace).catalog.one(one).codes_version == before
    encode.fn(workspace=str(workspace), series=[one], model=second, settings=QUICK)
    promote.fn(workspace=str(workspace), model=first, settings=QUICK)
    assert {model_of(workspace, name) for name in (one, other)} == {first}
    assert {row.state for row in rows_of(workspace)} == {"encoded"}


def test_a_model_of_another_group_is_refused(workspace):
    mr = Workspace.open(workspace).catalog.current_model("mr").model
    with pytest.raises(MismatchError):
        encode.fn(workspace=str(workspace), group="ct", model=mr, settings=QUICK)


def test_where_chooses_by_certificate_and_a_wrong_one_is_refused_before_anything_is_done(workspace):
    psnrs = {row.series: row.psnr for row in Workspace.open(workspace).catalog.certificates()}
    lowest = min(psnrs.values())
    condition = f"psnr <= {lowest} or (modality in (PT) and not state = stale)"
    fast = {"settings": [*QUICK, "encode.profile=fast"]}
    dry = encode.fn(workspace=str(workspace), where=condition, dry_run=True, **fast)
    wanted = {row.series for row in rows_of(workspace, "pt")} | {name for name in psnrs if psnrs[name] == lowest}
    assert dry.counts["series"] == dry.counts["planned"] == len(wanted)
    runs = len(Workspace.open(workspace).catalog.runs())
    with pytest.raises(ConfigError, match="character 1: no field 'pnsr'"):
        encode.fn(workspace=str(workspace), where="pnsr < 3", settings=QUICK)
    assert len(Workspace.open(workspace).catalog.runs()) == runs
    assert encode.fn(workspace=str(workspace), where="psnr > 999", settings=QUICK).found is False


def test_the_profile_is_a_parameter(workspace):
    series = rows_of(workspace)[0].series
    done = encode.fn(workspace=str(workspace), series=[series], profile="fast", settings=QUICK)
    assert done.counts["encoded"] == 1
    assert open_codes(workspace)[series].attributes["profile"] == "fast"


def test_a_worse_model_is_compared_shown_and_refused(workspace):
    worse = another(workspace)
    before = {row.series: (row.codes_version, row.state) for row in rows_of(workspace)}
    first = Workspace.open(workspace).catalog.current_model("ct").model
    outcome = promote.fn(workspace=str(workspace), model=worse[:10], settings=QUICK)
    compared = outcome.counts["comparison"]
    assert outcome.counts["promoted"] is False
    assert (outcome.below_gate, outcome.reasons) == (1, {"WORSE_MODEL": 1})
    assert (compared["series"], compared["worse"], compared["better"]) == (2, 2, 0)
    assert compared["gain_db"] < -compared["noise_db"] <= -0.1
    assert "worse" in outcome.sentence
    columns, rows = table_of(compared)
    assert [len(row) for row in rows] == [len(columns)] * 2
    # The sample's codes lie beside those in use, with certificates of their own, and nobody reads them.
    catalog = Workspace.open(workspace).catalog
    assert {row.series: (row.codes_version, row.state) for row in rows_of(workspace)} == before
    assert catalog.current_model("ct").model == first
    beside = [row for row in catalog.encodings() if row.model == worse]
    assert len(beside) == 2
    assert {row.model for row in catalog.encodings(current_only=True)} & {worse} == set()
    # Forced, they count at once, and nothing is encoded twice.
    forced = promote.fn(workspace=str(workspace), model=worse, force=True, settings=QUICK)
    assert (forced.counts["promoted"], forced.counts["previous"], forced.counts["stale"]) == (True, first, 0)
    assert {row.codes_version for row in rows_of(workspace)} == {row.version for row in beside}
    assert encode.fn(workspace=str(workspace), settings=QUICK).counts["encoded"] == 0
    # The way back is a better one, and its codes are still there.
    better = promote.fn(workspace=str(workspace), model=first, settings=QUICK)
    assert (better.counts["promoted"], better.counts["comparison"]["better"]) == (True, 2)
    assert {row.series: (row.codes_version, row.state) for row in rows_of(workspace)} == before


def test_a_comparison_is_bounded_and_a_dry_run_moves_nothing(workspace):
    second = another(workspace, steps=29)
    first = Workspace.open(workspace).catalog.current_model("ct").model
    few = [*QUICK, "promote.series=1", "promote.tolerance_db=99"]
    outcome = promote.fn(workspace=str(workspace), model=second, dry_run=True, settings=few)
    assert (outcome.counts["promoted"], outcome.counts["comparison"]["series"]) == (False, 1)
    assert outcome.below_gate == 0
    assert Workspace.open(workspace).catalog.current_model("ct").model == first
    done = promote.fn(workspace=str(workspace), model=second, settings=few)
    assert (done.counts["promoted"], done.counts["comparison"]["series"], done.counts["stale"]) == (True, 1, 1)
    assert encode.fn(workspace=str(workspace), settings=QUICK).counts["encoded"] == 1
    assert {model_of(workspace, row.series) for row in rows_of(workspace)} == {second}


def test_more_series_below_the_gate_make_a_model_worse(workspace):
    second = another(workspace, steps=29)
    lenient = [*QUICK, "promote.tolerance_db=99"]
    psnrs = [row.psnr for row in Workspace.open(workspace).catalog.certificates()]
    gated = [*lenient, f"gate.min_psnr={max(psnrs) + 20}"]
    encode.fn(workspace=str(workspace), group="ct", model=second, settings=gated)  # fails where the first had no gate
    outcome = promote.fn(workspace=str(workspace), model=second, settings=gated)
    compared = outcome.counts["comparison"]
    assert (compared["fails_gate"], compared["passes_gate"]) == (0, 0)  # by this gate the first one fails as well
    assert outcome.counts["promoted"]
    first = next(row for row in Workspace.open(workspace).catalog.models("ct") if row.model != second)
    between = [pair["current"]["psnr"] for pair in compared["worst"]]
    only_first = [*lenient, f"gate.min_psnr={min(between) - 1e-6}"]
    worse = another(workspace, steps=1)
    promote.fn(workspace=str(workspace), model=first.model, settings=lenient)
    refused = promote.fn(workspace=str(workspace), model=worse, settings=only_first)
    assert refused.counts["comparison"]["fails_gate"] == 2
    assert "WORSE_MODEL" in refused.reasons


def test_stored_series_follow_their_group_and_their_codes_become_stale(workspace):
    old = {row.series: row.codes_version for row in rows_of(workspace)}
    toml = workspace / "voxbook.toml"
    toml.write_text('[groups.chest]\nmatch = { modality = "CT" }\n')
    dry = encode.fn(workspace=str(workspace), dry_run=True, settings=QUICK)
    assert (dry.counts["regrouped"], dry.counts["planned"], dry.counts["unchanged"]) == (2, 2, 2)
    assert len(rows_of(workspace, "ct")) == 2
    moved = encode.fn(workspace=str(workspace), settings=QUICK)
    assert moved.counts["regrouped"] == 2
    assert moved.reasons == {"NO_MODEL": 2}
    rows = rows_of(workspace, "chest")
    assert {row.series: row.codes_version for row in rows} == old  # readers have what they had
    assert {(row.state, row.reason) for row in rows} == {("stale", "NO_MODEL")}
    assert all(row.expired for row in Workspace.open(workspace).catalog.certificates() if row.series in old)
    train.fn(workspace=str(workspace), group="chest", settings=[*QUICK, "train.seed=5"])
    done = encode.fn(workspace=str(workspace), settings=QUICK)
    assert (done.counts["encoded"], done.counts["unchanged"], "regrouped" in done.counts) == (2, 2, False)
    assert {row.state for row in rows_of(workspace, "chest")} == {"encoded"}
    toml.unlink()
    back = encode.fn(workspace=str(workspace), settings=QUICK)  # the codes of that time count again
    assert (back.counts["regrouped"], back.counts["encoded"], back.counts["unchanged"]) == (2, 0, 4)
    assert {row.series: row.codes_version for row in rows_of(workspace)} == old
    assert {row.state for row in rows_of(workspace)} == {"encoded"}


def test_gc_keeps_what_it_is_told_and_counts_what_waits(workspace):
    second = another(workspace)
    encode.fn(workspace=str(workspace), group="ct", model=second, settings=QUICK)
    waits = gc.fn(workspace=str(workspace), settings=QUICK)  # its grace begins
    assert (waits.counts["folders"], waits.counts["waiting"]) == (0, 2)
    now = [*QUICK, "gc.grace_seconds=0"]
    kept = gc.fn(workspace=str(workspace), keep=1, settings=now)
    assert (kept.counts["folders"], kept.counts["waiting"]) == (0, 2)
    dry = gc.fn(workspace=str(workspace), keep=0, dry_run=True, settings=now)
    assert dry.counts["folders"] == 2
    assert gc.fn(workspace=str(workspace), keep=0, settings=now).counts["bytes"] == dry.counts["bytes"] > 0
    assert len(list((workspace / "codes.zarr").glob("[0-9a-f]*/*"))) == 4


def test_an_open_mapping_goes_on_with_what_is_current_once_gc_was_there(workspace):
    codes, volumes = open_codes(workspace), open_volumes(workspace)
    series = rows_of(workspace)[0].series
    first = codes[series].read()
    second = another(workspace)
    encode.fn(workspace=str(workspace), group="ct", model=second, settings=QUICK)
    assert codes[series].attributes["model"] == first.model  # what was opened stays as it was
    gc.fn(workspace=str(workspace), settings=[*QUICK, "gc.grace_seconds=0"])
    assert codes[series].attributes["model"] == second
    assert volumes[series].read().voxels.any()


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_who_reads_in_a_loop_while_everything_is_encoded_again_sees_one_version_or_another(workspace):
    second = another(workspace)
    home = Workspace.open(workspace)
    first = home.catalog.current_model("ct").model
    volumes = open_volumes(home)
    names = [row.series for row in rows_of(workspace)]
    expected: dict[tuple[str, str], tuple[str, str]] = {}
    for model in (first, second):
        network = load(home.models / model, model)
        for name in names:
            codes = encode_volume(network, volumes[name], model_id=model)
            with_codes = digest(codes.array)
            from model import decode_codes

            expected[name, model] = (with_codes, digest(decode_codes(network, codes).voxels))
    seen: set[tuple[str, str]] = set()
    wrong: list[str] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                codes, decoded = open_codes(workspace), open_decoded(workspace)
                for name in names:
                    stored = codes[name]
                    rows = [stored.slab(z, z + 1) for z in range(stored.shape[-3])]  # as slowly as one can
                    model = stored.attributes["model"]
                    seen.add((name, model))
                    if digest(np.concatenate(rows, axis=-3)) != expected[name, model][0]:
                        wrong.append(f"codes of {model[:8]}")
                    lazy = decoded[name].as_dask()
                    pieces = [np.asarray(lazy[z]) for z in range(lazy.shape[0])]
                    if digest(np.stack(pieces)) not in {expected[name, one][1] for one in (first, second)}:
                        wrong.append("decoded voxels")
        except BaseException as error:  # whatever a reader meets is what this test is about
            wrong.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for model in (second, first, second):
        promote.fn(workspace=str(workspace), model=model, force=True, settings=QUICK)
        encode.fn(workspace=str(workspace), settings=QUICK)
        gc.fn(workspace=str(workspace), settings=QUICK)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert seen >= {(name, first) for name in names}
    assert {model_of(workspace, name) for name in names} == {second}


def test_a_night_is_no_news_for_what_was_refused_before_and_is_for_what_is_new(tmp_path):
    folder, root = tmp_path / "scans", tmp_path / "ws"
    write_ct_series(folder, ct_volume(seed=1), patient=1, name="one")
    (folder / "broken.dcm").write_text("not an image")
    Workspace.open(root, create=True).register_source(folder)
    codes = [exit_code(nightly.fn(workspace=str(root), settings=QUICK)) for _ in range(2)]
    (folder / "new.dcm").write_text("not an image either")
    third = nightly.fn(workspace=str(root), settings=QUICK)
    assert [*codes, exit_code(third)] == [4, 0, 4]
    assert (third.counts["ingest"]["quarantined"], third.counts["ingest"]["quarantined_new"]) == (2, 1)
    assert third.reasons["NOT_DICOM"] == 2

"""Training a group: what is told and kept, what is done once only, and what further ranks do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import QUICK

from archive.workspace import WEIGHTS, Workspace
from flows.encode import encode
from flows.train import follow
from flows.train import train as flow
from model.bundle import check
from tasks.progress import reading
from tasks.train import plan

EPOCHS = [*(setting for setting in QUICK if "steps" not in setting), "train.epochs=2", "train.batch_size=2"]


def test_epochs_are_told_line_by_line_then_shapes(workspace: Path) -> None:
    lines: list[str] = []
    with reading(lines.append):
        outcome = flow.fn(workspace=str(workspace), group="ct", settings=EPOCHS)
    epochs = [line for line in lines if line.startswith("Epoch [")]
    assert [line.split(",")[0] for line in epochs] == ["Epoch [1/2]", "Epoch [2/2]"]
    assert all(float(line.rsplit("Loss: ", 1)[1]) > 0 for line in epochs)
    assert lines[2] == "Input: [2, 1, 32, 32], Output: [2, 1, 32, 32]"
    counts = outcome.counts
    assert counts["psnr_worst_decile"] <= counts["psnr"] and counts["ended_by"] == "steps"
    assert (counts["steps_skipped"], counts["rollbacks"]) == (0, 0)
    lines.clear()
    with reading(lines.append):
        again = flow.fn(workspace=str(workspace), group="ct", settings=EPOCHS)
    assert again.counts["unchanged"] and again.counts["model"] == counts["model"] and not lines


def test_a_further_rank_neither_writes_nor_trains_what_is_there(workspace: Path) -> None:
    home = Workspace.open(workspace, QUICK)
    before = [model.model for model in home.catalog.models("ct")]
    assert any(model.train_key == plan(home, "ct").key for model in home.catalog.models("ct"))
    runs = home.catalog.runs()
    follow(str(workspace), "ct", QUICK)
    assert [model.model for model in home.catalog.models("ct")] == before
    assert len(home.catalog.runs()) == len(runs), "no run of its own in the catalog"


def test_what_is_planned_depends_on_settings_and_volumes_alone(workspace: Path) -> None:
    first, second = (plan(Workspace.open(workspace, QUICK), "ct") for _ in range(2))
    assert first.key == second.key and first.folder == second.folder
    changed = plan(Workspace.open(workspace, [*QUICK, 'train.balance=["site"]']), "ct")
    assert changed.key != first.key and changed.config.balance == ("site",)


def lose(root: Path, group: str = "ct") -> str:
    """Remove the folder of a group's current model; its id."""
    home = Workspace.open(root)
    model = home.catalog.current_model(group).model
    shutil.rmtree(home.models / model)
    home.close()
    return model


def test_a_model_whose_folder_is_gone_is_trained_again(workspace: Path) -> None:
    lost = lose(workspace)
    outcome = flow.fn(workspace=str(workspace), group="ct", settings=QUICK)
    home = Workspace.open(workspace)
    assert not outcome.counts["unchanged"] and home.has_model(outcome.counts["model"])
    assert home.catalog.current_model("ct").model == outcome.counts["model"] == lost  # by steps, so the same again
    assert flow.fn(workspace=str(workspace), group="ct", settings=QUICK).counts["unchanged"]
    weights = home.models / lost / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert not flow.fn(workspace=str(workspace), group="ct", settings=QUICK).counts["unchanged"]
    assert check(home.models / lost) == ""


def test_another_model_becomes_current_where_the_current_ones_folder_is_gone(workspace: Path, monkeypatch) -> None:
    other = [*QUICK, "train.seed=5", "train.steps=2"]
    home = Workspace.open(workspace)
    second = flow.fn(workspace=str(workspace), group="ct", settings=other).counts["model"]
    assert home.catalog.current_model("ct").model != second
    lost = lose(workspace)
    again = flow.fn(workspace=str(workspace), group="ct", settings=other)  # there already, and needed now
    assert again.counts["unchanged"] and (again.counts["replaces"], again.counts["model"]) == (lost, second)
    assert home.catalog.current_model("ct").model == second and "now the model of ct" in again.sentence
    assert {row.state for row in home.catalog.series(group="ct")} == {"stale"}
    lose(workspace)
    # Ended between the model's row and its place: the next run sees to that.
    monkeypatch.setenv("VOXBOOK_FAULT", "train.named:raise")
    with pytest.raises(OSError, match="injected"):
        flow.fn(workspace=str(workspace), group="ct", settings=[*other, "train.seed=6"])
    monkeypatch.delenv("VOXBOOK_FAULT")
    third = flow.fn(workspace=str(workspace), group="ct", settings=[*other, "train.seed=6"])
    assert third.counts["unchanged"] and third.counts["replaces"] == second
    assert home.catalog.current_model("ct").model == third.counts["model"]
    done = encode.fn(workspace=str(workspace), settings=QUICK)
    assert (done.counts["encoded"], done.damaged) == (2, 0)

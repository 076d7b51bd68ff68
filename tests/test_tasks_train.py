"""Training a group: what is told and kept, what is done once only, and what further ranks do."""

from __future__ import annotations

from pathlib import Path

from conftest import QUICK

from archive.workspace import Workspace
from flows.train import follow
from flows.train import train as flow
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

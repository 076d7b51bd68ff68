"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


def test_tokens_reach_a_dataloader(finished, capsys):
    example = runpy.run_path(str(HOME / "examples" / "tokens_in_a_dataloader.py"))
    embedded = example["main"](finished, "ct", width=8)
    assert embedded.shape[:3] == (1, 8, 1)
    assert embedded.isfinite().all()
    assert "of 2 series" in capsys.readouterr().out

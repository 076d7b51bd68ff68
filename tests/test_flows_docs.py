"""The documents say what the code does: made pages are up to date, and everything has its place in them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from archive.errors import REASONS
from archive.settings import keys
from flows.reference import PAGES

HOME = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_made_page_is_up_to_date(page):
    assert (HOME / "docs" / page).read_text() == PAGES[page](), "run `make docs`"


def test_every_verb_setting_and_reason_is_documented():
    cli = (HOME / "docs" / "cli.md").read_text()
    verbs = re.findall(r"^## voxbook (\w+)$", cli, re.MULTILINE)
    assert {"demo", "ingest", "train", "encode", "verify", "decode", "report", "inspect", "promote", "gc", "up"} <= set(
        verbs
    )
    for verb, text in zip(verbs, re.split(r"^## voxbook \w+$", cli, flags=re.MULTILINE)[1:], strict=True):
        assert "Example: " in text, f"{verb} has no example"
    configuration = (HOME / "docs" / "configuration.md").read_text()
    undocumented = [key for key in keys() if f"`{key}`" not in configuration and f"`{key}." not in configuration]
    assert undocumented == []
    errors = (HOME / "docs" / "errors.md").read_text()
    assert [code for code in REASONS if f"| `{code}` |" not in errors] == []


def test_every_local_link_leads_somewhere():
    for page in [HOME / "README.md", HOME / "CONTRIBUTING.md", *(HOME / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_nothing_committed_carries_a_path_of_a_machine_or_a_registry():
    tracked = subprocess.run(["git", "ls-files"], cwd=HOME, capture_output=True, text=True, check=True).stdout.split()
    bad = re.compile(r"/(work|root|home)/[a-z]|file://|https?://[\w.]*(pypi|pytorch)\.org")
    found = []
    for name in tracked:
        path = HOME / name
        if path == Path(__file__) or path.suffix in (".png",) or not path.exists():
            continue
        found += [f"{name}: {line.strip()[:80]}" for line in path.read_text().splitlines() if bad.search(line)]
    assert found == []

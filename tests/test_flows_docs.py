"""The documents say what the code does: made pages are up to date, and everything has its place in them."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from archive.errors import REASONS
from archive.settings_file import keys
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


def handwritten() -> list[Path]:
    made = {"cli.md", "configuration.md", "errors.md", "log.md"}
    pages = [
        page for page in (HOME / "docs").rglob("*.md") if page.name not in made and page.parent.name != "decisions"
    ]
    return [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted(pages)]


def commands(text: str) -> list[list[str]]:
    """What stands as code on a page and begins with voxbook or prefect, as words; `|` in an option is a choice of two."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}.*\n)+", text, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for line in [line for block in [*fenced, *indented] for line in block.splitlines()] + inline:
        line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if line.startswith("voxbook "):
            found.append(shlex.split(line, comments=True))
    return found


@pytest.mark.parametrize("page", handwritten(), ids=lambda page: page.name)
def test_every_command_on_a_page_is_one(page):
    """Verbs, options and settings that documents name exist."""
    verbs = command_tree()
    for words in commands(page.read_text()):
        verb, *rest = words[1:]
        if verb.startswith("--") or verb.isupper():
            continue
        assert verb in verbs, f"{page.name}: {' '.join(words)}"
        named = {word.partition("=")[0] for word in rest if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        assert named <= verbs[verb], f"{page.name}: {' '.join(words)}: {sorted(named - verbs[verb])}"
        for before, word in itertools.pairwise(rest):
            if before == "--set" and "=" in word and not word.split("=")[0].isupper():
                assert word.partition("=")[0] in keys(), f"{page.name}: {word}"


def test_a_command_that_is_none_would_be_found():
    found = commands("see `voxbook trian -w ws`\n\n    voxbook encode --grup ct   # no\n")
    assert found == [["voxbook", "encode", "--grup", "ct"], ["voxbook", "trian", "-w", "ws"]]
    assert "trian" not in command_tree()
    assert "--grup" not in command_tree()["encode"]


def command_tree() -> dict[str, set[str]]:
    """Verb: its options."""
    from typer.main import get_command

    from flows import verbs_item, verbs_service, verbs_stage
    from flows.cli import app

    if not app.registered_commands:
        for part in (verbs_stage, verbs_item, verbs_service):
            part.register(app)
    tree = get_command(app).commands
    return {
        name: {opt for parameter in verb.params for opt in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        for name, verb in tree.items()
    }


def test_every_page_can_be_found_from_the_index():
    seen: set[Path] = set()
    ahead = [HOME / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        if page.is_dir():
            ahead += page.glob("*.md")
            continue
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if page.suffix == ".md" else []
        ahead += [(page.parent / target).resolve() for target in targets if not target.startswith("http")]
    pages = {*(HOME / "docs").rglob("*.md"), *(HOME / "docs").rglob("*.png")}
    assert sorted(str(page.relative_to(HOME)) for page in pages - seen) == []


def test_pictures_are_small_and_say_nothing_of_their_machine():
    for picture in (HOME / "docs").rglob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name
        chunks = re.findall(rb"(tEXt|iTXt|zTXt|eXIf)", picture.read_bytes())
        assert chunks == [], picture.name

"""Writing settings into voxbook.toml: what was there stays, what would not load is never written."""

from __future__ import annotations

import os
import stat

import pytest

from archive.errors import ConfigError, StoreError
from archive.settings_file import FILENAME, load, put

CHOSEN = {"codebook_size": 512, "width": 64, "levels": 2, "downsample": [1, 8, 8]}
TABLE = ("groups", "ct", "train")
WRITTEN = """# ours, since 2026
database = "postgresql://host/db"  # the site's

[sources]
ct = "/data/ct"  # nightly

[groups.ct.gate]
min_psnr = 38.0  # agreed

[train]
# not too long
max_seconds = 60
width = 128
"""


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        WRITTEN,
        WRITTEN + "\n[groups.ct.train]\nwidth = 16 # once\n",
        "cluster = 'inline'\ngroups.ct.preset = 'tiny'\n",
        "groups = {ct = {preset = 'tiny'}}\n",
    ],
)
def test_the_table_is_set_and_the_rest_stays(tmp_path, before):
    if before is not None:
        (tmp_path / FILENAME).write_text(before)
    settings = load(tmp_path)
    assert put(tmp_path, TABLE, CHOSEN) == tmp_path / FILENAME
    after = load(tmp_path)
    assert after.groups["ct"].train.model_dump(mode="json") == CHOSEN
    train = after.train_of("ct")
    assert (train.codebook_size, train.width, train.levels, train.downsample) == (512, 64, 2, (1, 8, 8))
    kept = {"groups": {"ct": {"train"}}}
    assert after.model_dump(exclude=kept) == settings.model_copy(
        update={"groups": {"ct": after.groups["ct"], **settings.groups}}
    ).model_dump(exclude=kept)
    for line in (before or "").splitlines():
        assert line in (tmp_path / FILENAME).read_text() or "width = 16" in line or "groups = {" in line
    text = (tmp_path / FILENAME).read_text()
    put(tmp_path, TABLE, CHOSEN)
    assert (tmp_path / FILENAME).read_text() == text, "written twice is written once"


def test_of_the_sizes_an_override_goes_before_the_group_and_the_group_before_all(tmp_path):
    (tmp_path / FILENAME).write_text(WRITTEN)
    put(tmp_path, TABLE, {"width": 64})
    assert [load(tmp_path).train_of(group).width for group in ("ct", "mr")] == [64, 128]
    assert [load(tmp_path, ["train.width=32"]).train_of(group).width for group in ("ct", "mr")] == [32, 32]
    assert load(tmp_path).train_of("ct").max_seconds == 60


@pytest.mark.parametrize(
    ("before", "values", "code"),
    [
        ("", {"width": 3}, "BAD_VALUE"),
        ("", {"breadth": 3}, "UNKNOWN_KEY"),
        ("[train\n", CHOSEN, "BAD_VALUE"),
        ("groups = 3\n", CHOSEN, "BAD_VALUE"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path, before, values, code):
    (tmp_path / FILENAME).write_text(before)
    with pytest.raises(ConfigError, match=code):
        put(tmp_path, TABLE, values)
    assert (tmp_path / FILENAME).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]


def test_a_link_and_a_mode_stay(tmp_path):
    shared = tmp_path / "site.toml"
    shared.write_text(WRITTEN)
    shared.chmod(0o600)
    root = tmp_path / "ws"
    root.mkdir()
    (root / FILENAME).symlink_to(shared)
    put(root, TABLE, CHOSEN)
    assert (root / FILENAME).is_symlink() and stat.S_IMODE(shared.stat().st_mode) == 0o600
    assert load(root).train_of("ct").width == 64


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / FILENAME).write_text(WRITTEN)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(StoreError, match="NOT_WRITABLE"):
        put(tmp_path, TABLE, CHOSEN)
    assert (tmp_path / FILENAME).read_text() == WRITTEN
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]

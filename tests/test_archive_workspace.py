"""The workspace: where things lie, what opens, and under which key."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import store_samples

from archive.commit import remove_tree
from archive.errors import ConfigError, MismatchError, StoreError
from archive.workspace import Workspace, open_codes, open_volumes

SERIES = store_samples.SERIES


def test_a_folder_without_a_catalog_is_no_workspace(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError) as caught:
            Workspace.open(root)
        assert caught.value.code == "NO_WORKSPACE"
    assert not (tmp_path / "absent").exists()


def test_creating_makes_a_private_folder_and_opening_finds_it(tmp_path):
    workspace = Workspace.open(tmp_path / "new" / "ws", create=True)
    assert workspace.root.stat().st_mode & 0o777 == 0o700
    assert workspace.catalog.series() == []
    again = Workspace.open(str(tmp_path / "new" / "ws"), ["encode.profile=fast"])
    assert (again.settings.encode.profile, again.volumes.name) == ("fast", "volumes.zarr")
    assert str(tmp_path) not in repr(again)


def test_settings_alone_make_a_workspace(tmp_path):
    (tmp_path / "voxbook.toml").write_text(f'database = "sqlite:///{tmp_path}/elsewhere.sqlite"\n')
    assert Workspace.open(tmp_path).catalog.models() == []
    assert (tmp_path / "elsewhere.sqlite").exists()
    assert not (tmp_path / "catalog.sqlite").exists()


@pytest.mark.parametrize("name", ["a b", "a?mode=ro", "a#b", "50%41", "ä:@x"])
def test_any_folder_name_will_do(tmp_path, name):
    workspace = Workspace.open(tmp_path / name, create=True)
    workspace.register_source(tmp_path, "src")
    assert {path.name for path in (tmp_path / name).glob("*.sqlite")} == {"catalog.sqlite", "linkage.sqlite"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_no_workspace(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        Workspace.open(tmp_path / "file", create=True)


def test_another_key_opens_nothing(tmp_path, monkeypatch):
    Workspace.open(tmp_path, create=True).catalog.close()
    monkeypatch.setenv("VOXBOOK_KEY", "another key that is long enough")
    with pytest.raises(MismatchError) as caught:
        _ = Workspace.open(tmp_path).catalog
    assert caught.value.code == "WRONG_KEY"


def test_sources_get_an_alias_and_keep_their_path_private(tmp_path):
    workspace = Workspace.open(tmp_path / "ws", create=True)
    source = tmp_path / "Doe_Jane"
    source.mkdir()
    alias = workspace.register_source(source)
    assert alias == workspace.register_source(str(source))
    assert workspace.register_source(source, "mine") == "mine"
    assert {row.alias for row in workspace.catalog.sources()} == {alias, "mine"}
    assert workspace.linkage.path_of(alias) == str(source)
    workspace.close()
    assert b"Doe_Jane" not in (workspace.root / "catalog.sqlite").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_opening_a_path_again_and_again_leaves_no_file_open(tmp_path):
    store_samples.encoded_workspace(tmp_path / "ws").close()
    open_codes(tmp_path / "ws"), open_volumes(tmp_path / "ws")
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    gc.disable()  # what only the collector would close counts as left open
    try:
        held = [opened(tmp_path / "ws") for _ in range(20) for opened in (open_codes, open_volumes)]
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
    finally:
        gc.enable()
    assert all(SERIES in one for one in held)


def test_current_versions_open_through_the_catalog_only(tmp_path):
    workspace = store_samples.encoded_workspace(tmp_path / "ws")
    store_samples.volume_commit(workspace.volumes, store_samples.volume(seed=5), "b" * 32)  # never in the catalog
    volumes, codes = open_volumes(workspace), open_codes(tmp_path / "ws")
    assert list(volumes) == list(codes) == [SERIES]
    assert (volumes[SERIES].read().voxels == store_samples.volume().voxels).all()
    assert codes[SERIES].read().source_version == workspace.catalog.one(SERIES).volume_version
    with pytest.raises(KeyError):
        _ = volumes["b" * 32]
    remove_tree(codes[SERIES].folder)
    with pytest.raises(StoreError) as caught:
        _ = codes[SERIES]
    assert caught.value.code == "MISSING"


def test_a_closed_workspace_opens_again(tmp_path):
    workspace = store_samples.encoded_workspace(tmp_path)
    workspace.close()
    assert len(workspace.catalog.series()) == 1

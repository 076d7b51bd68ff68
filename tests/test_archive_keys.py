"""Pseudonyms: keyed, by value, made once."""

from __future__ import annotations

import pytest

from archive.errors import ConfigError
from archive.keys import Pseudonyms, key_path


def test_pseudonyms_depend_on_key_domain_and_every_part():
    one, other = Pseudonyms(b"k" * 32), Pseudonyms(b"K" * 32)
    assert one.series("1.2.3", "a") == one.series("1.2.3", "a")
    different = {
        one.series("1.2.3", "a"),
        other.series("1.2.3", "a"),
        one.patient("1.2.3", "a"),
        one.series("1.2.3a"),
        one.series("1.2.3", "", "a"),
        one.series("1.2", "3a"),
    }
    assert len(different) == 6
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in different)


def test_the_key_file_is_made_once_and_private(tmp_path, monkeypatch):
    monkeypatch.delenv("VOXBOOK_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = Pseudonyms.load().fingerprint
    assert Pseudonyms.load().fingerprint == first
    assert key_path().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key_path().parent.iterdir()] == ["key"]
    key_path().chmod(0o644)
    with pytest.raises(ConfigError):
        Pseudonyms.load()


def test_a_short_key_is_refused():
    with pytest.raises(ConfigError):
        Pseudonyms(b"short")

"""Errors: they cross processes, are what a caller would catch, and every code used is declared."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from archive import errors

HOME = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.TransientError, OSError),
        (errors.StoreError, OSError),
        (errors.MismatchError, ValueError),
        (errors.QualityError, ValueError),
        (errors.ConfigError, ValueError),
    ],
)
def test_an_error_keeps_all_it_says_across_processes(kind, builtin):
    error = kind("DAMAGED", "two files", hint="look", series="ab", count=2)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.hint, back.context) == (kind, str(error), "look", {"series": "ab", "count": 2})
    assert isinstance(error, builtin)
    assert str(error) == "DAMAGED: two files"


def test_an_undeclared_code_cannot_be_raised():
    with pytest.raises(KeyError):
        errors.InputError("NO_SUCH_CODE")


def test_every_code_in_the_sources_is_declared_and_every_declared_code_is_used():
    text = "\n".join(
        path.read_text() for name in ("archive", "model", "tasks", "flows") for path in (HOME / name).glob("*.py")
    )
    raised = set(re.findall(r"(?:Input|Transient|Store|Mismatch|Quality|Config)Error\(\s*\"([A-Z_]+)\"", text))
    assert raised <= set(errors.REASONS)
    body = text.replace((HOME / "archive" / "errors.py").read_text(), "")
    unused = {code for code in errors.REASONS if f'"{code}"' not in body}
    assert unused == set(), "a reason code that nothing gives is a promise that nothing keeps"

"""flows/console.py: what people and programs are told of an error."""

import json

from archive.errors import StoreError
from flows import console


def test_an_error_says_of_what_it_is_and_what_to_do(capsys):
    error = StoreError("MISSING", "a model's files are gone", hint="restore it", model="a0b1863b8efc61c5", errno=2)
    console.show_error(error, True)
    out, err = capsys.readouterr()
    assert err == "error MISSING: a model's files are gone (model a0b1863b8efc)\n  restore it\n"
    assert json.loads(out) == {
        "error": "MISSING", "message": "a model's files are gone", "hint": "restore it", "model": "a0b1863b8efc61c5"
    }  # fmt: skip


def test_an_error_of_nothing_in_particular_is_plain(capsys):
    console.show_error(StoreError("NOT_WRITABLE", "the disk is full", hint="make room", errno=28), False)
    assert capsys.readouterr() == ("", "error NOT_WRITABLE: the disk is full\n  make room\n")

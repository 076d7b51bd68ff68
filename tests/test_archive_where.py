"""--where: conditions on series."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.errors import ConfigError
from archive.where import FIELDS, matches, parse

ROW = SimpleNamespace(
    series="ab12" * 8, patient="99" * 16, group="ct", modality="CT", state="encoded", reason="", source="src",
    units="HU", dtype="int16", voxels=1000, axes="tzyx", shape=(2, 5, 10, 10), first_seen="2026-11-22T10:00:00Z",
    last_seen="2026-11-23T10:00:00Z",
)  # fmt: skip
CERTIFICATE = SimpleNamespace(
    psnr=37.5, ssim=0.9, passed=True, expired=False, created_at="2026-11-23T01:30:00Z",
    data={"bits_per_voxel": {"disk": 0.1, "entropy": 0.08}, "max_error": 80.0, "model": "m" * 64, "levels": 2,
          "profile": "exact", "jpeg2000_psnr": None, "ratio": 160.0, "mean_error": 4.0, "codebook_use": 0.5,
          "rung": "codes", "unlike": 0.2, "unlike_distances": 0.1},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("psnr < 38", True),
        ("psnr < 38 and modality = CT", True),
        ("psnr<38 AND modality=mr", False),
        ("psnr >= 37.5", True),
        ("ssim != 0.9", False),
        ("bits_per_voxel <= 0.1 and max_error > 79", True),
        ("entropy<0.09 and levels=2", True),
        ("voxels = 1e3 and state = 'encoded'", True),
        ("slices = 10", True),
        ("model = mmmm and group != mr", True),
        ("series = AB12", True),
        ("series != ab12", False),
        ("psnr < 30 or psnr > 37", True),
        ("psnr < 30 or psnr > 38", False),
        ("not psnr < 30", True),
        ("not not psnr < 30", False),
        ("psnr > 0 and not (state = stale or state = ingested)", True),
        ("psnr > 99 and psnr > 98 or psnr > 1", True),
        ("psnr > 99 and (psnr > 98 or psnr > 1)", False),
        ("psnr > 1 or psnr > 98 and psnr > 99", True),
        ("not psnr > 99 and psnr > 1", True),
        ("not (psnr > 99 or psnr > 1)", False),
        ("modality in (ct, MR)", True),
        ("modality in (PT)", False),
        ("group not in (mr, 'pt')", True),
        ("voxels in (1, 1000)", True),
        ("series in (77, ab1)", True),
        ("passed = yes and expired = FALSE", True),
        ("passed != yes", False),
        ("reason = ''", True),
        ("first_seen >= 2026-11-22 and first_seen < 2026-11-23", True),
        ("encoded_at > 2026-11-23t02", False),
        ("jpeg2000_psnr = none", True),
        ("psnr != none", True),
    ],
)
def test_conditions(text, expected):
    assert matches(parse(text), ROW, CERTIFICATE) is expected


@pytest.mark.parametrize("text", ["psnr < 100", "psnr > 0", "not psnr < 100", "psnr < 1 and modality = CT", "psnr!=1"])
def test_an_unmeasured_figure_meets_no_condition(text):
    assert not matches(parse(text), ROW, None)


@pytest.mark.parametrize("text", ["modality = CT", "psnr = none", "psnr > 0 or modality = CT", "not psnr != none"])
def test_what_does_not_need_the_figure_is_met_without_it(text):
    assert matches(parse(text), ROW, None)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", 1, "a field's name"),
        ("  ", 1, "a field's name"),
        ("psnr", 5, "expected after 'psnr'"),
        ("psnr <", 7, "a value"),
        ("psnr < x", 8, "numbers, not 'x'"),
        ("psnr < nan", 8, "numbers"),
        ("age < 3", 1, "no field 'age'"),
        ("ssim > 0 and pnsr < 3", 14, "no field 'pnsr'"),
        ("psnr < 3; drop", 8, "'3;'"),
        ("psnr < 3 drop", 10, "'drop'"),
        ("__class__ = x", 1, "no field"),
        ("(psnr < 3", 10, "opened at character 1"),
        ("psnr < 3)", 9, "')'"),
        ("psnr < 3 and", 13, "a field's name"),
        ("modality in CT", 13, "parentheses"),
        ("modality in ()", 14, "a value"),
        ("modality in (CT MR)", 17, "`,` or `)`"),
        ("psnr < none", 8, "= and != only"),
        ("psnr in (none)", 10, "= and != only"),
        ("series < ab", 10, "no order"),
        ("passed = maybe", 10, "= yes or = no"),
        ("state = 'open", 9, "begins nothing"),
        ("'psnr' < 3", 1, "no field's name"),
        ("psnr ! 3", 6, "begins nothing"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text, place, words):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.code == "BAD_USAGE"
    assert f"at character {place}:" in caught.value.message
    assert words in caught.value.message


def test_long_ones_are_read_and_too_deep_ones_refused():
    long = " or ".join(["psnr > 99"] * 5000)
    assert not matches(parse(long), ROW, CERTIFICATE)
    assert matches(parse(f"{long} or series in ({', '.join(['77'] * 5000)}, ab12)"), ROW, CERTIFICATE)
    with pytest.raises(ConfigError, match="too deeply"):
        parse("(" * 3000 + "psnr > 1" + ")" * 3000)


def test_a_wrong_field_is_answered_with_the_nearest_and_all():
    with pytest.raises(ConfigError) as caught:
        parse("bits_per_vox < 1")
    assert "nearest is 'bits_per_voxel'" in caught.value.hint
    assert all(field in caught.value.hint for field in FIELDS)


def test_every_field_has_a_value_on_a_series_with_a_certificate():
    words = {"number": "{} >= -1e9", "word": "{} != zzz", "id": "{} != zzz", "yes or no": "{} != maybe"}
    for field, (kind, about) in FIELDS.items():
        assert about
        text = f"{field} = yes or {field} = no" if kind == "yes or no" else words[kind].format(field)
        assert matches(parse(text), ROW, CERTIFICATE) is (field != "jpeg2000_psnr"), field


ATOMS = {"psnr < 38": True, "psnr > 38": False, "jpeg2000_psnr > 1": None}


def _kleene(tree):
    if isinstance(tree, str):
        return ATOMS[tree]
    sign, *inner = tree
    found = [_kleene(one) for one in inner]
    if sign == "not":
        return None if found[0] is None else not found[0]
    order = {False: 0, None: 1, True: 2}
    return sorted(found, key=order.__getitem__)[0 if sign == "and" else -1]


def _text(tree):
    if isinstance(tree, str):
        return tree
    sign, *inner = tree
    return f"not ({_text(inner[0])})" if sign == "not" else f"({_text(inner[0])}) {sign} ({_text(inner[1])})"


TREES = st.recursive(
    st.sampled_from(sorted(ATOMS)),
    lambda inner: st.tuples(st.just("not"), inner) | st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(TREES)
def test_any_nesting_follows_kleenes_logic(tree):
    assert matches(parse(_text(tree)), ROW, CERTIFICATE) is (_kleene(tree) is True)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="psnrmodality ()<>=!,'\"andotin0123.;", max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    try:
        parse(text)
    except ConfigError as error:
        assert error.code == "BAD_USAGE"


def test_every_field_is_documented():
    page = (Path(__file__).resolve().parent.parent / "docs" / "again.md").read_text()
    assert [name for name, (kind, about) in FIELDS.items() if f"| `{name}` | {kind} | {about} |" not in page] == []

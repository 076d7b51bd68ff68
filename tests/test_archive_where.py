"""--where: conditions on series."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from archive.errors import ConfigError
from archive.where import matches, parse

ROW = SimpleNamespace(series="ab12", patient="p", group="ct", modality="CT", state="encoded", voxels=1000)
CERTIFICATE = SimpleNamespace(
    psnr=37.5, ssim=0.9, data={"bits_per_voxel": {"disk": 0.1}, "max_error": 80.0, "model": "m"}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("psnr < 38", True),
        ("psnr < 38 and modality = CT", True),
        ("psnr<38 AND modality=mr", False),
        ("psnr >= 37.5", True),
        ("ssim != 0.9", False),
        ("bits_per_voxel <= 0.1 and max_error > 79", True),
        ("voxels = 1000 and state = 'encoded'", True),
        ("model = m and group != mr", True),
    ],
)
def test_conditions(text, expected):
    assert matches(parse(text), ROW, CERTIFICATE) is expected


def test_an_unmeasured_figure_meets_no_condition():
    assert not matches(parse("psnr < 100"), ROW, None)
    assert not matches(parse("psnr > 0"), ROW, None)
    assert matches(parse("modality = CT"), ROW, None)


@pytest.mark.parametrize(
    "text", ["", "psnr", "psnr < x", "age < 3", "psnr < 3 or ssim < 1", "psnr < 3; drop", "__class__ = x"]
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.code == "BAD_USAGE"

"""A series that misses its gate climbs: more levels, the bounded layer, the volume; one version is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_model_encode import network, volume

from archive import codes as code_store
from archive.codes import StoredCodes
from archive.commit import remove_tree
from archive.errors import InputError
from archive.settings import GateSettings
from archive.volume import Volume
from model import ladder
from model.certificate import Certificate
from model.decode import decode_codes
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.ladder import Rung
from model.metrics import divergence
from model.source import as_source


def climbed(source: Volume, root: Path, gate: GateSettings, levels: int | None = None, **about) -> Rung:
    model = network(channels=source.channels, levels=about.pop("model_levels", 2))

    def store(codes, max_error):
        committed = code_store.write(codes, root, "s", as_source(source), max_error)
        return committed, StoredCodes(root / "s" / committed.version).read()

    first = store(encode_volume(model, source, levels=levels), None)
    found = ladder.climb(
        model, source, first, gate, store, lambda one: remove_tree(root / "s" / one.version) and None, seed="s"
    )
    assert [path.name for path in (root / "s").iterdir()] == [found.committed.version]
    assert Certificate.from_dict(found.certificate.as_dict()) == found.certificate
    return found


VOLUMES = [
    ("zyx", (3, 33, 40), "int16", {}),
    ("zyx", (4, 32, 40), "uint16", {"slope": (0.5, 1.0, 2.0, 0.1), "intercept": (0.0,) * 4, "units": "Bq/ml"}),
    ("tzyx", (2, 3, 33, 24), "uint16", {}),
    ("czyx", (3, 2, 40, 33), "uint8", {"units": "rgb", "photometric": "RGB"}),
    ("tczyx", (2, 3, 2, 16, 20), "uint8", {"units": "rgb", "photometric": "RGB"}),
]


@pytest.mark.parametrize(("axes", "shape", "dtype", "about"), VOLUMES)
@pytest.mark.parametrize("max_error", [0.0, 2.0])
def test_every_kind_of_volume_is_decoded_within_its_bound(
    tmp_path: Path, axes: str, shape, dtype: str, about: dict, max_error: float
) -> None:
    source = volume(axes, shape, dtype, **about)
    found = climbed(source, tmp_path, GateSettings(max_error=max_error))
    certificate = found.certificate
    assert certificate.passed and certificate.rung == "bounded" and not certificate.reasons
    assert [rung["rung"] for rung in certificate.rungs] == ["codes", "bounded"]
    assert certificate.rungs[1]["bytes"] == found.committed.bytes > certificate.rungs[0]["bytes"]
    assert certificate.max_error <= max_error < certificate.rungs[0]["max_error"]
    assert certificate.checked_voxels == certificate.voxels
    model = network(channels=source.channels)
    stored = StoredCodes(tmp_path / "s" / found.committed.version)
    lazy = DecodedVolume(model, stored)
    whole = decode_codes(model, stored.read()).voxels
    assert np.abs(source.to_values(whole) - source.values()).max() <= max_error
    assert max_error or np.array_equal(whole, source.voxels)
    assert np.array_equal(lazy.read().voxels, whole)
    assert np.array_equal(lazy[..., 1:2, 5:16, 3:14], whole[..., 1:2, 5:16, 3:14])
    assert np.array_equal(lazy.slab(1, 2), as_source(source.with_voxels(whole)).slab(1, 2))
    # A number of levels asks for the codes, whatever lies beside them.
    codes = decode_codes(model, stored.read(), levels=2).voxels
    assert np.array_equal(DecodedVolume(model, stored, levels=2)[...], codes)
    assert not np.array_equal(codes, whole)


def test_more_levels_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ladder.certify

    def graded(volume, decoded, codes, size, gate, **named):  # levels of a network that learnt nothing gain nothing
        passed = 30 + codes.levels >= gate.min_psnr
        return replace(real(volume, decoded, codes, size, **named), psnr=30.0 + codes.levels, passed=passed)

    monkeypatch.setattr(ladder, "certify", graded)
    source = volume("zyx", (3, 40, 40), "int16")
    whole = encode_volume(network(levels=3), source)
    for least, levels in ((31, 1), (32, 2), (33, 3), (99, 3)):
        found = climbed(source, tmp_path / str(least), GateSettings(min_psnr=least), levels=1, model_levels=3)
        assert found.certificate.passed == (least < 99) and found.certificate.levels == levels
        assert [rung["levels"] for rung in found.certificate.rungs] == list(range(1, levels + 1))
        assert np.array_equal(found.codes.array, whole.array[:levels])
        assert found.certificate.rung == ("volume" if least == 99 else "codes")


def test_what_nothing_helps_keeps_its_codes_and_says_so(tmp_path: Path) -> None:
    source = volume("zyx", (3, 40, 40), "int16")
    found = climbed(source, tmp_path / "a", GateSettings(min_psnr=500), levels=1).certificate
    assert not found.passed and found.rung == "volume" and found.reasons == ("BELOW_MIN_PSNR",) and found.levels == 2
    floats = source.with_voxels(source.voxels.astype(np.float32))
    found = climbed(floats, tmp_path / "b", GateSettings(max_error=0)).certificate
    assert not found.passed and found.rung == "volume" and found.reasons == ("ABOVE_MAX_ERROR", "NOT_BOUNDABLE")
    # A bound that codes keep needs no layer.
    found = climbed(source, tmp_path / "c", GateSettings(max_error=1e6)).certificate
    assert found.passed and found.rung == "codes" and found.checked_slices == found.slices


def test_nothing_is_left_of_a_climb_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = volume("zyx", (2, 24, 24), "int16")
    real = ladder.certify

    def broken(volume, decoded, codes, *others, **named):
        if codes.bounded is not None:
            raise InputError("NON_FINITE")
        return real(volume, decoded, codes, *others, **named)

    monkeypatch.setattr(ladder, "certify", broken)
    with pytest.raises(InputError, match="NON_FINITE"):
        climbed(source, tmp_path, GateSettings(max_error=0))
    assert not list((tmp_path / "s").iterdir())


def test_divergence_of_histograms() -> None:
    assert divergence(np.array([2, 2, 0]), np.array([50, 50, 0])) == 0
    assert divergence(np.array([1, 0]), np.array([0, 7])) == 1
    from scipy.spatial.distance import jensenshannon

    a, b = np.array([5, 1, 3, 0]), np.array([1, 1, 1, 9])
    assert divergence(a, b) == pytest.approx(jensenshannon(a, b, base=2) ** 2)

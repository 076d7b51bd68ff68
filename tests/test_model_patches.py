"""Training patches: what a batch holds follows from seed and step; intensities jitter, air is capped."""

from __future__ import annotations

import numpy as np
import pytest
from test_model_train import phantom, phantoms, tiny

from archive.geometry import Geometry
from archive.volume import Volume
from model.config import resolve
from model.patches import PatchSampler


@pytest.mark.parametrize("preset", ["tiny", "tiny-3d"])
def test_batches_depend_on_seed_and_step_alone(preset: str) -> None:
    config = resolve(preset, intensity="hu")
    volumes = phantoms()
    roomy = PatchSampler(volumes, config, 0, 2**26)
    again = PatchSampler(volumes, config, 0, 2**26)
    again.batch(9)
    assert np.array_equal(roomy.batch(4), again.batch(4))
    assert not np.array_equal(roomy.batch(4), roomy.batch(5))
    assert roomy.batch(4).shape == (config.batch_size, 1, *config.axes(config.patch))
    tight = PatchSampler(volumes, config, 0, 40_000)  # holds less than the volumes: slabs come and go
    batches = [tight.batch(step) for step in range(6)]
    assert tight._cached <= 40_000 + tight.slab_bytes
    assert np.array_equal(batches[3], PatchSampler(volumes, config, 0, 40_000).batch(3))


def test_jitter_moves_intensities_of_half_of_the_patches_and_nothing_else() -> None:
    volumes = phantoms()
    config = tiny(batch_size=64)
    plain = PatchSampler(volumes, config.model_copy(update={"jitter": 0.0}), 0, 2**26).batch(0)
    moved = PatchSampler(volumes, config, 0, 2**26).batch(0)
    assert moved.min() >= -1 and moved.max() <= 1, "CT is clipped to the 12 bits, jittered or not"
    assert moved.shape == plain.shape and moved.dtype == np.float32
    # The first patch of both is drawn alike: the jitter is its last draw.
    a, b = plain[0].ravel().astype(float), moved[0].ravel().astype(float)
    inside = (a > -0.7) & (a < 0.7)
    stretch, shift = np.polyfit(a[inside], b[inside], 1)
    assert np.allclose(b[inside], stretch * a[inside] + shift, atol=1e-5)
    same = [np.array_equal(PatchSampler(volumes, config, seed, 2**26).batch(0)[0],
                           PatchSampler(volumes, config.model_copy(update={"jitter": 0.0}), seed, 2**26).batch(0)[0])
            for seed in range(24)]  # fmt: skip
    assert 4 < sum(same) < 20


def test_air_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    air = np.full((2, 128, 128), -1000, np.int16)
    air[:, :40, :40] = np.random.default_rng(0).integers(-200, 200, (2, 40, 40))
    volume = Volume(air, "zyx", Geometry.pixels(air.shape), "CT", units="HU")
    config = tiny(batch_size=1024)

    def flat() -> float:
        batch = PatchSampler({"a": volume}, config, 0, 2**24).batch(0)
        return float(np.mean([patch.std() < 0.02 for patch in batch]))

    capped = flat()
    monkeypatch.setattr("model.patches.TRIES", 1)
    drawn = flat()
    assert drawn == pytest.approx(1 - (40 / 97) ** 2, abs=0.05)  # patches of 32 that miss the corner of 40
    # Up to four draws; after each flat one, one patch of ten is left as it is.
    again = 0.9 * drawn
    assert capped == pytest.approx(drawn * (0.1 + again * (0.1 + again * (0.1 + again))), abs=0.05)


def test_small_images_are_padded_by_their_edges() -> None:
    small = phantom(0, (2, 9, 40))
    config = tiny(batch_size=8, jitter=0.0)
    batch = PatchSampler({"a": small}, config, 0, 2**24).batch(0)
    assert batch.shape == (8, 1, 32, 32) and np.isfinite(batch).all()
    # Nine rows, and then (or before, where it is turned or flipped) one that is repeated.
    for patch in batch[:, 0]:
        along = patch if (np.diff(patch, axis=0) == 0).all(1).sum() >= 23 else patch.T
        assert (np.diff(along, axis=0) == 0).all(1).sum() >= 32 - 9

"""What only a GPU shows: training on it, and codes that agree with the CPU's but for near ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phantoms import ct_volume

from archive.settings import TrainSettings
from model.bundle import load
from model.config import resolve
from model.decode import decode_codes
from model.encode import encode_volume
from model.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("corrections", [0, 3])
def test_a_model_trained_on_the_gpu_codes_alike_on_both(tmp_path, corrections: int):
    volumes = {name: ct_volume((8, 96, 96), seed=seed) for seed, name in enumerate("abcd")}
    config = resolve("tiny", TrainSettings(steps=100, corrections=corrections), intensity="hu")
    result = train(volumes, {name: name for name in volumes}, config, TrainSettings(device="cuda"), tmp_path, 60.0)
    fresh = ct_volume((8, 96, 96), seed=9)
    there = encode_volume(load(result.folder, result.model, device="cuda"), fresh)
    here = encode_volume(load(result.folder, result.model, device="cpu"), fresh)
    assert np.mean(there.array != here.array) < 1e-3
    assert decode_codes(load(result.folder, result.model, device="cuda"), there).voxels.shape == fresh.voxels.shape

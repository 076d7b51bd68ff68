"""The canonical tiling: `exact` codes are the same bytes whatever company, order, threads, retries or memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from archive.errors import InputError, MismatchError
from archive.geometry import Geometry
from archive.volume import Volume
from model import tiling
from model.ahead import ahead
from model.config import resolve
from model.decode import decode_codes
from model.encode import Encoded, Request, encode_volume, encode_volumes
from model.quick import quick
from model.source import MemoryVolume
from model.tiling import batch_size
from model.vqvae import VQVAE

SHAPES = {
    "tiny": [(1, 32, 32), (8, 32, 32), (3, 64, 64), (1, 35, 50), (2, 130, 170), (5, 32, 32)],
    "tiny-3d": [(9, 20, 18), (8, 32, 32), (33, 40, 40), (8, 32, 32)],
}
SMALL_TILES = {2: (1, 96, 96), 3: (28, 28, 28)}


def network(preset: str, channels: int) -> VQVAE:
    torch.manual_seed(0)
    config = resolve(preset, channels=channels, intensity="robust").model_copy(update={"levels": 2})
    model = VQVAE(config)
    cell = config.axes(config.downsample)
    model.quantizer.start(model.encoder(torch.randn(8, channels, *(6 * d for d in cell))).movedim(1, -1).flatten(0, -2))
    return model.eval()


def archive_of(preset: str, channels: int, timed: bool) -> dict[str, Volume]:
    rng = np.random.default_rng(3)
    volumes = {}
    for number, shape in enumerate(SHAPES[preset]):
        axes, full = "zyx", shape
        if channels > 1:
            axes, full = "c" + axes, (channels, *full)
        if timed and number % 2:
            axes, full = "t" + axes, (2, *full)
        smooth = np.add.outer(np.arange(shape[-2]) * 3, np.arange(shape[-1]) * 2) % 200
        voxels = (rng.integers(0, 60, full) + smooth).astype(np.uint8)
        volumes[f"s{number}"] = Volume(voxels, axes, Geometry.pixels(shape), "MR")
    return volumes


def requests(volumes: dict[str, Volume], names: list[str]) -> list[Request]:
    return [Request(name, lambda name=name: volumes[name.rstrip("+")]) for name in names]


def codes_of(found: Iterator[Encoded]) -> dict[str, bytes]:
    result = {}
    for item in found:
        assert item.error is None and item.codes is not None
        result[str(item.name)] = item.codes.array.tobytes()
    return result


@pytest.mark.parametrize(("preset", "channels", "timed"), [("tiny", 1, True), ("tiny", 3, True), ("tiny-3d", 1, True)])
def test_codes_are_the_same_bytes_in_any_company(monkeypatch, preset: str, channels: int, timed: bool) -> None:
    monkeypatch.setattr(tiling, "TILE", SMALL_TILES)
    model, volumes = network(preset, channels), archive_of(preset, channels, timed)
    alone = {name: encode_volume(model, volume).array.tobytes() for name, volume in volumes.items()}
    names = list(volumes)
    shuffled = list(np.random.default_rng(1).permutation(names))
    twice = [*names, *(f"{name}+" for name in reversed(names))]
    for order, ahead_bytes in [(names, 0), (names[::-1], 2**12), (shuffled, 2**20), (twice, 2**16), (names[2:], 2**24)]:
        found = codes_of(encode_volumes(model, requests(volumes, order), ahead_bytes=ahead_bytes))
        assert found == {name: alone[name.rstrip("+")] for name in order}
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert codes_of(encode_volumes(model, requests(volumes, shuffled))) == alone
    finally:
        torch.set_num_threads(threads)


def test_a_window_codes_alike_in_every_place_of_its_batch() -> None:
    model = network("tiny", 1)
    places = batch_size("cpu", 32 * 32)
    assert places > 4
    generator = torch.Generator().manual_seed(2)
    window = torch.rand(1, 32, 32, generator=generator)
    codes = []
    for place in range(places):
        batch = torch.rand(places, 1, 32, 32, generator=generator) if place % 2 else torch.zeros(places, 1, 32, 32)
        batch[place] = window
        codes.append(model.encode(batch)[place])
    assert all(torch.equal(one, codes[0]) for one in codes)


@pytest.mark.parametrize(("preset", "shape"), [("tiny", (6, 300, 260)), ("tiny-3d", (40, 60, 48))])
def test_what_tiles_code_otherwise_than_the_whole_are_near_ties(monkeypatch, preset: str, shape) -> None:
    rng = np.random.default_rng(7)
    smooth = np.add.outer(np.arange(shape[-2]) * 3, np.arange(shape[-1]) * 2) % 200
    volume = Volume((rng.integers(0, 90, shape) + smooth).astype(np.int16), "zyx", Geometry.pixels(shape), "MR")
    model = network(preset, 1)
    monkeypatch.setattr(tiling, "TILE", {2: (1, 4096, 4096), 3: (4096, 4096, 4096)})
    whole = encode_volume(model, volume)
    monkeypatch.setattr(tiling, "TILE", SMALL_TILES)
    tiled = encode_volume(model, volume)
    different = (tiled.array != whole.array).any(0)
    assert different.mean() <= 1e-5 + 1 / different.size
    for z, y, x in np.argwhere(different):  # where they do differ, two codes were about as near
        level = int(np.argmax(tiled.array[:, z, y, x] != whole.array[:, z, y, x]))
        rest = _left(model, volume, whole.mapping, (z, y, x), level, whole.array)
        distances = (model.quantizer.table(level) - rest).square().sum(1).sort().values
        assert float((distances[1] - distances[0]) / distances[0]) < 1e-4


def _left(model: VQVAE, volume: Volume, mapping: dict, place, level: int, codes: np.ndarray) -> torch.Tensor:
    """What the levels before `level` leave of the latent at a place."""
    from model.intensity import Mapping
    from model.windows import Layout, read_windows

    source = MemoryVolume(volume)
    latents = []
    for window in read_windows(source, Layout.of(model, source), Mapping.from_dict(mapping)):
        z, y, x = (part.start <= at < part.stop for part, at in zip(window.tile.inner, place, strict=True))
        if z and y and x:
            voxels = torch.from_numpy(np.ascontiguousarray(window.voxels))[None]
            grid = model.encoder(voxels[:, :, 0] if model.config.dims == 2 else voxels)[0].detach()
            at = [p - part.start for p, part in zip(place, window.tile.outer, strict=True)]
            latents.append(grid[(slice(None), *(at[1:] if model.config.dims == 2 else at))])
    (rest,) = latents
    rest = rest - model.quantizer.centre
    for earlier in range(level):
        rest = rest - model.quantizer.table(earlier)[int(codes[(earlier, *place)])]
    return rest


def test_one_odd_volume_stops_no_other() -> None:
    model = network("tiny", 1)
    volumes = archive_of("tiny", 1, timed=False)
    alone = {name: encode_volume(model, volume).array.tobytes() for name, volume in volumes.items()}
    broken = np.zeros((9, 32, 32), np.float32)
    broken[8, 3, 3] = np.nan  # after a slab that was read well
    huge = np.zeros((2, 32, 32), np.float32)
    huge[:, ::2] = 3e38  # finite, but nothing that a network makes of it is
    odd = {
        "nan": Volume(broken, "zyx", Geometry.pixels(broken.shape), "NIFTI"),
        "colour": Volume(np.zeros((3, 1, 32, 32), np.uint8), "czyx", Geometry.pixels((1, 32, 32)), "PICTURE"),
        "huge": Volume(huge, "zyx", Geometry.pixels(huge.shape), "NIFTI"),
    }

    def gone() -> Volume:
        raise OSError("no such file")

    asked = [*requests(volumes | odd, ["s0", "nan", "s1", "colour", "huge", "s2"]), Request("gone", gone)]
    for ahead_bytes in (0, 2**20):
        found = list(encode_volumes(model, [*asked, *requests(volumes, ["s3", "s5"])], ahead_bytes=ahead_bytes))
        assert len(found) == len(asked) + 2
        errors = {str(item.name): type(item.error) for item in found if item.error is not None}
        assert errors.pop("huge", InputError) is InputError
        assert errors == {"nan": InputError, "colour": MismatchError, "gone": OSError}
        well = {str(item.name): item.codes.array.tobytes() for item in found if item.codes is not None}
        well.pop("huge", None)
        assert well == {name: alone[name] for name in ("s0", "s1", "s2", "s3", "s5")}


def test_latents_that_are_not_finite_are_one_series_own(monkeypatch) -> None:
    model = network("tiny", 1)
    volumes = {f"s{n}": archive_of("tiny", 1, timed=False)["s1"] for n in range(2)}
    bright = Volume(np.full((2, 32, 32), 255, np.uint8), "zyx", Geometry.pixels((2, 32, 32)), "MR")
    real = model.encoder.forward

    def spoiled(x):
        latents = real(x)
        return torch.where((x.amax((1, 2, 3)) > 100)[:, None, None, None], torch.nan, latents)

    monkeypatch.setattr(model.encoder, "forward", spoiled)
    monkeypatch.setattr("model.intensity.Mapping.to_model", lambda self, values: np.asarray(values, np.float32) / 2)
    found = list(encode_volumes(model, requests({**volumes, "odd": bright}, ["s0", "odd", "s1"])))
    assert {str(item.name) for item in found if item.error is None} == {"s0", "s1"} - _bright(volumes)
    assert isinstance(next(item.error for item in found if item.name == "odd"), InputError)


def _bright(volumes: dict[str, Volume]) -> set[str]:
    return {name for name, volume in volumes.items() if volume.voxels.max() > 200}


def test_memory_is_a_few_slices_whatever_the_volume() -> None:
    model = network("tiny", 1)
    asked: list[int] = []

    class Watched(MemoryVolume):
        def slab_values(self, start: int, stop: int) -> np.ndarray:
            asked.append(stop - start)
            return super().slab_values(start, stop)

    volume = archive_of("tiny", 1, timed=False)["s1"]
    long = Volume(np.tile(volume.voxels, (40, 1, 1)), "zyx", Geometry.pixels((320, 32, 32)), "MR")
    codes = encode_volume(model, Watched(long))
    assert codes.array.shape[1] == 320 and max(asked) <= 8
    assert codes.array.tobytes() == encode_volume(model, long).array.tobytes()


def test_the_fast_profile_leaves_exact_codes_alone_and_searches_in_float32() -> None:
    model, volume = network("tiny", 1), archive_of("tiny", 1, timed=False)["s4"]
    before = encode_volume(model, volume)
    fast = encode_volume(model, volume, profile="fast")
    assert encode_volume(model, volume).array.tobytes() == before.array.tobytes()
    assert 0 <= (fast.array[0] != before.array[0]).mean() < 0.1
    seen: list[torch.dtype] = []
    search = model.quantizer.search
    model.quantizer.search = lambda rows, level: (seen.append((rows @ rows[:1].T).dtype), search(rows, level))[1]
    encode_volume(model, volume, profile="fast")
    assert set(seen) == {torch.float32}  # under autocast a product would be bfloat16
    assert quick(model) is quick(model)
    a, b = (decode_codes(model, one).voxels.astype(float) for one in (before, fast))
    assert np.square(a - volume.voxels).mean() == pytest.approx(np.square(b - volume.voxels).mean(), rel=0.05)


def test_ahead_keeps_order_bounds_what_waits_and_ends() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    out, most = [], 0
    for number in ahead(source(), lambda _: 10, 40):
        out.append(number)
        most = max(most, len(made) - len(out))
    assert out == list(range(50))
    assert most <= 4 + 1  # four that wait, one in the thread's hand

    def fails() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    items = ahead(fails(), lambda _: 1, 10)
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)
    items = ahead(source(), lambda _: 10, 10)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    assert list(ahead(iter([5, 7]), lambda _: 1000, 10)) == [5, 7]  # larger than the limit, one at a time

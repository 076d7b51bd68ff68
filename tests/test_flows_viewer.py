"""The viewer: who it answers, that its pictures are the volume and its codes, and where up and left are."""

from __future__ import annotations

import http.client
import io
import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image

import archive.volumes as volume_store
from archive import Geometry, Volume, open_volumes
from archive.errors import ConfigError, StoreError
from archive.workspace import Workspace
from flows import slices
from flows.slices import Series, Wanted, draw, planes_of
from flows.viewer import make_server
from model.decode import open_decoded


@contextmanager
def serving(workspace, series: str):
    server, url = make_server(workspace, series)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ct(workspace) -> str:
    return Workspace.open(workspace).catalog.series(group="ct")[0].series


def ask(server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def picture(url: str, **query: object) -> tuple[np.ndarray, dict[str, str]]:
    """One slice as the page asks for it: again, while something is missing."""
    token = urlsplit(url).query.removeprefix("token=")
    asked = {"token": token, "tier": "volume", "plane": "axial", "index": 0, "window": "40,400", **query}
    while True:
        with urllib.request.urlopen(f"http://{urlsplit(url).netloc}/slice?{urlencode(asked)}", timeout=60) as answer:
            headers = dict(answer.headers)
            if headers["X-Missing"] == "0":
                assert headers["Content-Type"] == "image/png"
                return np.asarray(Image.open(io.BytesIO(answer.read()))), headers


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.rint(np.clip((values - centre + width / 2) / width, 0, 1) * 255).astype(np.uint8)


def test_the_page_holds_everything_it_needs_and_names_nobody(finished):
    series = ct(finished)
    with serving(finished, series[:10]) as (_, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", url)
        with urllib.request.urlopen(url, timeout=60) as answer:
            page, headers = answer.read().decode(), dict(answer.headers)
        home = Workspace.open(finished)
    assert "not for diagnostic use" in page and series in page and "PSNR" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"]+\"|url\(|@import|https?://", page), "nothing from elsewhere"
    assert home.catalog.one(series).patient not in page and str(finished) not in page
    about = json.loads(re.search(r"const about = (.*);", page)[1])
    assert [plane["name"] for plane in about["planes"]] == ["axial", "coronal", "sagittal"]
    assert about["windows"][0] == {"name": "soft tissue", "centre": 40, "width": 400}
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert f'<script nonce="{nonce}">' in page and "default-src 'none'" in policy
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"


def test_only_the_holder_of_the_token_on_this_machine_gets_an_answer(finished):
    with serving(finished, ct(finished)) as (server, url):
        here = f"127.0.0.1:{server.server_port}"
        good = f"/?token={server.token}"
        for path, headers, status in [
            (good, {}, 200),
            (good, {"Host": f"localhost:{server.server_port}"}, 200),
            (good, {"Host": f"evil.example:{server.server_port}"}, 403),  # DNS rebinding
            (good, {"Host": "127.0.0.1:1"}, 403),
            (good, {"Host": "127.0.0.1"}, 403),
            (good, {"Host": ""}, 403),
            ("/", {}, 403),
            ("/?token=", {}, 403),
            ("/?token=%C3%A9", {}, 403),
            (good + "x", {}, 403),
            ("/slice?tier=volume&plane=axial&index=0&window=0,1", {}, 403),
            ("/catalog.sqlite", {}, 403),
            (f"/catalog.sqlite?token={server.token}", {}, 404),
            (f"/../voxbook.toml?token={server.token}", {}, 404),
        ]:
            assert ask(server, path, **headers)[0] == status, (path, headers)
        assert ask(server, good, "POST")[0] == ask(server, good, "DELETE")[0] == 405
        assert ask(server, good, "HEAD")[::2] == (405, b"")
        assert here in url
    other, _ = make_server(finished, ct(finished))
    other.server_close()
    assert other.token != server.token


def test_pictures_are_the_volume_its_codes_and_their_difference(finished):
    series = ct(finished)
    original = open_volumes(finished)[series].read()
    decoded = open_decoded(finished)[series].read().values()
    values = original.values()
    with serving(finished, series) as (_, url):
        for tier, array in (("volume", values), ("codes", decoded)):
            for name, shown in (
                ("axial", array[2]),
                ("coronal", array[::-1, 7]),  # S on top, and z goes up
                ("sagittal", array[::-1, :, 7]),
            ):
                index = 2 if name == "axial" else 7
                found, headers = picture(url, tier=tier, plane=name, index=index, window="-600,1500")
                np.testing.assert_array_equal(found, windowed(shown, -600, 1500), err_msg=f"{tier} {name}")
                assert headers["X-Range"] == "-1350,150"
        found, headers = picture(url, tier="difference", index=1, window="0,4000", gain=2)
        assert headers["X-Range"] == "-1000,1000"
        redder = found[..., 0].astype(int) - found[..., 2]
        error = decoded[1] - values[1]
        assert (redder[error > 300] > 0).all() and (redder[error < -300] < 0).all()
        assert np.abs(error).max() > 300


@pytest.mark.parametrize(
    "change",
    [{"tier": "secret"}, {"plane": "oblique"}, {"index": 999}, {"index": -1}, {"index": "one"}, {"window": "0"},
     {"window": "0,0"}, {"window": "nan,5"}, {"levels": 9}, {"levels": 0}, {"t": 1}, {"gain": 0}],
)  # fmt: skip
def test_what_is_not_there_is_a_bad_request(finished, change):
    with serving(finished, ct(finished)) as (_, url):
        with pytest.raises(urllib.error.HTTPError) as caught:
            picture(url, **change)
        assert caught.value.code == 400


def test_damage_is_told_as_a_reason_without_a_path(workspace):
    series = ct(workspace)
    folder = open_volumes(workspace)[series].folder
    with serving(workspace, series) as (_, url):
        for shard in (folder / "0" / "c").rglob("*"):
            if shard.is_file():
                shard.unlink()
        with pytest.raises(urllib.error.HTTPError) as caught:
            picture(url)
        told = json.loads(caught.value.read())
    assert (caught.value.code, told["error"]) == (409, "MISSING")
    assert str(workspace) not in json.dumps(told)


def test_a_series_with_a_volume_alone_has_one_picture(workspace):
    home = Workspace.open(workspace)
    series = ct(workspace)
    rows = home.catalog.certificates()
    assert any(row.series == series for row in rows)
    with home.catalog.engine.begin() as connection:
        connection.exec_driver_sql("update series set codes_version = null, state = 'ingested'")
    with serving(home, series) as (server, url):
        assert "has no codes" in server.page.decode()
        assert picture(url)[0].shape == home.catalog.one(series).shape[1:]
        with pytest.raises(urllib.error.HTTPError):
            picture(url, tier="codes")


def test_what_cannot_be_shown_is_refused(finished):
    with pytest.raises(StoreError, match="NOT_FOUND"):
        make_server(finished, "f" * 32)
    with serving(finished, ct(finished)) as (server, _), pytest.raises(ConfigError, match="BAD_USAGE"):
        make_server(finished, ct(finished), server.server_port)


L, P, S = np.eye(3)


@pytest.mark.parametrize(
    ("z", "y", "x"),
    [(S, P, L), (-S, P, L), (S, -P, -L), (L, P, -S), (P, -S, L), (S + 0.3 * P, P - 0.3 * S, L)],
    ids=["axial", "feet last", "turned", "sagittal", "coronal", "oblique"],
)
def test_left_is_right_and_up_is_up_however_it_was_scanned(z, y, x):
    shape = (5, 6, 7)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([2 * z, y, 3 * x], axis=1)
    geometry = Geometry(shape, tuple(map(tuple, matrix)))
    grid = np.moveaxis(np.indices(shape), 0, -1) @ matrix[:3, :3].T  # (L, P, S) in mm of every voxel
    for name, right, down in (("axial", L, P), ("coronal", L, -S), ("sagittal", P, -S)):
        plane = planes_of(geometry)[name]
        cut = [slice(None)] * 3
        cut[plane.axis] = slice(1, 2)
        shown = plane.lay(grid[tuple(cut)])
        assert shown.shape == (shape[plane.rows], shape[plane.columns], 3)
        assert (np.diff(shown @ right, axis=1) > 0).all() and (np.diff(shown @ down, axis=0) > 0).all()


def test_colour_time_and_inverted_pictures(tmp_path, monkeypatch):
    """Axes tczyx, slopes per slice, and MONOCHROME1, without the detour over a catalog."""
    rng = np.random.default_rng(0)
    colour = Volume(
        rng.integers(0, 255, (2, 3, 4, 5, 6), np.uint8), "tczyx", Geometry.pixels((4, 5, 6)), "PICTURE", units="rgb",
        photometric="RGB", frames=({}, {}),
    )  # fmt: skip
    slopes = tuple(float(number) for number in range(1, 9))
    timed = Volume(
        rng.integers(-9, 9, (2, 4, 5, 6), np.int16), "tzyx", Geometry.pixels((4, 5, 6)), "PT", frames=({}, {}),
        slope=slopes, intercept=(0.0,) * 8, photometric="MONOCHROME1",
    )  # fmt: skip
    for volume in (colour, timed):
        series = stored(volume, tmp_path / volume.modality, monkeypatch)
        for t in (0, 1):
            asked = {"tier": "volume", "plane": "coronal", "index": 3, "t": t, "window": "0,100"}
            found = draw(series, Wanted.parse({key: str(value) for key, value in asked.items()}, series))
            pixels = np.asarray(Image.open(io.BytesIO(found.png)))
            shown = windowed(volume.values()[t, ..., ::-1, 3, :], 0, 100)
            if volume is timed:
                np.testing.assert_allclose(pixels, 255 - shown.astype(int), atol=1)
            else:
                np.testing.assert_array_equal(pixels, np.moveaxis(shown, 0, -1))


def stored(volume: Volume, root, monkeypatch) -> Series:
    series = object.__new__(Series)
    volume_store.write_folder(volume, root)
    series.volume = volume_store.StoredVolume(root)
    series.attributes, series.geometry = series.volume.attributes, series.volume.geometry
    series.planes, series.axes, series.timepoints = planes_of(series.geometry), volume.axes, volume.timepoints
    series.levels, series._kept, series._keeping = 0, slices.OrderedDict(), threading.Lock()
    return series


def test_a_long_series_is_shown_while_it_is_decoded(finished, monkeypatch):
    """Nothing waits for a whole series: what is not decoded yet is grey, and counted."""
    monkeypatch.setattr(slices, "STEP", 2)
    monkeypatch.setattr(slices, "PATIENCE_S", -1.0)
    series = Series(Workspace.open(finished), ct(finished))
    depth = series.geometry.shape[0]
    wanted = Wanted("codes", "coronal", 4, 0, None, 40.0, 400.0, 1.0)
    left = [draw(series, wanted).missing for _ in range(depth)]
    assert left[0] == depth - 2 and left[-1] == 0 and left == sorted(left, reverse=True)
    assert draw(series, Wanted("codes", "axial", depth - 1, 0, None, 40.0, 400.0, 1.0)).missing == 0

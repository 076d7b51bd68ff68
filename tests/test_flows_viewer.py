"""The viewer: who it answers, that its pictures are the volume and its codes, and where up and left are."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from conftest import QUICK

import archive.volumes as volume_store
from archive import Geometry, Volume, open_volumes
from archive.errors import ConfigError, StoreError
from archive.planes import planes_of
from archive.workspace import Workspace
from flows import slices
from flows.encode import encode
from flows.slices import Series, Wanted
from flows.tiers import Tier
from flows.viewer import make_server
from model.decoded import open_decoded


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
    asked = {"token": token, "tier": "volume", "plane": "axial", "index": 0, **query}
    while True:
        with urllib.request.urlopen(f"http://{urlsplit(url).netloc}/slice?{urlencode(asked)}", timeout=60) as answer:
            headers = dict(answer.headers)
            values = np.frombuffer(answer.read(), np.dtype(headers["X-Type"]).newbyteorder("<"))
            if float(headers["X-Share"]) == 1:
                return values.reshape([int(size) for size in headers["X-Shape"].split(",")]), headers


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
    about = json.loads(re.search(r'<script id="about"[^>]*>(.*)</script>', page)[1])
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
            ("/slice?tier=volume&plane=axial&index=0", {}, 403),
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


def test_slices_are_the_volume_and_its_codes(finished):
    series = ct(finished)
    original = open_volumes(finished)[series].read().values()
    decoded = open_decoded(finished)[series].read().values()
    first = open_decoded(finished, levels=1)[series].read().values()
    with serving(finished, series) as (_, url):
        for array, query in (
            (original, {"tier": "volume"}),
            (decoded, {"tier": "codes"}),
            (first, {"tier": "codes", "levels": 1}),
        ):
            for name, index, shown in (
                ("axial", 2, array[2]),
                ("coronal", 7, array[::-1, 7]),  # S on top, and z goes up
                ("sagittal", 7, array[::-1, :, 7]),
            ):
                found, headers = picture(url, plane=name, index=index, **query)
                assert headers["X-Type"] == "float32" and headers["Content-Type"] == "application/octet-stream"
                np.testing.assert_array_equal(found, shown, err_msg=f"{query} {name}")


def test_the_bounded_layer_is_shown_where_there_is_one(workspace):
    """It is what a reader is given, and needs no network."""
    series = ct(workspace)
    encode.fn(workspace=str(workspace), series=[series], settings=[*QUICK, "gate.max_error=3"])
    original = open_volumes(workspace)[series].read().values()
    with serving(workspace, series) as (server, url):
        assert server.series.bounded and server.series.about()["bound"] == 3
        given, _ = picture(url, tier="codes", plane="coronal", index=7)
        asked, _ = picture(url, tier="codes", plane="coronal", index=7, levels="bounded")
        coarse, _ = picture(url, tier="codes", plane="coronal", index=7, levels=server.series.levels)
    np.testing.assert_array_equal(given, asked)
    assert 0 < np.abs(given - original[::-1, 7]).max() <= 3 < np.abs(coarse - original[::-1, 7]).max()


@pytest.mark.parametrize(
    "change",
    [{"tier": "secret"}, {"tier": "difference"}, {"plane": "oblique"}, {"index": 999}, {"index": -1},
     {"index": "one"}, {"levels": 9}, {"levels": 0}, {"levels": "bounded"}, {"levels": "all"}, {"t": 1}],
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
        assert "has no codes yet" in server.page.decode()
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


def test_colour_time_and_slopes_per_slice(tmp_path):
    """Axes tczyx as bytes, and PET's slopes per slice, without the detour over a catalog."""
    rng = np.random.default_rng(0)
    colour = Volume(
        rng.integers(0, 255, (2, 3, 4, 5, 6), np.uint8), "tczyx", Geometry.pixels((4, 5, 6)), "PICTURE", units="rgb",
        photometric="RGB", frames=({}, {}),
    )  # fmt: skip
    slopes = tuple(float(number) for number in range(1, 9))
    timed = Volume(
        rng.integers(-9, 9, (2, 4, 5, 6), np.int16), "tzyx", Geometry.pixels((4, 5, 6)), "PT", frames=({}, {}),
        slope=slopes, intercept=(0.0,) * 8,
    )  # fmt: skip
    for volume in (colour, timed):
        series = stored(volume, tmp_path / volume.modality)
        for t in (0, 1):
            asked = {"tier": "volume", "plane": "coronal", "index": "3", "t": str(t)}
            found = series.look(Wanted.parse(asked, series))
            shown = volume.values()[t, ..., ::-1, 3, :]
            np.testing.assert_array_equal(found.values, np.moveaxis(shown, 0, -1) if volume is colour else shown)
            assert found.values.dtype == (np.uint8 if volume is colour else np.float32)


def stored(volume: Volume, root) -> Series:
    series = object.__new__(Series)
    volume_store.write_folder(volume, root)
    series._codes, series.outdated = None, False
    series._show(volume_store.StoredVolume(root))
    return series


def test_a_long_series_is_shown_while_it_is_read(finished, monkeypatch):
    """Nothing waits for a whole series: what is not read yet is NaN, and its share is told; nothing is read twice."""
    monkeypatch.setattr(slices, "PATIENCE_S", -1.0)
    series = Series(Workspace.open(finished), ct(finished))
    depth = series.geometry.shape[0]
    read: list[object] = []
    whole = Tier.of_volume(series.volume)

    def one(t, region):
        read.append(region)
        return series.volume.array[region]

    monkeypatch.setattr(
        series, "_tier", lambda *_: replace(whole, cuts=([*range(depth + 1)], *whole.cuts[1:]), read=one)
    )
    wanted = Wanted("volume", "coronal", 4)
    found = [series.look(wanted) for _ in range(depth)]
    assert [picture.share for picture in found] == pytest.approx([(at + 1) / depth for at in range(depth)])
    assert [np.isnan(picture.values).all(axis=1).sum() for picture in found] == [*range(depth - 1, -1, -1)]
    assert series.look(Wanted("volume", "axial", depth - 1)).share == 1 and len(read) == depth


def test_the_parts_of_a_decoder_cover_every_voxel_once(finished):
    decoded = open_decoded(finished)[ct(finished)]
    for cuts, size in zip(decoded.cuts, decoded.shape, strict=True):
        assert cuts[0] == 0 and cuts[-1] == size and cuts == sorted(set(cuts))

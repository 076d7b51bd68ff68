"""The viewer in a real browser: linked cursor, levels, planes, zoom, keyboard; nothing leaves the machine."""

from __future__ import annotations

import threading
import time

import browsers
import numpy as np
import pytest

from archive import open_volumes
from archive.workspace import Workspace
from flows.viewer import make_server
from model.decoded import open_decoded

SETTLED = """[...document.querySelectorAll('.wait')].every(n => n.hidden)
    && Object.values(tiers).every(t => !t.busy && t.now())"""


@pytest.fixture(scope="module")
def url(finished):
    series = Workspace.open(finished).catalog.series(group="ct")[0].series
    server, found = make_server(finished, series)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def settle(page) -> None:
    """Until every picture is there; polled from outside, as the page's policy allows no eval."""
    deadline = time.monotonic() + 60
    while not page.evaluate(SETTLED):
        assert time.monotonic() < deadline, page.locator(".wait").all_inner_texts()
        time.sleep(0.02)


def pressed(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    settle(page)


def reading(page) -> list[float]:
    """Original, decoded and difference at the cursor."""
    texts = page.locator("figcaption output").all_inner_texts()
    return [float(text.removesuffix(" HU").replace("−", "-")) for text in texts]


def test_a_person_compares_a_series_by_mouse_and_by_keyboard(page, url, finished):
    series = Workspace.open(finished).catalog.series(group="ct")[0].series
    original = open_volumes(finished)[series].read().values()
    decoded = open_decoded(finished)[series].read().values()
    foreign, errors = browsers.watched(page)
    page.goto(url)
    settle(page)
    z, y, x = (size // 2 for size in original.shape)

    def holds(*at: int) -> None:
        values = [original[at], decoded[at], decoded[at] - original[at]]
        assert reading(page) == pytest.approx([float(f"{value:.4g}") for value in values])

    holds(z, y, x)
    pressed(page, "Shift+ArrowRight", "Shift+ArrowDown", "ArrowRight")
    holds(z + 1, y + 1, x + 1)
    pressed(page, "2")  # the plane opens where the cursor stands
    assert page.locator("#planes [aria-pressed=true]").inner_text() == "coronal"
    holds(z + 1, y + 1, x + 1)
    pressed(page, "1")

    box = page.locator(".stage[data-view=codes] .frame").bounding_box()
    column, row = 3, 5
    shape = original.shape
    page.mouse.move(
        box["x"] + (column + 0.5) / shape[2] * box["width"], box["y"] + (row + 0.5) / shape[1] * box["height"]
    )
    holds(z + 1, row, column)  # hovering over one shows all three
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(5, 5)
    holds(z + 1, row, column)
    assert f"z {z + 1}, y {row}, x {column}" in page.locator("#place").inner_text()

    wide = page.locator(".frame").first.bounding_box()["width"]
    pressed(page, "+")
    assert page.locator(".frame").first.bounding_box()["width"] == pytest.approx(1.5 * wide, rel=0.01)
    pressed(page, "0", "w", "i")
    assert page.locator("#preset option:checked").inner_text() == "lung"
    assert page.locator("#invert").get_attribute("aria-pressed") == "true"
    page.reload()  # all of it is in the address
    settle(page)
    holds(z + 1, row, column)
    assert page.locator("#preset option:checked").inner_text() == "lung"
    assert (foreign, errors) == ([], [])


def test_the_picture_is_the_window_of_the_values(page, url, finished):
    series = Workspace.open(finished).catalog.series(group="ct")[0].series
    values = open_volumes(finished)[series].read().values()
    page.goto(url)
    settle(page)
    drawn = page.evaluate(
        "(() => { const c = views[0].canvas; return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )
    shown = np.asarray(drawn, np.uint8).reshape(*values.shape[1:], 4)
    expected = np.clip((values[len(values) // 2] - 40 + 200) / 400, 0, 1) * 255
    assert np.abs(shown[..., 0] - expected).max() <= 0.51 and (shown[..., 3] == 255).all()


def test_the_page_has_no_barriers_and_fits_a_phone(page, url):
    page.goto(url)
    settle(page)
    assert browsers.barriers(page) == []
    pressed(page, "?")
    assert page.locator("dialog").is_visible() and browsers.barriers(page) == []
    pressed(page, "Escape")
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert browsers.barriers(page) == []


def test_the_page_says_when_the_viewer_has_ended(page, finished):
    series = Workspace.open(finished).catalog.series(group="ct")[0].series
    server, found = make_server(finished, series)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    page.goto(found)
    settle(page)
    server.shutdown()
    server.server_close()
    thread.join()
    page.keyboard.press("3")
    page.get_by_text("start voxbook view again").first.wait_for(timeout=30_000)
    time.sleep(0.5)  # longer than "reading…" is held back for: it must not take the message's place
    assert page.get_by_text("start voxbook view again").first.is_visible()

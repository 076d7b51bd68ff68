"""The report in a real browser: from a point to its figures and pictures, by mouse and by keyboard, without a request."""

from __future__ import annotations

import json
from pathlib import Path

import browsers
import pytest


@pytest.fixture(scope="module")
def report_html(finished, tmp_path_factory):
    """report.html of a copy of the finished workspace, with a gate that some series miss."""
    import shutil

    from flows.encode import encode
    from flows.report import report

    root = shutil.copytree(finished, tmp_path_factory.mktemp("reported") / "ws")
    encode.fn(workspace=str(root), group="ct", settings=["cluster=inline", "gate.min_psnr=90"])
    done = report.fn(workspace=str(root), settings=["cluster=inline"])
    return done.counts["report"]


def opened(page, path: str):
    foreign, errors = browsers.watched(page)
    page.goto(Path(path).as_uri())
    return foreign, errors


def test_the_worst_is_first_and_a_point_leads_to_its_figures(report_html, page):
    foreign, errors = opened(page, report_html)
    data = json.loads(page.locator("#data").text_content())
    worst = page.locator("figure").first
    assert "below the gate" in worst.inner_text() and "miss" in page.locator("h1").inner_text()
    assert all(
        page.locator("figure img").evaluate_all(
            "all => all.map(one => one.naturalWidth > 100 || !one.checkVisibility())"
        )
    )
    point = page.locator("svg[data-key=psnr] a").first
    point.click()
    name = point.get_attribute("data-series")
    detail = page.locator("#detail")
    assert detail.is_visible() and name in detail.inner_text()
    assert name in [row[0] for row in data["rows"]]
    page.keyboard.press("Escape")
    assert detail.is_hidden()
    assert foreign == [] and errors == []


def test_everything_is_reached_by_keyboard(report_html, page):
    opened(page, report_html)
    point = page.locator("svg[data-key=psnr] a").first
    point.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.series") == point.get_attribute("data-series")


def test_series_are_found_by_what_is_typed(report_html, page):
    opened(page, report_html)
    page.fill("#find", "mr")
    groups = page.locator("#table tbody tr td:nth-child(2)").all_inner_texts()
    assert groups and set(groups) == {"mr"}
    page.fill("#find", "no such series")
    assert page.locator("#table tbody tr").count() == 0 and page.locator("#found").inner_text() == "0 of 0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_bars_anybody_and_nothing_is_wider_than_the_screen(report_html, browser, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    opened(page, report_html)
    assert browsers.barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_it_prints(report_html, page):
    opened(page, report_html)
    assert len(page.pdf(format="A4")) > 20_000

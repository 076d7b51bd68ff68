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


def test_a_click_on_a_point_of_each_plot_opens_the_series_that_is_drawn_there(report_html, page):
    opened(page, report_html)
    data = json.loads(page.locator("#data").text_content())
    column = {name: at for at, name in enumerate(data["columns"])}
    plots = page.locator("svg[data-key], svg[data-rate]")
    assert plots.count() >= 4
    for number in range(plots.count()):
        svg = plots.nth(number)
        key = svg.get_attribute("data-key") or "psnr"
        wanted = next(row for row in data["rows"] if row[column[key]] is not None)
        place = svg.evaluate(WHERE, [wanted[column["series"]], wanted, column])
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        page.mouse.click(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
        assert page.locator("#detail").is_visible(), key
        shown = page.locator("#detail b.id").inner_text()
        same = [row[column["series"]] for row in data["rows"] if row[column[key]] == wanted[column[key]]]
        assert shown in same, key
        page.keyboard.press("Escape")


# Where a series is drawn, as shares of the picture's width and height: of a named dot its middle, else by the scale.
WHERE = """(svg, [name, row, column]) => {
  const [, , wide, high] = svg.getAttribute("viewBox").split(" ").map(Number);
  const dot = svg.querySelector(`a[data-series="${name}"] circle`);
  if (dot) return [dot.cx.baseVal.value / wide, dot.cy.baseVal.value / high];
  const ends = svg.dataset.rate.split(" ").map(Number);
  const at = (value, [low, end, a, b]) => a + (value - low) / (end - low) * (b - a);
  return [at(row[column.bits_per_voxel_disk], ends) / wide, at(row[column.psnr], ends.slice(4)) / high];
}"""


def test_on_paper_nothing_is_folded(report_html, page):
    opened(page, report_html)
    folded = page.locator("details:not([open])").count()
    assert folded > 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded
    page.emulate_media(media="print")  # a reader without script
    assert page.locator("#record pre").first.is_visible()

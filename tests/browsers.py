"""Chromium for tests of pages: Debian's, through playwright; nothing is downloaded, and no request leaves the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome")
SERIOUS = ("serious", "critical")


def program() -> str | None:
    """Where the browser is; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright Browser without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In containers there is neither a sandbox for root nor a large /dev/shm.
        browser = playwright.chromium.launch(
            executable_path=program(), args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


def watched(page: Any) -> tuple[list[str], list[str]]:
    """Two lists that fill while a page lives: addresses asked for outside this machine, and errors of its scripts.

    Requests that would leave the machine are aborted; file:, data: and blob: stay on it.
    """
    foreign: list[str] = []
    errors: list[str] = []

    def decide(route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    page.route("**/*", decide)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    return foreign, errors


def barriers(page: Any) -> list[str]:
    """What axe-core finds serious or critical on a page, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{item['id']}: {item['help']}: {item['nodes'][0]['html'][:200]}" for item in found if item["impact"] in SERIOUS
    ]

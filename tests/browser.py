"""A headless Chromium that opens pages as a reader does, without any network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page, and everything that it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """What an element shows, on one line."""
        return " ".join(self.page.inner_text(selector).split())

    def texts(self, selector: str) -> list[str]:
        """What each of several elements shows."""
        return [" ".join(text.split()) for text in self.page.locator(selector).all_inner_texts()]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A running browser with an empty profile; skips the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    if not CHROMIUM.is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}: apt-get install chromium, or name another one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1200, "height": 900},
            accept_downloads=True,
        )
        try:
            yield context
        finally:
            context.close()


@contextmanager
def opened(context: Any, address: str, **looks: Any) -> Iterator[Opened]:
    """A page in a tab of its own; looks: of `emulate_media`, and width.

    The block fails where the page reports an error, breaks its policy, or asks for anything but itself.
    """
    page = context.new_page()
    seen = Opened(page)
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("request", lambda request: seen.asked.append(request.url))
    try:
        if width := looks.pop("width", None):
            page.set_viewport_size({"width": width, "height": 900})
        if looks:
            page.emulate_media(**looks)
        page.goto(address)
        yield seen
        assert seen.said == []
        assert {url.split("#")[0] for url in seen.asked if not url.startswith("blob:")} == {
            address.split("#")[0]
        }
    finally:
        page.close()

"""The page as a person uses it, in a real browser without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from dtc_jax.app.examples import product_path

pytest.importorskip("gradio", reason="Gradio is not installed (the extra `app`)")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (the extra `dev`)")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no Chromium: apt-get install chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 120_000
"""Milliseconds that anything may take on a busy machine."""


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail(NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(name="page")
def _page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(SECONDS)
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.goto(address)
    page.wait_for_selector("#scene canvas")
    yield page
    page.close()
    assert not [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))], "needs the network"


def shows(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_contain_text(text, timeout=SECONDS)


def paint(page: Any) -> None:
    """A stroke with the mouse over the middle of the scene."""
    canvas = page.locator("#scene .pixi-target").bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x - 40 + 10 * step, y + 4 * step)
    page.mouse.up()


def test_painting_placing_going_on_and_going_back(page: Any) -> None:
    playwright.expect(page.locator("#compare")).not_to_be_visible()
    # Another product and room, by upload.
    page.locator("#reference button[aria-label='Remove Image']").click()
    page.locator("#reference input[type=file]").set_input_files(str(product_path("mug")))
    page.get_by_label("Painted area").click()
    paint(page)
    page.locator("button#place").click()
    shows(page, "Done, with seed")
    first = page.locator("#compare img").nth(1).get_attribute("src")
    assert page.locator("#compare img").count() == 2
    assert page.evaluate("url => fetch(url).then(answer => answer.status)", first) == 200

    page.locator("button#use").click()
    shows(page, "The result is the scene now")
    playwright.expect(page.locator("button#undo")).to_have_text("Undo (1)")
    page.locator("button#place").click()
    error = page.locator(".toast-body.error")
    playwright.expect(error).to_contain_text("nothing is painted yet")
    assert "Traceback" not in error.inner_text()

    page.locator("button#undo").click()
    shows(page, "Back at the scene before")
    playwright.expect(page.locator("button#undo")).to_have_text("Undo")
    playwright.expect(page.locator("button#undo")).to_be_disabled()


def test_an_example_is_one_click_away(page: Any) -> None:
    playwright.expect(page.get_by_label("Mask image")).to_be_checked()
    page.locator("button#place").click()
    shows(page, "Done, with seed")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "scrolls sideways on a telephone"
    page.locator("#examples tbody tr").nth(2).click()
    playwright.expect(page.get_by_label("Mask image")).to_be_checked()
    page.locator("button#place").click()
    shows(page, "Done, with seed")
    assert page.locator("#gallery img").count() == 1
    page.wait_for_selector("#compare img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a result scrolls sideways on a telephone"

"""Screenshots of the page for its documentation, from its own examples: docs/images/app-*.png.

    python scripts/app_screenshots.py

Needs the extras `app` and `dev`, and Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SIZES = {"app-desktop": (1180, 1280), "app-phone": (390, 844)}
COLORS = 192
"""Of a palette: the files are small, and look the same."""


def main() -> int:
    """Serve the page, place two products, and take the pictures; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("error: no Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        from playwright.sync_api import expect, sync_playwright

        from dtc_jax.app.command import free_port, serve
        from dtc_jax.app.limits import Limits
        from dtc_jax.inference.pipeline import Pipeline
        from dtc_jax.inference.runtime import enable_compilation_cache

        enable_compilation_cache()
        served = serve(Pipeline.load(), Limits(), port=free_port("127.0.0.1", 0))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(120_000)
                page.goto(f"http://127.0.0.1:{served.server_port}")
                page.wait_for_selector("#scene canvas")
                page.get_by_text("Options").click()
                page.get_by_label("New seed each time").uncheck()
                page.get_by_text("Options").click()
                page.locator("button#place").click()
                expect(page.locator("#status")).to_contain_text("Done, with seed", timeout=120_000)
                page.wait_for_timeout(1500)
                _write(page.screenshot(full_page=name == "app-desktop"), IMAGES / f"{name}.png")
                page.close()
            browser.close()
        served.close()
    return 0


def _write(png: bytes, path: Path) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())

"""``python -m experiments.report.screenshot``: one section of a report as a picture, for pages that show no HTML."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from jsonargparse import auto_cli

from contracts import DataError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """Path of a Chromium: that of the environment variable ``CHROMIUM``, or one on the path.

    Raises:
        DataError: There is none.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise DataError(f"none of {', '.join(BROWSERS)} is installed; install one, or name it in CHROMIUM")
    return found


def screenshot(page: Path, section: str, to: Path, width: int = 1100, scale: float = 1.0) -> None:
    """Draw one section of a report.

    Args:
        page: The report, an HTML file.
        section: Heading of the section.
        to: PNG file to write.
        width: Width of the window in pixels.
        scale: Pixels of the picture for each of the page.

    Raises:
        DataError: No such section, or no browser.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # a container has no sandbox of its own; the page is ours
        chromium = play.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        opened = chromium.new_page(viewport={"width": width, "height": 900}, device_scale_factor=scale)
        opened.goto(page.absolute().as_uri())
        found = opened.locator("main > section", has=opened.locator("h2", has_text=section))
        if found.count() != 1:
            headings = ", ".join(opened.locator("main > section > h2").all_inner_texts())
            raise DataError(f"{page} has {found.count()} sections {section!r}; its sections are {headings}")
        # charts are drawn when they come into sight
        for chart in found.locator(".chart").all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg").first.wait_for()
        found.screenshot(path=str(to))
        chromium.close()


if __name__ == "__main__":
    auto_cli(screenshot, as_positional=False)

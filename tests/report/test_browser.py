"""The report in a browser: it opens from disk, shows its pictures and requests nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from medar.records import SYNTHESIS
from medar.report.run import SECTIONS, write_report

PICTURES = "[...document.images].map(one => [one.complete, one.naturalWidth, one.alt.length])"

BRIGHTNESS = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run, alone in a folder."""
    folder = tmp_path_factory.mktemp("alone")
    made = write_report(Path(shutil.copytree(finished, folder / "small")))
    return made.rename(folder / "moved.html")


def test_the_report_needs_no_other_files(chromium: Any, page: Path) -> None:
    browser = chromium.page
    browser.goto(page.as_uri())
    pictures = browser.evaluate(PICTURES)
    assert len(pictures) == 9
    assert all(done and width > 0 and alt > 0 for done, width, alt in pictures)
    assert browser.locator("h2").all_inner_texts() == [
        section.title for section in SECTIONS[SYNTHESIS]
    ]
    assert chromium.errors == []
    assert chromium.requests == [page.as_uri()]


def test_the_report_fits_every_screen_size_and_colour_scheme(chromium: Any, page: Path) -> None:
    browser = chromium.page
    charts = []
    for width in (360, 1400):
        for scheme in ("light", "dark"):
            browser.set_viewport_size({"width": width, "height": 800})
            browser.emulate_media(color_scheme=scheme)
            browser.goto(page.as_uri())
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert (browser.evaluate(BRIGHTNESS) > 127) == (scheme == "light")
            chart = browser.locator("img[src^='data:image/svg']").first
            charts.append(chart.screenshot())
    assert len(set(charts)) == 4  # they follow the width and the scheme
    assert chromium.errors == []

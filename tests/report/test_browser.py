"""The report in a browser: it opens from disk, shows its pictures and requests nothing."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.manifest import Manifest
from medar.records import SYNTHESIS
from medar.report.run import SECTIONS, write_report
from medar.volume.display import SOFT_TISSUE

PICTURES = "[...document.images].map(one => [one.complete, one.naturalWidth, one.alt.length])"

BRIGHTNESS = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run, alone in a folder."""
    folder = tmp_path_factory.mktemp("alone")
    made = write_report(Path(shutil.copytree(finished, folder / "small")))
    return made.rename(folder / "moved.html")


@pytest.fixture(scope="module")
def with_images(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose first case still has its image."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("images") / "small"))
    image = run.parent / "one.nii.gz"
    image.touch()
    path = run / "prepared" / "manifest.jsonl"
    cases = Manifest.load(path).cases
    first = replace(cases[0], images=(image,))
    Manifest(root=image.parent, source="MSD", cases=(first, *cases[1:])).save(path)
    return write_report(run)


def test_the_report_needs_no_other_files(chromium: Any, page: Path) -> None:
    browser = chromium.page
    browser.goto(page.as_uri())
    pictures = browser.evaluate(PICTURES)
    assert len(pictures) == 13
    assert all(done and width > 0 and alt > 0 for done, width, alt in pictures)
    assert browser.locator("h2").all_inner_texts() == [
        section.title for section in SECTIONS[SYNTHESIS]
    ]
    assert chromium.errors == []
    assert chromium.requests == [page.as_uri()]


def test_samples_are_sorted_by_any_column(chromium: Any, page: Path) -> None:
    browser = chromium.page
    browser.goto(page.as_uri())
    table = browser.locator("table.sortable")
    first = table.locator("tbody th")
    assert first.all_inner_texts()[0] == "sample_0000"
    distance = table.locator("thead button").nth(2)
    assert distance.inner_text() == "distance"
    distance.click()
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    distance.click()
    # By value: as text, 100 would stand between 20 and 3.
    assert table.locator("td:nth-child(5)").all_inner_texts() == ["100", "20.0", "3.00"]
    assert first.all_inner_texts()[0] == "sample_0002 (suspected copy)"
    table.locator("thead button").first.click()
    assert first.all_inner_texts()[0] == "sample_0000"
    assert table.locator("[aria-sort]").count() == 1
    assert chromium.errors == []


def shown(browser: Any, number: int = 0) -> Any:
    """Grey values (rows, columns) of a canvas."""
    script = """one => {
        const copy = document.createElement("canvas");
        [copy.width, copy.height] = [one.width, one.height];
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(one, 0, 0);
        const { data } = context.getImageData(0, 0, one.width, one.height);
        return [one.height, one.width, [...data]];
    }"""
    rows, columns, data = browser.locator("canvas").nth(number).evaluate(script)
    return np.array(data).reshape(rows, columns, 4)[:, :, 0]


def test_slices_scroll_along_every_plane(chromium: Any, page: Path, sample: Any) -> None:
    browser = chromium.page
    browser.goto(page.as_uri())
    figure = browser.locator(".stacks")
    figure.scroll_into_view_if_needed()
    # The policy of the page forbids wait_for_function. Canvases are 300 wide before they are drawn.
    for _ in range(200):
        if shown(browser, 2).shape == (4, 6):
            break
        browser.wait_for_timeout(50)
    grey = (sample - SOFT_TISSUE[0]) / 400 * 255
    output = figure.locator("output")
    for plane, slices, cut in (
        ("axial", 6, lambda k: grey[::-1, ::-1, k].T),
        ("coronal", 4, lambda k: grey[::-1, k, ::-1].T),
        ("sagittal", 6, lambda k: grey[::-1][k, :, ::-1].T),
    ):
        figure.get_by_role("button", name=plane).click()
        figure.locator(".grid").focus()
        for _ in range(slices):
            browser.keyboard.press("ArrowDown")
        for k in range(slices):
            assert output.inner_text() == f"{k + 1} of {slices}"
            np.testing.assert_allclose(shown(browser), cut(k), atol=8)
            browser.keyboard.press("ArrowUp")
    box = figure.locator("canvas").first.bounding_box()
    browser.mouse.move(box["x"] + 5, box["y"] + 5)
    browser.mouse.wheel(0, -100)
    browser.wait_for_timeout(100)
    assert output.inner_text() == "5 of 6"
    figure.locator("input").fill("0")
    assert output.inner_text() == "1 of 6"
    browser.mouse.dblclick(box["x"] + 5, box["y"] + 5)
    assert browser.locator(".stack.large").count() == 1
    assert chromium.errors == []


def test_commands_are_copied_or_at_least_shown(chromium: Any, with_images: Path) -> None:
    browser = chromium.page
    browser.goto(with_images.as_uri())
    browser.get_by_role("button", name="Compare").first.click()
    note = browser.locator(".copied")
    command = note.locator("code").inner_text()
    assert command.startswith("medar view /")
    assert command.endswith("one.nii.gz --modality CT")
    browser.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject('no'); }")
    browser.get_by_role("button", name="Compare").nth(1).click()
    assert note.inner_text().startswith("Run in a terminal: medar view")
    assert browser.evaluate("getSelection().toString()").startswith("medar view")
    assert chromium.errors == []


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


def test_captions_and_charts_stay_inside_a_phone(chromium: Any, page: Path) -> None:
    browser = chromium.page
    browser.set_viewport_size({"width": 390, "height": 800})
    browser.goto(page.as_uri())
    for part in (".caption", "figcaption", ".panels img", ".verdict", "nav"):
        for one in browser.locator(part).all():
            box = one.bounding_box()
            assert box is None or box["x"] + box["width"] <= 390, part
    # Names of rows stay in sight where the rest of a table is scrolled.
    table = browser.locator("#samples .scroll")
    table.evaluate("one => { one.scrollLeft = 200; }")
    assert table.evaluate("one => one.scrollLeft") > 0
    assert table.locator("tbody th").first.bounding_box()["x"] >= 0
    assert chromium.errors == []


def test_the_next_command_can_be_copied(chromium: Any, page: Path) -> None:
    browser = chromium.page
    browser.goto(page.as_uri())
    browser.get_by_role("button", name="Copy").click()
    shown = browser.locator(".verdict code").inner_text()
    assert browser.locator(".copied code").inner_text() == shown
    assert shown.startswith("medar run synthesis")
    assert chromium.errors == []

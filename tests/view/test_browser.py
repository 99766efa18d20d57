"""The page in a headless browser."""

import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medar.view.files import select_files
from medar.view.page import resources, self_contained
from medar.view.panels import make_panels
from medar.view.server import PageServer
from medar.volume import ReadOptions, read_volume

TURNED = {
    "ras": np.diag([2.0, 2.0, 2.0, 1.0]),
    "las": np.diag([-2.0, 2.0, 2.0, 1.0]),
    "pir": np.array([[0, 0, 2.0, 0], [-2.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]]),
    # Turned by 20 degrees about the long axis of the body, left-handed.
    "oblique": np.array([[-1.88, -0.68, 0, 0], [-0.68, 1.88, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]),
}
"""Affines of files."""


@pytest.fixture(params=["served", "one file"])
def opened(
    request: pytest.FixtureRequest, pair: tuple[Path, Path], chromium: Any, tmp_path: Path
) -> Iterator[Any]:
    """The loaded page of a real and a synthetic volume."""
    panels = make_panels(select_files(pair).volumes, ReadOptions(), names={2: "left", 300: "right"})
    if request.param == "one file":
        path = tmp_path / "page.html"
        path.write_text(self_contained(panels), encoding="utf-8")
        chromium.page.goto(path.as_uri())
        chromium.page.wait_for_selector("body[data-state=ready]")
        yield chromium
        return
    with PageServer(resources(panels)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            chromium.page.goto(server.url)
            chromium.page.wait_for_selector("body[data-state=ready]")
            yield chromium
        finally:
            server.shutdown()
            thread.join()


def pixels(page: Any, number: int) -> Any:
    """The picture of a panel (rows, columns, 3)."""
    picture = Image.open(BytesIO(page.locator("canvas").nth(number).screenshot()))
    return np.asarray(picture.convert("RGB"))


def state(page: Any) -> list[dict[str, Any]]:
    return page.evaluate("window.medar.panels")


def colours(page: Any, number: int) -> int:
    """The number of grey values and of colours in the picture of a panel."""
    return len(np.unique(pixels(page, number).reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_the_patient_right_is_on_the_image_left(chromium: Any, tmp_path: Path) -> None:
    """Axial planes of files in many orientations: white at the patient's right, grey in front."""
    import nibabel

    files = []
    for name, affine in TURNED.items():
        indices = np.moveaxis(np.indices((24, 24, 24)), 0, -1) - 11.5
        right, front, _ = np.moveaxis(indices @ affine[:3, :3].T, -1, 0)
        array = np.where(right > 6, 200, np.where((front > 6) & (right > -6), 100, 0))
        files.append(tmp_path / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), affine), files[-1])
    made = tmp_path / "page.html"
    made.write_text(
        self_contained(make_panels(select_files(files).volumes, ReadOptions())), "utf-8"
    )
    page = chromium.page
    page.goto(made.as_uri())
    page.wait_for_selector("body[data-state=ready]")
    page.keyboard.press("2")
    page.wait_for_timeout(200)
    for number, name in enumerate(TURNED):
        picture = pixels(page, number).min(axis=2)
        height, width = picture.shape
        assert np.nonzero(picture > 200)[1].mean() < 0.45 * width, name
        grey = (picture > 100) & (picture < 150)
        assert np.nonzero(grey)[0].mean() < 0.42 * height, name
    assert chromium.errors == []


@pytest.mark.slow
def test_a_click_moves_both_crosshairs(opened: Any, pair: tuple[Path, Path]) -> None:
    page = opened.page
    assert [panel["synthetic"] for panel in state(page)] == [False, True]
    assert page.locator(".mark").all_inner_texts() == ["synthetic"]
    assert min(colours(page, 0), colours(page, 1)) > 50
    before = state(page)
    box = page.locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.15 * box["height"])
    after = state(page)
    for old, new, path in zip(before, after, pair, strict=True):
        assert np.linalg.norm(np.subtract(old["mm"], new["mm"])) > 2
        volume = read_volume(path)
        index = (np.linalg.inv(volume.affine) @ [*new["mm"], 1.0])[:3]
        # The page's coordinates, voxel and value are those of the file.
        assert np.abs(index - new["voxel"]).max() <= 0.501
        assert new["value"] == volume.array[0][tuple(new["voxel"])]
    np.testing.assert_allclose(after[0]["mm"], after[1]["mm"], atol=0.05)
    assert opened.errors == []
    assert opened.outside == []
    assert all(address.startswith(("file://", "http://127.0.0.1")) for address in opened.requests)


@pytest.mark.slow
@pytest.mark.parametrize("opened", ["served"], indirect=True)
def test_linked_views_windows_labels_and_keys(opened: Any) -> None:
    page = opened.page
    start = state(page)
    page.keyboard.press("ArrowUp")
    assert state(page)[0]["voxel"][1] == start[0]["voxel"][1] + 1
    assert state(page)[1]["mm"][1] == pytest.approx(start[0]["mm"][1] + 1.0, abs=1e-3)
    page.locator("#link").select_option("off")
    page.keyboard.press("Escape")
    page.locator("canvas").first.focus()
    there = state(page)[1]["mm"]
    page.keyboard.press("PageUp")
    assert state(page)[1]["mm"] == there
    page.keyboard.press("r")
    assert page.evaluate("window.medar.link") == "mm"
    assert [panel["mm"] for panel in state(page)] == [panel["mm"] for panel in start]

    page.locator("input.black").first.fill("100")
    page.locator("input.black").first.press("Enter")
    assert [panel["window"][0] for panel in state(page)] == [100, 100]
    page.locator("input.black").first.fill("")
    page.locator("input.black").first.press("Enter")
    assert [panel["window"][0] for panel in state(page)] == [100, 100]
    assert page.locator("input.black").first.input_value() == "100"
    page.locator("#same").uncheck()
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 180)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 60, box["y"] + 130, steps=1)
    page.mouse.up(button="right")
    low, high = 100, start[0]["window"][1]
    assert state(page)[0]["window"] == [low, high]
    # 50 pixels up: a quarter of the width more.
    raised = [low + (high - low) / 4, high + (high - low) / 4]
    assert state(page)[1]["window"] == pytest.approx(raised)
    page.locator("canvas").nth(1).dblclick()
    assert state(page)[1]["window"] == start[1]["window"]

    legend = page.locator("#legend button")
    assert [text.split()[:2] for text in legend.all_inner_texts()] == [
        ["2", "left"],
        ["300", "right"],
    ]
    coloured = colours(page, 1)
    legend.nth(0).click()
    legend.nth(1).click()
    assert colours(page, 1) != coloured
    assert opened.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("opened", ["served"], indirect=True)
def test_the_label_at_the_crosshair_is_displayed(opened: Any, label: Any) -> None:
    page = opened.page
    box = page.locator("canvas").nth(1).bounding_box()
    seen = set()
    for step in range(16):
        page.mouse.click(box["x"] + (0.04 + 0.03 * step) * box["width"], box["y"] + 180)
        shown = state(page)[1]
        assert shown["label"] == label[tuple(shown["voxel"])]
        named = page.locator(".readout .label").nth(1).inner_text()
        assert named == {0: "", 2: "left", 300: "right"}[shown["label"]]
        seen.add(named)
    assert seen == {"", "left", "right"}
    before = state(page)[1]
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 220, steps=2)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert state(page)[1] == before
    # The second volume reaches farther to the front than the first.
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    assert [panel["outside"] for panel in state(page)] == [True, False]
    assert "outside" in page.locator(".message").first.inner_text()
    assert page.locator(".readout .value").first.inner_text() == ""
    assert opened.errors == []

"""The page in a headless browser."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medar.view.cases import CasePages
from medar.view.files import VolumeFile, select_files
from medar.view.page import Resource, resources, self_contained
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
    with serving(resources(panels)) as url:
        chromium.page.goto(url)
        chromium.page.wait_for_selector("body[data-state=ready]")
        yield chromium


@contextmanager
def serving(pages: Mapping[str, Resource]) -> Iterator[str]:
    """Serve pages; gives the URL of the first."""
    with PageServer(pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.url
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


@pytest.mark.slow
@pytest.mark.parametrize("opened", ["served"], indirect=True)
def test_a_picture_of_the_view_is_saved(opened: Any) -> None:
    page = opened.page
    with page.expect_download() as first:
        page.keyboard.press("s")
    assert first.value.suggested_filename == "real.png"
    with Image.open(first.value.path()) as picture:
        saved = np.asarray(picture.convert("RGB"))
    boxes = [page.locator("canvas").nth(k).bounding_box() for k in (0, 1)]
    left = page.locator("main").bounding_box()
    for number, box in enumerate(boxes):
        # The middle of each panel is what its canvas shows.
        x, y = int(box["x"] - left["x"]) + 40, int(box["y"] - left["y"]) + 40
        wide, high = int(box["width"]) - 80, int(box["height"]) - 80
        part = saved[y : y + high, x : x + wide].astype(int)
        canvas = pixels(page, number)[40 : 40 + high, 40 : 40 + wide].astype(int)
        assert np.abs(part - canvas).mean() < 3
        assert canvas.std() > 10
    # Labels in the legend, with their colours.
    below = saved[int(boxes[0]["height"]) + 60 :].reshape(-1, 3)
    for colour in ([94, 173, 235], [170, 180, 190]):
        assert (below == colour).all(axis=1).sum() > 50
    # The mark of a synthetic volume.
    assert (saved[:32] == [227, 168, 87]).all(axis=2).sum() > 10
    page.locator("#legend button").nth(0).click()
    page.locator("#legend button").nth(1).click()
    with page.expect_download() as second:
        page.get_by_role("button", name="Save", exact=True).click()
    with Image.open(second.value.path()) as shorter:
        assert shorter.height < saved.shape[0]
    assert opened.errors == []


ANISOTROPIC = np.diag([0.7, 1.1, 4.0]) * 3
TILT = np.array([[0.94, -0.34, 0], [0.34, 0.94, 0], [0, 0, 1.0]])
TILT /= np.linalg.norm(TILT, axis=0)
AFFINES = {
    "anisotropic": ANISOTROPIC,
    "oblique": TILT @ ANISOTROPIC,
    # Sheared as by a tilted gantry: lengths in voxels times spacing would be wrong.
    "sheared": np.array([[1, 0, 0], [0, 1, 0.4], [0, 0, 1.0]]) @ ANISOTROPIC,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*sheared:medar.errors.GeometryWarning")
@pytest.mark.parametrize("name", list(AFFINES))
def test_two_clicks_measure_a_distance(name: str, chromium: Any, tmp_path: Path) -> None:
    import nibabel

    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AFFINES[name], (5.0, -7.0, 11.0)
    path = tmp_path / "v.nii.gz"
    array = np.arange(20 * 24 * 10, dtype=np.int16).reshape(20, 24, 10)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    panels = make_panels([VolumeFile(image=path)], ReadOptions())
    file = tmp_path / "page.html"
    file.write_text(self_contained(panels), encoding="utf-8")
    page = chromium.page
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-state=ready]")
    page.keyboard.press("2")
    box = page.locator("canvas").bounding_box()

    def click(x: float, y: float) -> Any:
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return state(page)[0]

    assert click(0.4, 0.4)["distance"] is None  # not measuring yet
    page.get_by_role("button", name="Measure").click()
    one = click(0.45, 0.35)
    assert page.locator(".distance").inner_text() == "click a second point"
    page.keyboard.press("PageUp")
    page.keyboard.press("PageUp")
    other = click(0.56, 0.62)
    # Voxels are whole numbers at their centres: a point is up to half of one from there.
    exact = np.linalg.norm(np.subtract(other["mm"], one["mm"]))
    step = np.subtract(other["voxel"], one["voxel"])
    assert abs(step[2]) == 2
    near = np.linalg.norm(read_volume(path).affine[:3, :3] @ step)
    assert other["distance"] == pytest.approx(exact)
    assert other["distance"] == pytest.approx(near, abs=np.linalg.norm(panels[0].facts["spacing"]))
    assert near > 15
    assert page.locator(".distance").inner_text() == f"{exact:.1f} mm"
    assert page.locator(".marks line").count() == 0  # not in one slice
    click(0.45, 0.35)
    click(0.56, 0.62)
    line = page.locator(".marks line")
    ends = line.evaluate("one => ['x1', 'y1', 'x2', 'y2'].map(n => Number(one.getAttribute(n)))")
    scale = page.locator("canvas").evaluate("one => one.width / one.clientWidth")
    wide, high = box["width"] * scale, box["height"] * scale
    np.testing.assert_allclose(
        ends, [0.45 * wide, 0.35 * high, 0.56 * wide, 0.62 * high], atol=2 * scale
    )
    page.keyboard.press("Escape")
    assert page.locator(".marks circle").count() == 0
    assert state(page)[0]["distance"] is None
    assert chromium.errors == []


@pytest.mark.slow
def test_cases_of_a_folder_are_stepped_through(chromium: Any, write: Any, label: Any) -> None:
    hostile = "<img src=x onerror=alert(1)>" + "y" * 200
    files = [
        VolumeFile(image=write("a.nii.gz"), label=write("l.nii.gz", label)),
        VolumeFile(image=write("b.nii.gz"), label=write("m.nii.gz", label)),
        VolumeFile(image=write("missing.nii.gz").with_name("gone.nii.gz")),
    ]
    pages = CasePages(
        ["a", hostile, "c"], lambda k: make_panels([files[k]], ReadOptions(), names={2: "liver"})
    )
    page = chromium.page
    with serving(pages) as url:
        page.goto(url)
        page.wait_for_selector("body[data-state=ready]")
        assert page.locator("#count").inner_text() == "1 of 3"
        assert page.locator("header").bounding_box()["height"] < 50  # one row
        assert page.locator("#previous").is_disabled()
        page.keyboard.press("2")
        page.keyboard.press("n")
        page.wait_for_url("**/case-2")
        page.wait_for_selector("body[data-state=ready]")
        assert state(page)[0]["title"] == "b.nii.gz"
        assert page.evaluate("window.medar.view") == 0  # still axial
        assert page.locator("#case option").nth(1).inner_text() == hostile
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert "2 liver" in page.locator("#legend button").first.inner_text()
        page.get_by_role("button", name="Next case").click()
        page.wait_for_url("**/case-3")
        assert "gone.nii.gz" in page.locator(".error").inner_text()
        assert page.locator("#next").is_disabled()
        page.keyboard.press("n")
        page.keyboard.press("p")
        page.wait_for_url("**/case-2")
        page.locator("#case").select_option("0")
        page.wait_for_url("**/case-1")
        page.wait_for_selector("body[data-state=ready]")
        assert state(page)[0]["title"] == "a.nii.gz"
    assert chromium.errors == []
    assert chromium.outside == []


@pytest.mark.parametrize("opened", ["one file"], indirect=True)
def test_the_page_fits_a_phone(opened: Any) -> None:
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in (".title .facts", "header select", "header button"):
        for one in page.locator(part).all():
            assert one.evaluate("one => one.scrollWidth <= one.clientWidth"), part
    page.keyboard.press("?")
    assert page.locator("#help").evaluate("one => one.scrollTop") == 0
    assert page.locator("#help h2").first.is_visible()

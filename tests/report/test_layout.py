"""Legends beside curves, names that fit their place, label tables as wide as the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from medar.evaluation.segmentation.report import LabelReport, ModelReport
from medar.evaluation.segmentation.worst import Slice, WorstCase
from medar.report.blocks import Report, Section
from medar.report.charts import Bars, Curve, Panel, bar_chart, line_chart
from medar.report.montages import contact_sheet, save_worst_cases
from medar.report.orthoslices import save_orthoslices
from medar.report.render import to_html
from medar.report.sections.segmentation import MAX_COLUMNS, _lowest_cases, by_label
from medar.volume import Volume

LONG = "a_name_that_is_far_too_long_for_the_place_that_it_has_in_a_picture"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be saved, drawn but not written."""
    saved: list[Figure] = []

    def spy(figure: Figure, file: Any, **_: Any) -> None:
        saved.append(figure)
        figure.draw_without_rendering()
        if hasattr(file, "write"):
            file.write("<svg></svg>")

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def inside(figure: Figure, box: Any) -> bool:
    whole = figure.bbox
    return bool(
        box.x0 >= whole.x0 - 1
        and box.x1 <= whole.x1 + 1
        and box.y0 >= whole.y0 - 1
        and box.y1 <= whole.y1 + 1
    )


def test_legends_cover_neither_curves_nor_labels(figures: list[Figure]) -> None:
    points = [(0, 1), (100, 2)]
    curves = [Curve(name, points) for name in ("training", "validation", "code frequencies only")]
    line_chart([Panel("one", curves), Panel("two", curves[:1]), Panel("three", curves[:2])])
    line_chart([Panel("long", [Curve(LONG, points), Curve(LONG, points), Curve("", points)])])
    bar_chart([Bars("bars", ["1", "2"], [1, 2], [2, 3], ("generator", LONG[:22]), "scale")])
    bar_chart([Bars("bars", ["1x1x1", "12x12x12"], [1, 2], [2, 3], ("a", "b"), "grid")])
    assert [ax.get_legend() is not None for figure in figures for ax in figure.axes] == [
        True, False, True, True, True, True,
    ]  # fmt: skip
    for figure in figures:
        for legend in [ax.get_legend() for ax in figure.axes if ax.get_legend() is not None]:
            box = legend.get_window_extent()
            assert inside(figure, box)
            for ax in figure.axes:
                assert not box.overlaps(ax.bbox)
            assert not box.overlaps(legend.axes.xaxis.label.get_window_extent())
    heights = [figure.axes[0].bbox.height for figure in figures[:3]]
    assert max(heights) - min(heights) <= 2


def volume(side: int = 8) -> Volume:
    array = np.random.default_rng(0).normal(size=(1, side, side, side)).astype(np.float32)
    return Volume(array=array, affine=np.eye(4))


def test_titles_of_a_contact_sheet_do_not_overlap(figures: list[Figure], tmp_path: Path) -> None:
    names = [f"{k}_{LONG}" for k in range(4)]
    contact_sheet([volume()] * 4, tmp_path / "a.png", titles=names)
    heads = [ax for ax in figures[0].axes if ax.texts]
    boxes = [ax.texts[0].get_window_extent() for ax in heads]
    assert len(boxes) == 4
    assert [ax.texts[0].get_text()[0] for ax in heads] == ["0", "1", "2", "3"]
    for one, ax in zip(boxes, heads, strict=True):
        assert one.width <= ax.bbox.width + 1


def test_names_beside_worst_cases_fit(figures: list[Figure], tmp_path: Path) -> None:
    flat = [volume() for _ in range(3)]
    label = Volume(array=np.ones((1, 8, 8, 8), np.uint8), affine=np.eye(4))
    slices = tuple(Slice(axis=k, image=flat[k], truth=label, predicted=label) for k in range(3))
    case = WorstCase(name=LONG, dice=0.5, window=(0.0, 1.0), slices=slices)
    save_worst_cases(tmp_path / "a.png", [case, case])
    boxes = [
        ax.yaxis.label.get_window_extent()
        for ax in figures[0].axes
        if ax.yaxis.label.get_text().startswith("a_name")
    ]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    assert all(inside(figures[0], box) for box in boxes)


def test_names_of_many_labels_fit_below_slices(figures: list[Figure], tmp_path: Path) -> None:
    array = np.arange(8**3).reshape(1, 8, 8, 8) % 41
    names = {k: f"{k}_{LONG}" for k in range(1, 41)}
    label = Volume(array=array.astype(np.uint8), affine=np.eye(4))
    save_orthoslices(tmp_path / "a.png", [volume()], titles=[LONG * 3], label=label, names=names)
    (figure,) = figures
    (legend,) = figure.legends
    assert inside(figure, legend.get_window_extent())
    assert len(legend.get_texts()) == 40
    first, second, _ = figure.axes
    assert first.bbox.height > 100
    titles = [ax._left_title.get_window_extent() for ax in (first, second)]  # type: ignore[attr-defined]
    assert not titles[0].overlaps(titles[1])


def label_report(value: int) -> LabelReport:
    return LabelReport(
        value=value, cases=120, missed=3, false_positive=12, absent=0, unknown=0, dice=0.8123,
        dice_interval=(0.7891, 0.8345), hd95=123.456, hd95_interval=(101.2, 145.6), nsd=0.7,
        nsd_interval=(0.65, 0.75), volume=None,
    )  # fmt: skip


def test_tables_of_labels_fit_the_page(chromium: Any, tmp_path: Path) -> None:
    names = ["liver", "autochthonous_muscle_of_the_back_left", LONG]
    labels = {name: label_report(k) for k, name in enumerate(names)}
    model = ModelReport(
        name="m", dice_mean=None, dice_interval=None, hd95_mean=None, hd95_interval=None,
        nsd_mean=None, nsd_interval=None, labels=labels, calibration=None, cases=[],
    )  # fmt: skip
    many: dict[str, float | None] = {f"{LONG}_{k}": k / 20 for k in range(20)}
    lowest = _lowest_cases("m", list(many), [(LONG, many)])
    report = Report(
        title="t", subtitle="s", warnings=[], missing=[],
        sections=[Section("one", "One", [by_label(model)]), Section("two", "Two", [lowest])],
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(to_html(report), encoding="utf-8")
    page = chromium.page
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(path.as_uri())
    page.locator("details").evaluate("one => { one.open = true; }")
    for table in page.locator(".scroll").all():
        assert table.evaluate("one => one.scrollWidth <= one.clientWidth")
    assert page.locator("small").first.inner_text() == "[0.789, 0.835]"
    assert page.locator("tbody").nth(1).locator("td").nth(1).inner_text() == (
        f"{LONG}_0 0.000, {LONG}_1 0.050, {LONG}_2 0.100"
    )
    assert chromium.errors == []


def test_few_labels_have_a_column_each() -> None:
    dice: dict[str, float | None] = {str(k): 0.5 for k in range(MAX_COLUMNS)}
    table = _lowest_cases("m", list(dice), [("a", dice)])
    assert list(table.headings) == ["case", *dice]

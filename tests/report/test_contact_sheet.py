"""The contact sheet: three planes a volume, one display range, bands, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.report import generation
from medar.report.generation import COLUMNS, contact_sheet
from medar.volume import Volume


def volume(seed: int, *, modality: str | None = None, scale: float = 1.0) -> Volume:
    array = np.random.default_rng(seed).normal(size=(1, 5, 6, 7)).astype(np.float32)
    return Volume(array=scale * array, affine=np.diag([1.0, 1.0, 2.0, 1.0]), modality=modality)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    seen: list[Figure] = []
    save = generation.save_png

    def keep(figure: Figure, path: Path) -> None:
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(generation, "save_png", keep)
    return seen


def pictures(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_images()]


def said(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_real_volumes_lie_below_and_set_the_display_range(
    tmp_path: Path, figures: list[Figure]
) -> None:
    made = [volume(k, scale=9.0) for k in range(3)]
    contact_sheet(made, tmp_path / "x.png", real=[volume(8), volume(9)])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    drawn = pictures(figures[0])
    assert len(drawn) == 3 * (3 + 2)
    assert said(figures[0]) == ["0", "1", "2", "real 0", "real 1"]
    (window,) = {ax.get_images()[0].get_clim() for ax in drawn}
    assert -4 < window[0] < 0 < window[1] < 4
    rows = [ax.get_position().y0 for ax in drawn]
    assert rows == sorted(rows, reverse=True)


def test_the_planes_are_the_middle_ones(tmp_path: Path, figures: list[Figure]) -> None:
    one = volume(0)
    contact_sheet([one], tmp_path / "x.png")
    sagittal, coronal, axial = pictures(figures[0])
    for ax, cut in (
        (sagittal, one.array[0, 2]), (coronal, one.array[0, :, 3]), (axial, one.array[0, :, :, 3])
    ):  # fmt: skip
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), cut.T)
    # The patient's right is on the left of the picture.
    flipped = [ax.xaxis_inverted() for ax in (sagittal, coronal, axial)]
    assert flipped == [False, True, True]


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$x^{$", "\u809d\u81d3"]  # no formula; letters that the font has not
    contact_sheet([volume(0), volume(1)], tmp_path / "x.png", titles=names)
    assert said(figures[0]) == names


def test_many_volumes_go_on_below(tmp_path: Path, figures: list[Figure]) -> None:
    titles = [f"seed {k}" for k in range(COLUMNS + 2)]
    contact_sheet([volume(k) for k in range(COLUMNS + 2)], tmp_path / "x.png", titles=titles)
    assert len(pictures(figures[0])) == 3 * (COLUMNS + 2)
    assert said(figures[0]) == titles
    assert len({round(ax.get_position().y0, 6) for ax in pictures(figures[0])}) == 6


def test_ct_has_its_soft_tissue_window(tmp_path: Path, figures: list[Figure]) -> None:
    contact_sheet([volume(0, modality="CT", scale=500.0)], tmp_path / "x.png")
    assert pictures(figures[0])[0].get_images()[0].get_clim() == (-160, 240)


@pytest.mark.parametrize(
    ("name", "count", "message"), [("x.jpg", 1, "written as .png"), ("x.png", 0, "no volume")]
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, name: str, count: int, message: str
) -> None:
    with pytest.raises(MedarError, match=message):
        contact_sheet([volume(k) for k in range(count)], tmp_path / name)
    assert not list(tmp_path.iterdir())

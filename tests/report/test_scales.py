"""The preview of samples by scale: its rows and columns, batches, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.report import scales
from medar.report.scales import ROWS, ScalePreview
from medar.volume import Volume


def volume(seed: int) -> Volume:
    array = np.random.default_rng(seed).normal(size=(1, 5, 6, 7)).astype(np.float32)
    return Volume(array=array, affine=np.diag([1.0, 1.0, 2.0, 1.0]))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    seen: list[Figure] = []
    save = scales.save_png

    def keep(figure: Figure, path: Path) -> None:
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(scales, "save_png", keep)
    return seen


def titles(figure: Figure) -> list[str]:
    return [title for ax in figure.axes if (title := ax.get_title())]


def test_columns_grow_with_the_scales(tmp_path: Path, figures: list[Figure]) -> None:
    show = ScalePreview(tmp_path / "x.png")
    batches = [[volume(10 * k + place) for place in range(2)] for k in range(3)]
    for k, batch in enumerate(batches, 1):
        show(k, batch)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [len(figure.axes) for figure in figures] == [2, 4, 6]
    assert titles(figures[-1]) == ["1 scale", "2 scales", "3 scales"]
    pictures = [ax.get_images()[0] for ax in figures[-1].axes]
    for place, picture in enumerate(pictures):
        row, column = divmod(place, 3)
        np.testing.assert_array_equal(picture.get_array(), batches[column][row].array[0][:, 3].T)
    assert all(ax.xaxis_inverted() for ax in figures[-1].axes)  # the patient's right: left
    for row in (pictures[:3], pictures[3:]):
        assert len({picture.get_clim() for picture in row}) == 1


def test_another_batch_begins_anew(tmp_path: Path, figures: list[Figure]) -> None:
    show = ScalePreview(tmp_path / "x.png", plane="axial")
    for batch in ([volume(k) for k in range(ROWS + 3)], [volume(20)]):
        for k in (2, 3):
            show(k, batch)
    assert [len(figure.axes) for figure in figures] == [ROWS, 2 * ROWS, 1, 2]
    assert titles(figures[-1]) == ["2 scales", "3 scales"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"written as \.png"):
        ScalePreview(tmp_path / "x.jpg")
    with pytest.raises(MedarError, match="'oblique': allowed are sagittal"):
        ScalePreview(tmp_path / "x.png", plane="oblique")

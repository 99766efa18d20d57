"""Montages: contact sheets, previews by scale, reconstructions and worst cases."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.evaluation.reconstruction.cases import Example
from medar.evaluation.segmentation.worst import WorstCase, WorstCases, worst_case
from medar.report import montages
from medar.report.montages import (
    COLUMNS,
    PREDICTION,
    PREVIEW_ROWS,
    TRUTH,
    ScalePreview,
    contact_sheet,
    save_reconstructions,
    save_worst_cases,
)
from medar.volume import Volume


def volume(seed: int, *, modality: str | None = None, scale: float = 1.0) -> Volume:
    array = np.random.default_rng(seed).normal(size=(1, 5, 6, 7)).astype(np.float32)
    return Volume(array=scale * array, affine=np.diag([1.0, 1.0, 2.0, 1.0]), modality=modality)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = montages.save_png

    def spy(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(montages, "save_png", spy)
    return saved


def slices(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_images()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def titles(figure: Figure) -> list[str]:
    return [title for ax in figure.axes if (title := ax.get_title())]


def test_real_volumes_are_shown_below_and_set_the_display_range(
    tmp_path: Path, figures: list[Figure]
) -> None:
    generated = [volume(k, scale=9.0) for k in range(3)]
    contact_sheet(generated, tmp_path / "x.png", real=[volume(8), volume(9)])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    drawn = slices(figures[0])
    assert len(drawn) == 3 * (3 + 2)
    assert texts(figures[0]) == ["0", "1", "2", "real 0", "real 1"]
    (window,) = {ax.get_images()[0].get_clim() for ax in drawn}
    assert -4 < window[0] < 0 < window[1] < 4
    rows = [ax.get_position().y0 for ax in drawn]
    assert rows == sorted(rows, reverse=True)


def test_a_contact_sheet_shows_the_middle_slices(tmp_path: Path, figures: list[Figure]) -> None:
    sample = volume(0)
    contact_sheet([sample], tmp_path / "x.png")
    sagittal, coronal, axial = slices(figures[0])
    for ax, cut in (
        (sagittal, sample.array[0, 2]),
        (coronal, sample.array[0, :, 3]),
        (axial, sample.array[0, :, :, 3]),
    ):
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), cut.T)
    # The patient's right is on the left of the picture.
    flipped = [ax.xaxis_inverted() for ax in (sagittal, coronal, axial)]
    assert flipped == [False, True, True]


@pytest.mark.filterwarnings("error")
def test_titles_are_not_parsed(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$x^{$", "\u809d\u81d3"]  # no formula; letters that the font lacks
    contact_sheet([volume(0), volume(1)], tmp_path / "x.png", titles=names)
    assert texts(figures[0]) == names


def test_many_volumes_wrap_to_more_rows(tmp_path: Path, figures: list[Figure]) -> None:
    names = [f"seed {k}" for k in range(COLUMNS + 2)]
    contact_sheet([volume(k) for k in range(COLUMNS + 2)], tmp_path / "x.png", titles=names)
    assert len(slices(figures[0])) == 3 * (COLUMNS + 2)
    assert texts(figures[0]) == names
    assert len({round(ax.get_position().y0, 6) for ax in slices(figures[0])}) == 6


def test_ct_has_its_soft_tissue_window(tmp_path: Path, figures: list[Figure]) -> None:
    contact_sheet([volume(0, modality="CT", scale=500.0)], tmp_path / "x.png")
    assert slices(figures[0])[0].get_images()[0].get_clim() == (-160, 240)


@pytest.mark.parametrize(
    ("name", "count", "message"), [("x.jpg", 1, "written as .png"), ("x.png", 0, "no volume")]
)
def test_an_impossible_contact_sheet_is_refused(
    tmp_path: Path, name: str, count: int, message: str
) -> None:
    with pytest.raises(MedarError, match=message):
        contact_sheet([volume(k) for k in range(count)], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_preview_grows_by_a_column_per_scale(tmp_path: Path, figures: list[Figure]) -> None:
    show = ScalePreview(tmp_path / "x.png")
    batches = [[volume(10 * k + sample) for sample in range(2)] for k in range(3)]
    for k, batch in enumerate(batches, 1):
        show(k, batch)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [len(figure.axes) for figure in figures] == [2, 4, 6]
    assert titles(figures[-1]) == ["1 scale", "2 scales", "3 scales"]
    pictures = [ax.get_images()[0] for ax in figures[-1].axes]
    for index, picture in enumerate(pictures):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(picture.get_array(), batches[column][row].array[0][:, 3].T)
    assert all(ax.xaxis_inverted() for ax in figures[-1].axes)  # the patient's right: left
    for line in (pictures[:3], pictures[3:]):
        assert len({picture.get_clim() for picture in line}) == 1


def test_a_new_batch_starts_a_new_preview(tmp_path: Path, figures: list[Figure]) -> None:
    show = ScalePreview(tmp_path / "x.png", plane="axial")
    for batch in ([volume(k) for k in range(PREVIEW_ROWS + 3)], [volume(20)]):
        for k in (2, 3):
            show(k, batch)
    assert [len(figure.axes) for figure in figures] == [PREVIEW_ROWS, 2 * PREVIEW_ROWS, 1, 2]
    assert titles(figures[-1]) == ["2 scales", "3 scales"]


def test_an_impossible_preview_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"written as \.png"):
        ScalePreview(tmp_path / "x.jpg")
    with pytest.raises(MedarError, match="unknown plane 'oblique'; known: sagittal"):
        ScalePreview(tmp_path / "x.png", plane="oblique")


def example(name: str, scales: int) -> Example:
    prefixes = tuple(volume(k) for k in range(1, scales + 1))
    return Example(name=name, original=volume(0), prefixes=prefixes)


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_a_row_holds_original_prefixes_and_error(
    tmp_path: Path, figures: list[Figure], plane: str
) -> None:
    examples = [example("one", 3), example("two", 3)]
    save_reconstructions(tmp_path / "x.png", examples, plane=plane, unit="HU")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    pictures = slices(figures[0])
    assert len(pictures) == 2 * 5
    row = [ax.get_title() for ax in pictures[:5]]
    assert row == ["original", "1 scale", "2 scales", "all 3 scales", "error"]
    assert [ax.get_ylabel() for ax in pictures[::5]] == ["one", "two"]
    assert [ax.get_ylabel() for ax in figures[0].axes if ax not in pictures] == ["HU", "HU"]
    ranges = {ax.get_images()[0].get_clim() for ax in pictures[:4]}
    assert len(ranges) == 1
    low, high = pictures[4].get_images()[0].get_clim()
    assert low == -high


def test_the_error_is_reconstruction_minus_original(tmp_path: Path, figures: list[Figure]) -> None:
    sample = example("one", 1)
    save_reconstructions(tmp_path / "x.png", [sample])
    drawn = np.asarray(figures[0].axes[2].get_images()[0].get_array())
    error = (sample.prefixes[-1].array - sample.original.array)[0, :, :, 3]
    np.testing.assert_allclose(drawn, error.T, rtol=1e-6)
    assert figures[0].axes[2].xaxis_inverted()  # the patient's right is on the left
    assert figures[0].axes[1].get_title() == "reconstruction"


@pytest.mark.parametrize(
    ("name", "examples", "plane", "message"),
    [
        ("x.jpg", [example("one", 1)], "axial", "written as .png"),
        ("x.png", [], "axial", "no case to draw"),
        ("x.png", [example("one", 1)], "oblique", "unknown plane 'oblique'; known:"),
    ],
)
def test_impossible_reconstructions_are_refused(
    tmp_path: Path, name: str, examples: list[Example], plane: str, message: str
) -> None:
    with pytest.raises(MedarError, match=message):
        save_reconstructions(tmp_path / name, examples, plane=plane)
    assert not list(tmp_path.iterdir())


def worst_cases() -> list[WorstCase]:
    """One case: a box of 4 x 3 x 3 voxels, and a prediction shifted by one voxel to the right."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = np.random.default_rng(0).normal(size=(1, 14, 9, 8)).astype(np.float32)
    label = np.zeros((1, 14, 9, 8), np.uint8)
    label[:, 4:8, 3:6, 3:6] = 2
    worst = WorstCases()
    volumes = [Volume(array=array, affine=affine) for array in (image, label, np.roll(label, 1, 1))]
    worst.update(worst_case("one", *volumes, 0.75))
    return worst.kept


def test_outlines_follow_the_labels(tmp_path: Path, figures: list[Figure]) -> None:
    save_worst_cases(tmp_path / "x.png", worst_cases())
    axial = figures[0].axes[2]
    assert axial.xaxis_inverted(), "the patient's right is on the left"
    spans = {}
    for collection in axial.collections:
        corners = np.concatenate([path.vertices for path in collection.get_paths()])
        spans[to_hex(collection.get_edgecolor()[0])] = corners.min(axis=0), corners.max(axis=0)
    # Voxel centres lie at whole millimetres; an outline runs half a voxel around them.
    for colour, (low, high) in {TRUTH: (3.5, 7.5), PREDICTION: (4.5, 8.5)}.items():
        np.testing.assert_allclose(spans[colour][0], (low, 5), atol=1e-6)
        np.testing.assert_allclose(spans[colour][1], (high, 11), atol=1e-6)
    assert "Dice 0.750" in figures[0].axes[0].get_ylabel()


def test_impossible_worst_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="no case to draw"):
        save_worst_cases(tmp_path / "x.png", [])
    with pytest.raises(MedarError, match=r"written as \.png"):
        save_worst_cases(tmp_path / "x.jpg", worst_cases())

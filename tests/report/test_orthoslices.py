"""Orthogonal slices: correct orientation, with and without a label."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from medar.errors import MedarError
from medar.report import orthoslices
from medar.report.orthoslices import save_orthoslices
from medar.volume import Volume

AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])
AFFINE[:3, 3] = [-10.0, 20.0, -30.0]
BRIGHT = (8, 6, 5)
"""A voxel to the right of, in front of and above the middle of an (11, 9, 7) volume."""


def volume(index: tuple[int, int, int] = BRIGHT, modality: str | None = None) -> Volume:
    array = np.zeros((1, 11, 9, 7), np.float32)
    array[0][index] = 1
    return Volume(array=array, affine=AFFINE, modality=modality)


def labelled(value: int = 1) -> Volume:
    """A label at the bright voxel, so that all slices pass through it."""
    array = np.zeros((1, 11, 9, 7), np.uint8)
    array[0][BRIGHT] = value
    return Volume(array=array, affine=AFFINE)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be saved, drawn but not written."""
    saved: list[Figure] = []

    def spy(figure: Figure, *rest: Any, **options: Any) -> None:
        saved.append(figure)
        figure.draw_without_rendering()

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def seen_at(ax: Any) -> tuple[float, float]:
    """Position of the bright voxel in the picture: from (0, 0) at the lower left to (1, 1)."""
    image = ax.images[0]
    (row, column), (rows, columns) = np.argwhere(image.get_array() == 1)[0], image.get_array().shape
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    x = left + (column + 0.5) / columns * (right - left)
    y = bottom + (row + 0.5) / rows * (top - bottom)
    across, up = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))
    return float(across), float(up)


@pytest.mark.parametrize("label", [None, labelled()])
def test_the_patient_right_is_on_the_image_left(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch, label: Volume | None
) -> None:
    monkeypatch.setattr(orthoslices, "_centre", lambda *_: BRIGHT)
    save_orthoslices(tmp_path / "a.png", [volume(), volume()], titles=["a", "b"], label=label)
    axes = figures[0].axes
    assert [ax.get_title(loc="left") for ax in axes[1:3]] == ["coronal", "axial"]
    for row in (axes[:3], axes[3:]):
        sagittal, coronal, axial = (seen_at(ax) for ax in row)
        # 8 of 11 voxels to the right, 6 of 9 to the front, 5 of 7 up.
        assert sagittal == pytest.approx((6.5 / 9, 5.5 / 7))
        assert coronal == pytest.approx((1 - 8.5 / 11, 5.5 / 7))
        assert axial == pytest.approx((1 - 8.5 / 11, 6.5 / 9))
    if label is not None:
        for ax in axes[:3]:
            drawn, below = ax.images[1], ax.images[0]
            assert drawn.get_extent() == below.get_extent()
            assert np.array_equal(~np.ma.getmaskarray(drawn.get_array()), below.get_array() == 1)


@pytest.mark.parametrize("label", [None, labelled()])
def test_orientation_letters_and_scale_bar(
    tmp_path: Path, figures: list[Figure], label: Volume | None
) -> None:
    save_orthoslices(tmp_path / "a.png", [volume()], titles=["a"], label=label)
    letters = {
        ax.get_title(loc="left").split("\n")[-1]: [text.get_text() for text in ax.texts]
        for ax in figures[0].axes
    }
    # Left, right, top and bottom of each picture.
    assert letters == {
        "sagittal": ["P", "A", "S", "I"],
        "coronal": ["R", "L", "S", "I"],
        "axial": ["R", "L", "A", "P"],
    }
    sagittal, coronal, axial = figures[0].axes
    assert (sagittal.get_xlim(), sagittal.get_ylim()) == ((19.5, 28.5), (-31.5, -10.5))
    assert (coronal.get_xlim(), coronal.get_ylim()) == ((11, -11), (-31.5, -10.5))
    assert (axial.get_xlim(), axial.get_ylim()) == ((11, -11), (19.5, 28.5))
    assert all(ax.get_aspect() == 1 for ax in figures[0].axes)


def test_pixels_equal_the_voxels(tmp_path: Path) -> None:
    """In the saved picture the grey half, the patient's right, is on the left."""
    array = np.zeros((1, 12, 12, 12), np.float32)
    array[0, 6:] = 0.5
    image = Volume(array=array, affine=np.eye(4))
    save_orthoslices(tmp_path / "a.png", [image], titles=["a"], windows=[(0.0, 1.0)])
    pixels = imread(tmp_path / "a.png")[..., :3]
    third = pixels.shape[1] // 3
    for picture in (pixels[:, third : 2 * third], pixels[:, 2 * third :]):
        grey = np.argwhere((abs(picture - 0.5) < 0.02).all(axis=-1))[:, 1]
        black = np.argwhere((picture < 0.02).all(axis=-1))[:, 1]
        assert min(len(grey), len(black)) > 10_000
        assert grey.mean() + 100 < black.mean()


def test_up_to_twenty_labels_have_distinct_colours(tmp_path: Path, figures: list[Figure]) -> None:
    array = np.zeros((1, 11, 9, 7), np.uint8)
    array[0, :10, :2, 3] = np.arange(1, 21).reshape(10, 2)
    label = Volume(array=array, affine=AFFINE)
    save_orthoslices(tmp_path / "a.png", [volume()], titles=["a"], label=label, names={3: "liver"})
    (legend,) = figures[0].legends
    colours = {text.get_text(): patch.get_facecolor() for text, patch in zip(
        legend.get_texts(), legend.get_patches(), strict=True
    )}  # fmt: skip
    assert set(colours) == {"liver", *(str(v) for v in range(1, 21) if v != 3)}
    assert len(set(colours.values())) == 20
    # In the picture a label has the colour that the legend gives it.
    axial = next(ax for ax in figures[0].axes if ax.get_title(loc="left") == "axial")
    drawn = axial.images[1]
    for value, name in ((1, "1"), (3, "liver"), (20, "20")):
        x, y = np.argwhere(array[0, :, :, 3] == value)[0]
        shown = drawn.to_rgba(drawn.get_array())[y, x]
        assert tuple(shown[:3]) == pytest.approx(colours[name][:3], abs=0.01)


def test_slices_pass_through_the_label(tmp_path: Path, figures: list[Figure]) -> None:
    save_orthoslices(tmp_path / "a.png", [volume()], titles=["a"], label=labelled())
    assert all((ax.images[0].get_array() == 1).any() for ax in figures[0].axes)
    save_orthoslices(tmp_path / "b.png", [volume((5, 4, 3))], titles=["b"])
    assert all((ax.images[0].get_array() == 1).any() for ax in figures[1].axes)


def test_files_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_orthoslices(tmp_path / "new" / "a.png", [volume()], titles=["a"])
    before = (tmp_path / "new" / "a.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    def full(figure: Figure, file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(MedarError, match=r"a\.png: cannot be written \(No space left"):
        save_orthoslices(tmp_path / "new" / "a.png", [volume()], titles=["a"])
    assert (tmp_path / "new" / "a.png").read_bytes() == before
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_impossible_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"a\.jpg: pictures are written as \.png"):
        save_orthoslices(tmp_path / "a.jpg", [volume()], titles=["a"])
    small = Volume(array=np.zeros((1, 2, 2, 2), np.uint8), affine=AFFINE)
    with pytest.raises(MedarError, match="must have the same shape"):
        save_orthoslices(tmp_path / "a.png", [volume()], titles=["a"], label=small)
    assert not list(tmp_path.iterdir())

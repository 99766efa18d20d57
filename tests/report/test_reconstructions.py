"""The montage of reconstructions: its pictures, its bars, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.evaluation.examples import Example
from medar.report import reconstructions
from medar.report.reconstructions import save_reconstructions
from medar.volume import Volume


def example(name: str, scales: int, sides: tuple[int, int, int] = (6, 8, 10)) -> Example:
    def volume(seed: int) -> Volume:
        array = np.random.default_rng(seed).normal(size=(1, *sides)).astype(np.float32)
        return Volume(array=array, affine=np.diag([1.0, 1.0, 2.0, 1.0]))

    return Example(
        name=name, original=volume(0), prefixes=tuple(volume(k) for k in range(1, scales + 1))
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    seen: list[Figure] = []
    save = reconstructions.save_png

    def keep(figure: Figure, path: Path) -> None:
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(reconstructions, "save_png", keep)
    return seen


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_a_row_holds_original_prefixes_and_error(
    tmp_path: Path, figures: list[Figure], plane: str
) -> None:
    examples = [example("one", 3), example("two", 3)]
    save_reconstructions(tmp_path / "x.png", examples, plane=plane, unit="HU")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes
    pictures = [ax for ax in axes if ax.get_images()]
    assert len(pictures) == 2 * 5
    titles = [ax.get_title() for ax in pictures[:5]]
    assert titles == ["original", "1 scale", "2 scales", "all 3 scales", "error"]
    assert [ax.get_ylabel() for ax in pictures[::5]] == ["one", "two"]
    assert [ax.get_ylabel() for ax in axes if ax not in pictures] == ["HU", "HU"]
    ranges = {ax.get_images()[0].get_clim() for ax in pictures[:4]}
    assert len(ranges) == 1
    low, high = pictures[4].get_images()[0].get_clim()
    assert low == -high


def test_the_error_is_reconstruction_less_original(tmp_path: Path, figures: list[Figure]) -> None:
    one = example("one", 1)
    save_reconstructions(tmp_path / "x.png", [one])
    drawn = np.asarray(figures[0].axes[2].get_images()[0].get_array())
    apart = (one.prefixes[-1].array - one.original.array)[0, :, :, 5]
    np.testing.assert_allclose(drawn, apart.T, rtol=1e-6)
    assert figures[0].axes[2].xaxis_inverted()  # the patient's right is on the left
    assert figures[0].axes[1].get_title() == "reconstruction"


@pytest.mark.parametrize(
    ("name", "examples", "plane", "said"),
    [
        ("x.jpg", [example("one", 1)], "axial", "written as .png"),
        ("x.png", [], "axial", "no case to draw"),
        ("x.png", [example("one", 1)], "oblique", "plane 'oblique': allowed are"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, name: str, examples: list[Example], plane: str, said: str
) -> None:
    with pytest.raises(MedarError, match=said):
        save_reconstructions(tmp_path / name, examples, plane=plane)
    assert not list(tmp_path.iterdir())

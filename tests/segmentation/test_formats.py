"""Label maps in every format: the same labels in the same place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_segmenters import make_plan, make_segmenter, smooth

from medar.errors import MedarError
from medar.segmentation.files import segment_files
from medar.segmentation.sliding_window import PredictionSettings
from medar.volume import Volume, read_volume, write_nifti

PLAIN = PredictionSettings(mirrors=())
AFFINE = np.array([[-1.0, 0.1, 0, 4], [0.1, 1.0, 0, 5], [0, 0, 2, 6], [0, 0, 0, 1]])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A CT of 15x12x6 voxels in LAS."""
    volume = Volume.from_array(1000 * smooth(15, 12, 6), AFFINE)
    write_nifti(tmp_path / "in" / "x.nii", volume)
    write_nifti(tmp_path / "in" / "sub" / "y.nii.gz", volume)
    return tmp_path / "in" / "x.nii"


def segmented(path: Path, out: Path, **options: Any) -> list[Path]:
    model = make_segmenter(make_plan(spacing=(1.0, 1.0, 1.5)))
    made = []
    for _, result in segment_files(model, path, out, PLAIN, modality="CT", **options):
        assert isinstance(result, Path)
        made.append(result)
    return made


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_a_file_in_the_format_of_its_ending(image: Path, tmp_path: Path, ending: str) -> None:
    [first] = segmented(image, tmp_path / "a.nii.gz")
    [other] = segmented(image, tmp_path / f"b{ending}")
    a, b = read_volume(first, labels=True), read_volume(other, labels=True)
    assert set(np.unique(a.array)) > {0}
    assert np.array_equal(a.array, b.array)
    assert b.affine == pytest.approx(a.affine, abs=1e-5)
    assert a.provenance is not None
    assert b.provenance is not None
    assert b.provenance.grid.orientation == a.provenance.grid.orientation
    about = json.loads((tmp_path / "b.json").read_text())
    assert about["labels"] == {"0": "background", "3": "liver", "7": "spleen"}
    segmented(image, other)  # its own label maps are replaced


@pytest.mark.parametrize(
    ("format", "ending"),
    [(None, ".nii.gz"), ("nii", ".nii"), ("nii.gz", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha")],
)
def test_a_folder_in_one_format(image: Path, tmp_path: Path, format: Any, ending: str) -> None:
    made = segmented(image.parent, tmp_path / "out", format=format)
    assert {path.name for path in made} == {f"x{ending}", f"sub_y{ending}"}
    assert len(read_volume(made[0], labels=True).array) == 1
    assert segmented(image.parent, tmp_path / "out", format=format) == made


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_probabilities_are_nifti(image: Path, tmp_path: Path, ending: str) -> None:
    segmented(image, tmp_path / f"a{ending}", probabilities=True)
    probabilities = read_volume(tmp_path / "a_probabilities.nii.gz", channels=True)
    assert probabilities.channels == 3


@pytest.mark.parametrize("name", ["other.nrrd", "other.mha", "other.nii"])
def test_other_files_are_not_replaced(image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"NRRD0004\n# content: medar segment\ncontent: a scan\n\n")
    with pytest.raises(MedarError, match="was not written by medar segment"):
        segmented(image, tmp_path / name)


def test_format_and_ending_must_agree(image: Path, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"a\.mha: ends in \.mha, but the format is nrrd"):
        segmented(image, tmp_path / "a.mha", format="nrrd")
    with pytest.raises(MedarError, match=r"written as \.nii\.gz, \.nii, \.nrrd, \.mha; name such"):
        segmented(image, tmp_path / "a.png")
    with pytest.raises(MedarError, match="must be a folder"):
        segmented(image.parent, tmp_path / "a.mha")
    assert segmented(image, tmp_path / "a.mha", format="mha") == [tmp_path / "a.mha"]

"""Volumes of several channels through a network: one file each, nnU-Net's names, or one 4D file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_segmenters import make_plan, make_segmenter, smooth

from medar.data.plan import IntensityRule
from medar.errors import MedarError
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import PredictionSettings

RULE = IntensityRule(kind="window", low=-1.0, high=1.0)
PLAIN = PredictionSettings(mirrors=())


@pytest.fixture
def model() -> Segmenter:
    return make_segmenter(
        make_plan(channels=("T1", "T2"), intensity={"T1": RULE, "T2": RULE}), mirrors=()
    )


def write(path: Path, *channels: int, shift: float = 0.0) -> Path:
    """Write a volume of smooth noise; each channel has its own seed."""
    arrays = [smooth(16, 12, 8, seed=channel) for channel in channels]
    affine = np.eye(4)
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.stack(arrays, -1).squeeze(), affine).to_filename(path)
    return path


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_separate_channel_files_equal_one_multichannel_file(
    model: Segmenter, tmp_path: Path
) -> None:
    first = write(tmp_path / "in" / "a_0000.nii.gz", 0)
    second = write(tmp_path / "in" / "a_0001.nii.gz", 1)
    write(tmp_path / "in" / "b.nii.gz", 0, 1)
    found = dict(segment_files(model, tmp_path / "in", tmp_path / "out", PLAIN))
    assert list(found.values()) == [tmp_path / "out" / name for name in ("a.nii.gz", "b.nii.gz")]
    made = labels(tmp_path / "out" / "b.nii.gz")
    assert len(np.unique(made)) > 1
    assert np.array_equal(labels(tmp_path / "out" / "a.nii.gz"), made)
    for path in (first, second):
        target = tmp_path / f"{path.name[:6]}.nii.gz"
        list(segment_files(model, path, target, PLAIN))
        assert np.array_equal(labels(target), made)


def test_channels_are_ordered_by_their_number(model: Segmenter, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a_0001.nii.gz", 0)
    write(tmp_path / "in" / "a_0000.nii.gz", 1)
    other = write(tmp_path / "b.nii.gz", 1, 0)
    list(segment_files(model, tmp_path / "in", tmp_path / "out", PLAIN))
    list(segment_files(model, other, tmp_path / "other.nii.gz", PLAIN))
    assert np.array_equal(labels(tmp_path / "out" / "a.nii.gz"), labels(tmp_path / "other.nii.gz"))


def test_numbered_names_that_are_no_channels_are_volumes(model: Segmenter, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path / "in" / f"case_{number:04}.nii.gz", 0, 1)
    found = dict(segment_files(model, tmp_path / "in", tmp_path / "out", PLAIN))
    assert {path.name for path in found.values() if isinstance(path, Path)} == {
        "case_0001.nii.gz", "case_0002.nii.gz", "case_0003.nii.gz"
    }  # fmt: skip


def test_a_missing_channel_and_another_grid_are_refused(model: Segmenter, tmp_path: Path) -> None:
    alone = write(tmp_path / "a_0000.nii.gz", 0)
    with pytest.raises(MedarError, match=r"1 channel; the plan has 2 \(T1, T2\); give it all"):
        list(segment_files(model, alone, tmp_path / "out.nii.gz", PLAIN))
    write(tmp_path / "a_0001.nii.gz", 1, shift=3.0)
    with pytest.raises(MedarError, match=r"a_0001.nii.gz: its grid differs from that of a_0000"):
        list(segment_files(model, alone, tmp_path / "out.nii.gz", PLAIN))
    assert not (tmp_path / "out.nii.gz").exists()


def test_two_volumes_with_one_name_are_refused(model: Segmenter, tmp_path: Path) -> None:
    for name, channels in (("a_0000", (0,)), ("a_0001", (1,)), ("a", (0, 1))):
        write(tmp_path / "in" / f"{name}.nii.gz", *channels)
    with pytest.raises(MedarError, match="two volumes are named 'a'; rename one of them"):
        list(segment_files(model, tmp_path / "in", tmp_path / "out", PLAIN))

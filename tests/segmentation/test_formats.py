"""Label maps in every format: the same labels in the same place."""

import json
from pathlib import Path
from typing import Any

import crashing
import numpy as np
import pydicom
import pytest
from dicom_files import write_classic, write_enhanced
from small_segmenters import make_plan, make_segmenter, smooth

from medar.errors import MedarError
from medar.segmentation.files import segment_files
from medar.segmentation.prediction import segment
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


@pytest.mark.parametrize("kind", ["crash", "defect"])
def test_a_volume_that_ends_its_reader_is_set_aside(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The others are segmented, in this process."""
    stack = np.random.default_rng(0).integers(-900, 900, (6, 20, 24)).astype(np.int16)
    write_classic(tmp_path / "in" / "bad", stack)
    if kind == "crash":
        monkeypatch.setattr("medar.volume.dicom.read_pixels", crashing.pixels_or_crash)
    else:
        monkeypatch.setattr("medar.volume.dicom.without_inversion", None)
    model = make_segmenter(make_plan(spacing=(1.0, 1.0, 1.5)))
    found = dict(segment_files(model, tmp_path / "in", tmp_path / "out", PLAIN, modality="CT"))
    errors = {name: str(one) for name, one in found.items() if isinstance(one, MedarError)}
    assert list(errors) == [str(tmp_path / "in" / "bad")]
    [message] = errors.values()
    assert ("bad/" in message and "SIGSEGV" in message) or "unexpected TypeError" in message
    assert "\n" not in message
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        "x.nii.gz",
        "sub_y.nii.gz",
    }


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


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of a tilted CT in a classic and in an enhanced series, and of a NIfTI file."""
    stack = (1000 * smooth(12, 16, 16)).astype(np.int16)
    step = (0.0, 0.5, 2.0)
    write_classic(tmp_path / "in" / "classic", stack, step=step)
    write_enhanced(tmp_path / "in" / "multi" / "a.dcm", stack, step=step, order=range(11, -1, -1))
    write_nifti(tmp_path / "in" / "z.nii", Volume.from_array(1000 * smooth(9, 9, 9), AFFINE))
    return tmp_path / "in"


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.filterwarnings("ignore::medar.errors.RangeWarning")
def test_dicom_seg(scans: Path, tmp_path: Path) -> None:
    model = make_segmenter(make_plan(spacing=(1.0, 1.0, 1.5)))
    found = dict(segment_files(model, scans, tmp_path / "out", PLAIN, modality="CT", format="seg"))
    refused = found.pop(str(scans / "z.nii"))
    assert "z.nii: not DICOM" in str(refused)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"classic.dcm", "classic.json", "multi.dcm", "multi.json"}
    expected: Any = segment(model, read_volume(scans / "classic"), PLAIN).array
    for name in ("classic", "multi"):
        seg = pydicom.dcmread(tmp_path / "out" / f"{name}.dcm")
        assert [one.SegmentLabel for one in seg.SegmentSequence] == ["liver", "spleen"]
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
        sizes = [0, 0]
        for frame, own in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
            number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            sizes[number - 1] += int(frame.sum())
        assert sizes == [(expected == 3).sum(), (expected == 7).sum()]
    out = tmp_path / "out" / "classic.dcm"
    assert dict(segment_files(model, scans / "classic", out, PLAIN)) == {
        str(scans / "classic"): out
    }


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.filterwarnings("ignore::medar.errors.RangeWarning")
def test_probabilities_beside_dicom_seg(scans: Path, tmp_path: Path) -> None:
    model = make_segmenter(make_plan(spacing=(1.0, 1.0, 1.5)))
    out = tmp_path / "a.dcm"
    list(segment_files(model, scans / "classic", out, PLAIN, probabilities=True))
    assert {path.name for path in tmp_path.glob("a*")} == {
        "a.dcm", "a.json", "a_probabilities.nii.gz",
    }  # fmt: skip


def test_dicom_seg_without_highdicom(scans: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("medar.volume.dicom_seg.find_spec", lambda name: None)
    for path, out, format in (
        (scans / "classic", tmp_path / "a.dcm", None),
        (scans, tmp_path / "out", "seg"),
    ):
        with pytest.raises(MedarError, match=r"DICOM SEG needs .*pip install 'medar\[dicom\]'"):
            segmented(path, out, format=format)
    assert not (tmp_path / "out").exists()


def test_slices_are_not_replaced(scans: Path) -> None:
    slice_ = scans / "classic" / "000.dcm"
    before = slice_.read_bytes()
    with pytest.raises(MedarError, match=r"000\.dcm: exists and was not written by medar segment"):
        segmented(scans / "classic", slice_)
    assert slice_.read_bytes() == before


def test_format_and_ending_must_agree(image: Path, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"a\.mha: ends in \.mha, but the format is nrrd"):
        segmented(image, tmp_path / "a.mha", format="nrrd")
    with pytest.raises(
        MedarError, match=r"written as \.nii\.gz, \.nii, \.nrrd, \.mha, \.dcm; name such"
    ):
        segmented(image, tmp_path / "a.png")
    with pytest.raises(MedarError, match="must be a folder"):
        segmented(image.parent, tmp_path / "a.mha")
    assert segmented(image, tmp_path / "a.mha", format="mha") == [tmp_path / "a.mha"]

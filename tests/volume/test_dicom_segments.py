"""DICOM segmentations as label maps: on the grid of their image or on their own, or refused."""

import sys
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import segmentation, write_classic, write_enhanced
from dicom_scans import GEOMETRIES, NAMES, ORDER, SOURCES, STACK, classic, label_of, multi

from medar.errors import MedarError, OffGridError
from medar.volume import ReadOptions, Volume, files_of, load_volume, read_header, read_volume
from medar.volume.dicom_seg import write_seg
from medar.volume.dicom_segments import segment_names

pytestmark = pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
MASK = np.zeros((6, 10, 12), np.uint8)
MASK[1, 2:5, 3:9], MASK[2, 2:6, 3:7], MASK[4, 6:8, 8:11] = 1, 2, 1
PAIR = ["liver", "tumour"]


def on_image(path, image):
    """A segmentation on the grid of an image, as an array, and its header."""
    header = read_header(path, labels=True, image=image.provenance)
    label = load_volume(header, ReadOptions(), labels=True)
    assert np.array_equal(label.affine, image.affine)
    assert label.shape == image.shape
    return label.array[0], header


def expected(planes):
    """Label values of axial planes as a RAS+ array."""
    return planes.transpose(2, 1, 0)[::-1, ::-1]


def saved(path, made):
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_medar_writes_comes_back(tmp_path, source, geometry):
    """Also where planes without a label are left out, and numbers differ from label values."""
    image = read_volume(source(tmp_path / "s", **GEOMETRIES[geometry]))
    label = label_of(image)
    write_seg(tmp_path / "seg.dcm", label, NAMES, model="abc")
    array, header = on_image(tmp_path / "seg.dcm", image)
    assert header.segments == {1: "kidney_left", 2: "ptv56", 3: "tumour"}
    assert header.notes == ()
    assert np.array_equal(np.array([0, 3, 7, 9])[array], label.array[0])
    own = read_volume(tmp_path / "seg.dcm", labels=True)
    inside = np.argwhere(own.array[0])
    moved = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine) @ own.affine, inside))
    assert np.array_equal(own.array[0][tuple(inside.T)], array[tuple(moved.astype(int).T)])
    assert len(inside) == np.count_nonzero(array)


@pytest.mark.parametrize("type_", ["BINARY", "LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("omitted", [True, False])
def test_every_type(tmp_path, type_, omitted):
    folder = classic(tmp_path / "s")
    masks = np.stack([MASK == 1, MASK == 2], axis=-1).astype(float)
    planes = masks if type_ == "FRACTIONAL" else MASK
    made = segmentation(folder, planes, PAIR, type_, omit_empty_frames=omitted)
    array, header = on_image(saved(tmp_path / "seg.dcm", made), read_volume(folder))
    assert np.array_equal(array, expected(MASK))
    assert header.segments == {1: "liver", 2: "tumour"}
    assert header.grid.shape == (12, 10, 6)


def test_label_maps_of_compressed_frames(tmp_path):
    folder = multi(tmp_path / "s")
    made = segmentation(
        folder, MASK[ORDER], PAIR, "LABELMAP", transfer_syntax_uid=pydicom.uid.RLELossless
    )
    array, _ = on_image(saved(tmp_path / "seg.dcm", made), read_volume(folder))
    assert np.array_equal(array, expected(MASK))


def test_fractions_are_refused(tmp_path):
    folder = classic(tmp_path / "s")
    made = segmentation(folder, (MASK == 1) * 0.4, PAIR[:1], "FRACTIONAL")
    path = saved(tmp_path / "seg.dcm", made)
    with pytest.raises(MedarError, match=r"fractional segmentation \(0\.40 in segment 1 \(liver"):
        on_image(path, read_volume(folder))


def test_overlapping_segments_are_refused(tmp_path):
    folder = classic(tmp_path / "s")
    both = np.stack([MASK == 1, MASK > 0], axis=-1).astype(np.uint8)
    path = saved(tmp_path / "seg.dcm", segmentation(folder, both, PAIR))
    message = r"segments 1 \(liver\) and 2 \(tumour\) overlap, but a label map has one value"
    with pytest.raises(MedarError, match=message):
        on_image(path, read_volume(folder))


def test_the_image_may_be_converted(tmp_path):
    """A NIfTI file of the series, with its axes in any order and direction."""
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    image = read_volume(folder)
    for axes, signs in product(permutations(range(3)), product([1, -1], repeat=3)):
        change = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
        turned = nib.Nifti1Image(image.array[0], image.affine).as_reoriented(change)
        nib.save(turned, tmp_path / "a.nii")
        array, _ = on_image(path, read_volume(tmp_path / "a.nii"))
        assert np.array_equal(array, expected(MASK))


def test_an_image_elsewhere_is_refused(tmp_path):
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    image = read_volume(folder)
    affine = image.affine.copy()
    affine[2, 3] += 1.0
    cases = {
        "1 mm away from voxels": (image.array, affine),
        r"lies beyond .*, of 12 x 10 x 4 voxels": (image.array[..., :4], image.affine),
        "mm away from voxels of": (image.array, image.affine @ np.diag([2, 1, 1, 1])),
    }
    for message, (array, where) in cases.items():
        nib.save(nib.Nifti1Image(array[0], where), tmp_path / "a.nii")
        with pytest.raises(OffGridError, match=message) as caught:
            on_image(path, read_volume(tmp_path / "a.nii"))
        assert "take the image that it was drawn on" in str(caught.value)


def test_part_of_a_slice(tmp_path):
    """Frames smaller than the slices lie where their positions say."""
    folder = write_classic(tmp_path / "s", STACK)
    part = write_classic(tmp_path / "part", STACK[:, 2:8, 3:11])
    for one in map(pydicom.dcmread, sorted(part.iterdir())):
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x + 3 * 0.5, y + 2 * 0.75, z]
        one.save_as(one.filename)
    path = saved(tmp_path / "seg.dcm", segmentation(part, MASK[:, 2:8, 3:11], PAIR))
    array, _ = on_image(path, read_volume(folder))
    assert np.array_equal(array, expected(MASK))


@pytest.mark.parametrize("frame_of_reference", [True, False])
def test_another_series(tmp_path, frame_of_reference):
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    other = {} if frame_of_reference else {"FrameOfReferenceUID": "1.9.9"}
    image = read_volume(write_classic(tmp_path / "o", STACK, SeriesInstanceUID="1.9", **other))
    if frame_of_reference:
        array, header = on_image(path, image)
        assert np.array_equal(array, expected(MASK))
        assert header.notes == (
            "refers to series 1.2.3.4; the image is another of the same frame of reference",
        )
        return
    with pytest.raises(MedarError, match=r"refers to series 1\.2\.3\.4 .* is series 1\.9 in 1\.9"):
        on_image(path, image)


def test_planes_without_a_frame_are_not_guessed(tmp_path):
    folder = classic(tmp_path / "s")
    made = segmentation(folder, MASK, PAIR)
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5
    own = read_volume(saved(tmp_path / "seg.dcm", made), labels=True)
    assert np.array_equal(own.array[0], expected(MASK)[..., 1:5])
    del measures.SpacingBetweenSlices
    saved(tmp_path / "seg.dcm", made)
    with pytest.raises(MedarError, match=r"no SpacingBetweenSlices\); give it as the label map"):
        read_volume(tmp_path / "seg.dcm", labels=True)
    array, _ = on_image(tmp_path / "seg.dcm", read_volume(folder))
    assert np.array_equal(array, expected(MASK))


def test_a_single_plane(tmp_path):
    folder = classic(tmp_path / "s")
    made = segmentation(folder, MASK * (np.arange(6) == 2)[:, None, None], PAIR)
    path = saved(tmp_path / "seg.dcm", made)
    array, _ = on_image(path, read_volume(folder))
    assert np.array_equal(np.unique(np.nonzero(array)[2]), [2])
    assert read_volume(path, labels=True).shape == (12, 10, 1)
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    with pytest.raises(MedarError, match="do not say where those without a frame lie"):
        read_volume(saved(path, made), labels=True)


def test_names_are_printable(tmp_path):
    folder = classic(tmp_path / "s")
    made = segmentation(folder, MASK, ["Läsion 1", "x"])
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SegmentSequence[1].SegmentLabel = "a\x1b[31m  b"
    assert segment_names(saved(tmp_path / "seg.dcm", made)) == {1: "Läsion 1", 2: "a_[31m b"}
    made.SegmentSequence[1].SegmentLabel = ""
    assert segment_names(saved(tmp_path / "seg.dcm", made))[2] == "segment 2"


def renumber(made):
    made.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[
        0
    ].ReferencedSegmentNumber = 5


def repeat(made):
    first, second = made.PerFrameFunctionalGroupsSequence[:2]
    for name in ("PlanePositionSequence", "SegmentIdentificationSequence"):
        setattr(second, name, getattr(first, name))


def lose_pixels(made):
    made.PixelData = made.PixelData[:4]


def lose_position(made):
    del made.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda made: made.pop("SegmentSequence"), "no SegmentSequence"),
        (lambda made: setattr(made, "SegmentationType", "OTHER"), "SegmentationType must be BIN"),
        (renumber, "ReferencedSegmentNumber must be one of 1, 2, got '5'"),
        (repeat, "frame 2: the same position as frame 1, of the same segment"),
        (lose_pixels, "its pixels cannot be read"),
        (lose_position, "ImagePositionPatient must hold 3 numbers"),
        (lambda made: setattr(made, "NumberOfFrames", 9), "damaged: NumberOfFrames is 9"),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    folder = classic(tmp_path / "s")
    made = segmentation(folder, MASK, PAIR)
    damage(made)
    with pytest.raises(MedarError, match=message) as caught:
        on_image(saved(tmp_path / "seg.dcm", made), read_volume(folder))
    assert "\n" not in str(caught.value)


def test_a_damaged_value_is_one_line(tmp_path):
    """pydicom decodes a value only when it is used."""
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    content = path.read_bytes()
    tag = b"\x62\x00\x05\x00LO"
    assert tag in content
    path.write_bytes(content.replace(tag, tag[:4] + b"QQ"))
    for read in (segment_names, lambda path: on_image(path, read_volume(folder))):
        with pytest.raises(MedarError, match=r"seg\.dcm: damaged \(.*\)$") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_folder_of_one_segmentation(tmp_path):
    folder = classic(tmp_path / "s")
    (tmp_path / "seg").mkdir()
    made = segmentation(folder, MASK, PAIR)
    saved(tmp_path / "seg" / "1.dcm", made)
    array, _ = on_image(tmp_path / "seg", read_volume(folder))
    assert np.array_equal(array, expected(MASK))
    saved(tmp_path / "seg" / "2.dcm", made)
    with pytest.raises(MedarError, match=r"2 segmentations, such as 1\.dcm and 2\.dcm; name the f"):
        read_header(tmp_path / "seg", labels=True)


def test_it_is_no_image(tmp_path):
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    with pytest.raises(MedarError, match="not a scan; give the series of the scan, of which it"):
        read_volume(path)
    assert files_of(path) == (path,)


def test_pydicom_is_named(tmp_path, monkeypatch):
    folder = classic(tmp_path / "s")
    path = saved(tmp_path / "seg.dcm", segmentation(folder, MASK, PAIR))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MedarError, match=r"a DICOM segmentation, which needs .* 'medar\[dicom\]'"):
        read_header(path, labels=True)


def test_single_frame_files_and_other_labels(tmp_path):
    """What is no segmentation is read as before."""
    write_enhanced(tmp_path / "m" / "a.dcm", STACK)
    assert isinstance(read_volume(tmp_path / "m", labels=True), Volume)

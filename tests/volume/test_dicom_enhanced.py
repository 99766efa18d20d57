"""Enhanced multi-frame DICOM: the same volume as a classic series and as enhanced files."""

import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import (
    ENHANCED_CT,
    ENHANCED_MR,
    MR,
    compressed,
    enhanced,
    write_classic,
    write_enhanced,
)
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from medar.errors import GeometryWarning, MedarError
from medar.volume import read_header, read_volume

STACK = np.random.default_rng(0).integers(-1000, 3000, (6, 4, 5)).astype(np.int16)
LARGER = np.random.default_rng(1).integers(-1000, 3000, (6, 40, 50)).astype(np.int16)
"""ITK cannot write smaller images as JPEG 2000."""
TILTED = {"step": (0.0, 2.5 * np.tan(np.radians(15)), 2.5)}
OBLIQUE = {
    "orientation": (0.0, 0.8, -0.6, 1.0, 0.0, 0.0),
    "step": (0.0, -0.6 * 3, -0.8 * 3),
}
REVERSED = {"step": (0.0, 0.0, -2.5)}
PER_SLICE = {"rescale": [(1.5 + k, 10.0 * k) for k in range(6)]}
TEXTS = {"StackID": "12", "FrameAcquisitionDateTime": ["2001", "2002"]}
ORDERS = [None, [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]]


def refused(path, *fragments):
    with pytest.raises(MedarError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def assert_equal(path, other):
    """Both give the same grid, notes, type and voxels."""
    a, b = read_header(path), read_header(other)
    assert np.array_equal(a.grid.affine, b.grid.affine)
    assert a.grid.shape == b.grid.shape
    assert (a.dtype, a.modality, a.notes, a.format) == (b.dtype, b.modality, b.notes, b.format)
    assert np.array_equal(a.load(), b.load())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": [(1.0, -1024.0)] * 6},
        {"rescale": [(0.5, -1024.25)] * 6},
        PER_SLICE,
        TILTED,
        OBLIQUE,
        REVERSED,
        {**TILTED, **PER_SLICE},
        {"step": (0.0, 0.0, 3.3333)},
    ],
)
def test_it_equals_the_classic_series(tmp_path, options, order):
    classic = write_classic(tmp_path / "classic", STACK, **options)
    multi = write_enhanced(tmp_path / "multi" / "a.dcm", STACK, order=order, **options)
    assert_equal(multi, classic)
    assert_equal(multi.parent, classic)


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.parametrize("options", [{}, TILTED, OBLIQUE, REVERSED, PER_SLICE])
def test_frames_in_several_files(tmp_path, options):
    """One frame per file, or the frames of a series in two files that interleave."""
    classic = write_classic(tmp_path / "classic", STACK, **options)
    for k in range(6):
        instance = f"1.2.3.4.{k}"
        path = tmp_path / "single" / f"{5 - k}.dcm"
        write_enhanced(path, STACK, order=[k], instance=instance, **options)
    for k in range(2):
        instance = f"1.2.3.4.{k}"
        path = tmp_path / "two" / f"{k}.dcm"
        write_enhanced(path, STACK, order=[4 + k, k, 2 + k], instance=instance, **options)
    assert_equal(tmp_path / "single", classic)
    assert_equal(tmp_path / "single" / "3.dcm", classic)
    assert_equal(tmp_path / "two", classic)
    np.testing.assert_array_equal(read_volume(tmp_path / "two").array, read_volume(classic).array)


def test_mr_and_tilt(tmp_path):
    path = write_enhanced(tmp_path / "m" / "a.dcm", STACK, sop_class=ENHANCED_MR, **TILTED)
    with pytest.warns(GeometryWarning, match=re.escape("gantry tilt of 15.00 degrees")):
        volume = read_volume(path)
    assert volume.modality == "MR"
    assert volume.grid.is_sheared
    assert_equal(path, write_classic(tmp_path / "classic", STACK, sop_class=MR, **TILTED))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("unsigned", [False, True])
def test_compressed_frames(tmp_path, kind, unsigned):
    stack = (LARGER + 1000).astype(np.uint16) if unsigned else LARGER
    made = enhanced(stack, order=ORDERS[2], **PER_SLICE)
    if kind in ("JPEG", "JPEG2000"):
        compressed(made, kind, tmp_path)
    else:
        made.compress(kind, encoding_plugin="pyjpegls" if kind == JPEGLSLossless else "pydicom")
    assert made.file_meta.TransferSyntaxUID.is_compressed
    (tmp_path / "multi").mkdir()
    made.save_as(tmp_path / "multi" / "a.dcm", enforce_file_format=True)
    assert_equal(tmp_path / "multi", write_classic(tmp_path / "classic", stack, **PER_SLICE))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_other_encodings(tmp_path, syntax):
    made = enhanced(STACK, order=ORDERS[2])
    if syntax == ExplicitVRBigEndian:
        made.PixelData = STACK[ORDERS[2]].astype(">i2").tobytes()
    made.file_meta.TransferSyntaxUID = syntax
    (tmp_path / "multi").mkdir()
    made.save_as(tmp_path / "multi" / "a.dcm", enforce_file_format=True)
    assert_equal(tmp_path / "multi", write_classic(tmp_path / "classic", STACK))


def test_monochrome1_is_not_inverted(tmp_path):
    path = write_enhanced(
        tmp_path / "m" / "a.dcm", STACK, PhotometricInterpretation="MONOCHROME1", **PER_SLICE
    )
    assert_equal(path, write_classic(tmp_path / "classic", STACK, **PER_SLICE))


def test_a_frame_has_its_own_groups_before_the_shared_ones(tmp_path):
    made = enhanced(STACK, rescale=[(1.0, -1024.0)] * 6)
    own = Dataset()
    own.RescaleSlope, own.RescaleIntercept = "2", "5"
    made.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence = [own]
    (tmp_path / "multi").mkdir()
    made.save_as(tmp_path / "multi" / "a.dcm", enforce_file_format=True)
    rescale = [(1.0, -1024.0)] * 6
    rescale[2] = (2.0, 5.0)
    assert_equal(tmp_path / "multi", write_classic(tmp_path / "classic", STACK, rescale=rescale))


def test_every_group_may_be_of_the_frames(tmp_path):
    made = enhanced(STACK, rescale=[(2.0, -1024.0)] * 6, order=ORDERS[1])
    for groups in made.PerFrameFunctionalGroupsSequence:
        groups.update(made.SharedFunctionalGroupsSequence[0])
    del made.SharedFunctionalGroupsSequence
    (tmp_path / "multi").mkdir()
    made.save_as(tmp_path / "multi" / "a.dcm", enforce_file_format=True)
    classic = write_classic(tmp_path / "classic", STACK, rescale=[(2.0, -1024.0)] * 6)
    assert_equal(tmp_path / "multi", classic)


def test_a_frame_without_rescaling_among_others(tmp_path):
    made = enhanced(STACK, rescale=[(2.0 + k, -1024.0) for k in range(6)])
    del made.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "a.dcm frame 3: neither RescaleSlope nor RescaleIntercept", "frame 1")


@pytest.mark.parametrize("stored", [12, 10])
def test_bits_above_those_of_the_value_are_no_part_of_it(tmp_path, stored):
    """They hold overlays; a sign is the highest bit of the value."""
    values = STACK & (2**stored - 1)
    for signed in (0, 1):
        made = enhanced(values | (1 << stored), BitsStored=stored, HighBit=stored - 1)
        made.PixelRepresentation = signed
        made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        expected = values - (values >> (stored - 1) << stored if signed else 0)
        array = read_volume(tmp_path).array[0, ::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(array, expected)


def test_values_in_the_upper_bits_are_refused(tmp_path):
    made = enhanced((STACK & 0xFFF) << 4, BitsStored=12, HighBit=15)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "HighBit must be 11 for BitsStored 12, got 15", "export the series again")


def test_multi_frame_files_of_itk(tmp_path):
    """Secondary capture with functional groups."""
    stack = (STACK % 251).astype(np.uint8)
    written = sitk.GetImageFromArray(stack)
    written.SetSpacing((0.5, 0.75, 2.5))
    written.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(written, str(tmp_path / "a.dcm"))
    header = read_header(tmp_path)
    expected = np.diag([-0.5, -0.75, 2.5, 1.0])
    expected[:3, 3] = [-1, -2, 3]
    assert header.grid.affine == pytest.approx(expected)
    assert np.array_equal(header.load(), stack.transpose(2, 1, 0))


@pytest.mark.parametrize("order", [[0, 1, 3, 4, 5], [5, 3, 4, 1, 0]])
def test_gaps_are_refused(tmp_path, order):
    frames = (order.index(1) + 1, order.index(3) + 1)
    path = write_enhanced(tmp_path / "a.dcm", STACK, order=order)
    refused(
        path,
        "1 slice(s) missing after slice 2 of 5",
        f"between a.dcm frame {frames[0]} and a.dcm frame {frames[1]}",
    )


@pytest.mark.parametrize(
    ("sequence", "name", "message"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier 1 and 2"),
        ("MREchoSequence", "EffectiveEchoTime", "EchoTime 1.0 and 2.0"),
        ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue 1.0 and 2.0"),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime 1.0 and"),
        ("FrameContentSequence", "StackID", "StackID 1 and 2"),
        ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDateTime 2001 and 2002"),
        ("MRTimingAndRelatedParametersSequence", "FlipAngle", "FlipAngle 1.0 and 2.0"),
        ("MRAveragesSequence", "NumberOfAverages", "DimensionIndexValues 1\\1 and 1\\4"),
    ],
)
def test_several_volumes_in_a_file(tmp_path, sequence, name, message):
    made = enhanced(STACK, order=[0, 1, 2, 0, 1, 2], sop_class=ENHANCED_MR)
    for frame, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        items = groups.get(sequence) or [Dataset()]
        value = frame // 3 + 1
        setattr(items[0], name, TEXTS[name][frame // 3] if name in TEXTS else value)
        setattr(groups, sequence, items)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "3 slice(s) have the same position", "a.dcm frame 1 and a.dcm frame 4",
            message)  # fmt: skip


def test_stacks_of_other_orientation(tmp_path):
    made = enhanced(STACK)
    turned = Dataset()
    turned.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    made.PerFrameFunctionalGroupsSequence[4].PlaneOrientationSequence = [turned]
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "a.dcm frame 5: ImageOrientationPatient", "split the series")


def without(name):
    def remove(made):
        for groups in (
            *made.SharedFunctionalGroupsSequence,
            *made.PerFrameFunctionalGroupsSequence,
        ):
            if name in groups:
                del groups[name]

    return remove


def set_slope(made):
    made.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence = [Dataset()]
    made.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence[0].RescaleSlope = "0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("PlanePositionSequence"), "a.dcm frame 1: ImagePositionPatient must hold 3"),
        (without("PlaneOrientationSequence"), "frame 1: ImageOrientationPatient must hold 6"),
        (without("PixelMeasuresSequence"), "frame 1: PixelSpacing must hold 2"),
        (set_slope, "a.dcm frame 4: RescaleSlope must be a number other than 0, got '0'"),
        (lambda made: made.PerFrameFunctionalGroupsSequence.pop(), "functional groups of 5 frames"),
        (lambda made: delattr(made, "PerFrameFunctionalGroupsSequence"), "without functional"),
        (lambda made: setattr(made, "PixelData", made.PixelData[:-2]), "pixels cannot be read"),
        (lambda made: setattr(made, "ModalityLUTSequence", [Dataset()]), "Modality LUT"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    made = enhanced(STACK)
    change(made)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, message)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_damaged_compressed_frames_are_refused(tmp_path, kind):
    made = compressed(enhanced(LARGER), kind, tmp_path)
    made.PixelData = made.PixelData[: len(made.PixelData) // 2]
    made["PixelData"].VR = "OB"
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "pixels cannot be read")


@pytest.mark.parametrize("keep", [200, 400, 700, 1500, -60])
def test_truncated_files_are_refused(tmp_path, keep, capfd):
    path = write_enhanced(tmp_path / "a.dcm", STACK)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "a.dcm")
    refused(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_several_series_are_listed_with_their_frames(tmp_path):
    write_enhanced(tmp_path / "a.dcm", STACK, SeriesDescription="Head")
    write_enhanced(tmp_path / "b.dcm", STACK[:4], SeriesInstanceUID="1.9")
    refused(tmp_path, "2 series", "1.2.3.4 (6 slices, Head)", "1.9 (4 slices")
    assert read_volume(tmp_path / "b.dcm").shape == (5, 4, 4)
    assert read_volume(tmp_path, series="1.2.3.4").shape == (5, 4, 6)


def test_a_single_frame_is_refused(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", STACK, order=[2])
    refused(path, "one slice, whose spacing is unknown")


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    multi = write_enhanced(tmp_path / "multi" / "a.dcm", STACK)
    single = write_enhanced(tmp_path / "single" / "a.dcm", STACK, order=[0])
    classic = write_classic(tmp_path / "classic", STACK)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for path in (multi, multi.parent, single):
        message = refused(path, "enhanced multi-frame DICOM", "pip install 'medar[dicom]'")
        assert message.startswith(f"{path if path.suffix else path / 'a.dcm'}: ")
    assert read_volume(classic).shape == (5, 4, 6)


def test_enhanced_ct_is_ct(tmp_path):
    assert (
        read_header(write_enhanced(tmp_path / "a.dcm", STACK, sop_class=ENHANCED_CT)).modality
        == "CT"
    )

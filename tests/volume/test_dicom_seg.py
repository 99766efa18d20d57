"""DICOM SEG: opened in pydicom and highdicom, every segment lies where its label lay."""

import sys

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import (
    ENHANCED_MR,
    MR,
    ORIGIN,
    SERIES,
    SPACING,
    STUDY,
    classic_slices,
    enhanced,
    write_classic,
    write_enhanced,
)
from dicom_scans import GEOMETRIES, NAMES, SOURCES, STACK, classic, label_of, multi

from medar.errors import MedarError
from medar.volume import Volume, description_of, read_volume
from medar.volume.dicom_codes import KNOWN, OTHER_NAMES, code_name
from medar.volume.dicom_seg import write_seg


def written(source, path, label=None, names=NAMES, **options):
    volume = read_volume(source, **options)
    label = label_of(volume) if label is None else label
    write_seg(path, label, names, model="abc", description="medar segment")
    return label


def in_patient(path):
    """Positions in RAS+, (N, 3), and segment numbers, (N,), of all voxels of a SEG, by pydicom."""
    file = pydicom.dcmread(path)
    shared = file.SharedFunctionalGroupsSequence[0]
    frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    points, segments = [], []
    for frame, own in zip(frames, file.PerFrameFunctionalGroupsSequence, strict=True):
        plane = (own if "PlaneOrientationSequence" in own else shared).PlaneOrientationSequence[0]
        row, column = np.array(plane.ImageOrientationPatient, float).reshape(2, 3)
        between = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
        origin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        at = np.argwhere(frame)
        points.append(origin + at[:, 1:] * between[1] * row + at[:, :1] * between[0] * column)
        segments += [own.SegmentIdentificationSequence[0].ReferencedSegmentNumber] * len(at)
    return np.concatenate(points) * [-1, -1, 1], np.array(segments)


def assert_same_place(path, label, names=NAMES):
    """Each voxel of the SEG lies on one of the label map with its value, and none is missing."""
    points, segments = in_patient(path)
    indices = np.linalg.solve(label.affine[:3, :3], (points - label.affine[:3, 3]).T).T
    assert np.abs(indices - np.rint(indices)).max() < 1e-3
    i, j, k = np.rint(indices).astype(int).T
    values = np.array([0, *sorted(names)])[segments]
    assert np.array_equal(label.array[0, i, j, k], values)
    assert len(values) == np.count_nonzero(label.array)


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_segments_lie_where_labels_lay(tmp_path, source, geometry):
    folder = source(tmp_path / "s", **GEOMETRIES[geometry])
    path = tmp_path / "seg.dcm"
    label = written(folder, path)
    assert_same_place(path, label)
    if geometry == "tilted":
        return  # highdicom has no volumes with sheared axes
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    assert volume.spacing[1:] == SPACING
    lps = np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    where = np.linalg.solve(label.affine[:3, :3], (lps * [-1, -1, 1] - label.affine[:3, 3]).T).T
    i, j, k = np.rint(where).astype(int).T
    values = np.array([0, *sorted(NAMES)])[volume.array[volume.array > 0]]
    assert np.array_equal(label.array[0, i, j, k], values)
    assert len(values) == np.count_nonzero(label.array)


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("geometry", ["tilted", "reversed"])
def test_frames_refer_to_the_slices_they_lie_on(tmp_path, source, geometry):
    folder = source(tmp_path / "s", **GEOMETRIES[geometry])
    path = tmp_path / "seg.dcm"
    written(folder, path)
    positions = {}
    for one in map(pydicom.dcmread, sorted(folder.iterdir())):
        own = one.get("PerFrameFunctionalGroupsSequence") or [one]
        for number, groups in enumerate(own, start=1):
            plane = groups.get("PlanePositionSequence") or [groups]
            frame = number if len(own) > 1 else None
            positions[one.SOPInstanceUID, frame] = plane[0].ImagePositionPatient
    made = pydicom.dcmread(path)
    assert made.StudyInstanceUID == STUDY
    assert made.PatientID == "p1"
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES
    assert made.SeriesInstanceUID != SERIES
    for own in made.PerFrameFunctionalGroupsSequence:
        (image,) = own.DerivationImageSequence[0].SourceImageSequence
        at = positions[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
        assert at == own.PlanePositionSequence[0].ImagePositionPatient
        assert image.ReferencedSOPClassUID == pydicom.dcmread(next(folder.iterdir())).SOPClassUID


def test_segments_have_names_and_codes(tmp_path):
    written(classic(tmp_path / "s"), tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    kidney, target, tumour = seg.SegmentSequence
    assert [s.SegmentLabel for s in seg.SegmentSequence] == list(NAMES.values())
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2, 3]
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    side = kind.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")
    own = target.SegmentedPropertyTypeCodeSequence[0]
    assert (own.CodeValue, own.CodingSchemeDesignator) == ("ptv56", "99MEDAR")
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"AUTOMATIC"}
    assert (seg.Manufacturer, seg.DeviceSerialNumber) == ("medar", "abc")
    assert description_of(tmp_path / "seg.dcm") == "medar segment"


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("Liver", "10200004", None),
        ("left kidney", "64033007", "Left"),
        ("LungRight", "39607008", "Right"),
        ("lungs", "39607008", None),
        ("OpticNerve_L", "18234004", "Left"),
        ("left_atrium", "82471001", None),
        ("heart_atrium_left", "82471001", None),
        ("tumour", "108369006", None),
        ("CSF", "65216001", None),
        ("ventricle", None, None),
        ("Anterior", None, None),
        ("left", None, None),
        ("left_right_kidney", None, None),
        ("liver_cyst", None, None),
    ],
)
def test_codes_of_names(name, code, side):
    coded = code_name(name)
    assert (coded.kind.scheme_designator == "SCT") == (code is not None)
    assert coded.kind.value == code or code is None
    assert (coded.side and coded.side.meaning) == side


def test_every_name_of_the_table_has_a_code():
    keywords = [keyword for group in KNOWN.values() for keyword in group.split()]
    assert len(set(keywords)) == len(keywords)
    for keyword in keywords:
        assert code_name(keyword).kind.scheme_designator == "SCT"
    for name, keyword in OTHER_NAMES.items():
        assert code_name(name).kind == code_name(keyword).kind


@pytest.mark.parametrize("name", ["Läsion", "leber 肝", "a\\b", "x" * 90, "a\nb", "", "a^b=c"])
def test_any_name_is_written(tmp_path, name):
    written(classic(tmp_path / "s"), tmp_path / "seg.dcm", names={3: name, 7: "liver"})
    segment = highdicom.seg.segread(tmp_path / "seg.dcm").SegmentSequence[0]
    assert segment.SegmentLabel == (name.replace("\\", "_").replace("\n", "_")[:64] or "_")
    assert len(segment.SegmentedPropertyTypeCodeSequence[0].CodeValue) <= 16


@pytest.mark.parametrize("source", SOURCES)
def test_an_empty_label_map(tmp_path, source):
    folder = source(tmp_path / "s")
    label = read_volume(folder)
    label = label.with_array(np.zeros((1, *label.shape), np.uint8))
    written(folder, tmp_path / "seg.dcm", label=label)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert not seg.pixel_array.any()
    assert len(seg.SegmentSequence) == 3


def test_many_labels(tmp_path):
    folder = classic(tmp_path / "s")
    names = {value: f"label {value}" for value in range(1, 301)}
    volume = read_volume(folder)
    array = np.arange(np.prod(volume.shape)).reshape(1, *volume.shape) % 301
    label = volume.with_array(array.astype(np.int16))
    written(folder, tmp_path / "seg.dcm", label=label, names=names)
    assert_same_place(tmp_path / "seg.dcm", label, names)


def test_mr_and_patient(tmp_path):
    folder = write_classic(
        tmp_path / "s", STACK, sop_class=MR, SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg", PatientBirthDate="19700101", SeriesNumber=4,
    )  # fmt: skip
    written(folder, tmp_path / "seg.dcm", names={3: "Läsion", 7: "肝"})
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(seg.PatientName), seg.PatientBirthDate) == ("Müller^Jörg", "19700101")
    assert (seg.SeriesNumber, seg.ContentLabel) == (1004, "SEGMENTATION")
    folder = multi(tmp_path / "m", sop_class=ENHANCED_MR)
    written(folder, tmp_path / "seg.dcm")


def test_one_of_several_series(tmp_path):
    folder = classic(tmp_path / "s")
    for k, one in enumerate(classic_slices(STACK[:4], SeriesInstanceUID="1.9")):
        one.SOPInstanceUID = f"1.9.{k}"
        one.save_as(folder / f"other{k}.dcm", enforce_file_format=True)
    label = written(folder, tmp_path / "seg.dcm", series="1.9")
    assert label.shape == (12, 10, 4)
    assert_same_place(tmp_path / "seg.dcm", label)
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.9"


def test_the_same_label_map_has_the_same_identifiers(tmp_path):
    folder = classic(tmp_path / "s")
    label = written(folder, tmp_path / "a.dcm")
    written(folder, tmp_path / "b.dcm")
    written(folder, tmp_path / "c.dcm", label=label_of(label, seed=1))
    a, b, c = (pydicom.dcmread(tmp_path / f"{name}.dcm") for name in "abc")
    assert (a.SOPInstanceUID, a.SeriesInstanceUID) == (b.SOPInstanceUID, b.SeriesInstanceUID)
    assert c.SOPInstanceUID != a.SOPInstanceUID
    assert c.SeriesInstanceUID != a.SeriesInstanceUID


@pytest.mark.parametrize("name", ["PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate"])
@pytest.mark.parametrize("source", [classic, multi])
def test_the_scan_may_lack_what_may_be_empty(tmp_path, source, name):
    folder = source(tmp_path / "s")
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        del one[name]
        one.save_as(path)
    assert_same_place(tmp_path / "seg.dcm", written(folder, tmp_path / "seg.dcm"))


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_what_a_seg_refers_to_must_be_there(tmp_path, name):
    folder = classic(tmp_path / "s")
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        del one[name]
        one.save_as(path)
    with pytest.raises(MedarError, match=f"no {name}, which a DICOM SEG refers to"):
        written(folder, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_other_sources_are_refused(tmp_path, monkeypatch):
    folder = classic(tmp_path / "s")
    label = label_of(read_volume(folder))
    bare = Volume(array=label.array, affine=label.affine)
    with pytest.raises(MedarError, match="not DICOM, so that a DICOM SEG could not refer"):
        write_seg(tmp_path / "seg.dcm", bare, NAMES, model="abc")
    for k in range(2):
        write_enhanced(tmp_path / "two" / f"{k}.dcm", STACK, order=[k, k + 2, k + 4],
                       instance=f"{SERIES}.{k}")  # fmt: skip
    with pytest.raises(MedarError, match="2 files with several frames each"):
        written(tmp_path / "two", tmp_path / "seg.dcm")
    (folder / "005.dcm").unlink()
    with pytest.raises(MedarError, match="the series has changed since it was read"):
        write_seg(tmp_path / "seg.dcm", label, NAMES, model="abc")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setattr("medar.volume.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(MedarError, match=r"highdicom; install it with `pip install 'medar\[dicom"):
        write_seg(tmp_path / "seg.dcm", label, NAMES, model="abc")


def test_other_files_have_no_description(tmp_path):
    folder = classic(tmp_path / "s")
    assert description_of(folder / "000.dcm") is None
    (tmp_path / "text.dcm").write_text("hello")
    assert description_of(tmp_path / "text.dcm") is None
    made = enhanced(STACK, ContentDescription="medar segment", Manufacturer="other")
    made.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    assert description_of(tmp_path / "other.dcm") is None
    assert ORIGIN == (10.0, 20.0, 30.0)


@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("geometry", ["tilted", "reversed"])
def test_highdicom_gives_the_labels_of_each_source(tmp_path, source, geometry):
    """By the references to images and frames, which tilted series have too."""
    folder = source(tmp_path / "s", **GEOMETRIES[geometry])
    label = written(folder, tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    count = 0
    for file in sorted(folder.iterdir()):
        one = pydicom.dcmread(file)
        own = one.get("PerFrameFunctionalGroupsSequence")
        for number, groups in enumerate(own or [one], start=1):
            options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
            if own and len(own) > 1:
                uid = one.SOPInstanceUID
                pixels = seg.get_pixels_by_source_frame(uid, [number], **options)
                position = groups.PlanePositionSequence[0].ImagePositionPatient
            else:
                pixels = seg.get_pixels_by_source_instance([one.SOPInstanceUID], **options)
                plane = groups.get("PlanePositionSequence", [one])[0]
                position = plane.ImagePositionPatient
            rows, columns = np.indices(pixels.shape[1:]) * np.reshape(SPACING, (2, 1, 1))
            points = np.stack([columns, rows, 0 * rows], -1) + np.array(position, float)
            points = points.reshape(-1, 3) * [-1, -1, 1] - label.affine[:3, 3]
            i, j, k = np.rint(np.linalg.solve(label.affine[:3, :3], points.T)).astype(int)
            values = np.array([0, *sorted(NAMES)])[pixels.ravel()]
            assert np.array_equal(label.array[0, i, j, k], values)
            count += np.count_nonzero(values)
    assert count == np.count_nonzero(label.array)

"""DICOM segmentations as the labels of a data set: found, named, checked, prepared, evaluated."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from dicom_files import image, segmentation, write_classic

from medar.data.case import Case
from medar.data.check import check
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.reading import read_image, read_label, read_label_map
from medar.data.segments import read_label_header
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.evaluation.segmentation.cases import EvaluationCases, Labels, find_files
from medar.segmentation.files import _pairs
from medar.volume import ReadOptions, read_volume
from medar.volume.dicom_seg import write_seg

STACK = np.random.default_rng(0).integers(-1000, 3000, (6, 10, 12)).astype(np.int16)
MASK = np.zeros((6, 10, 12), np.uint8)
MASK[1, 2:5, 3:9], MASK[2, 2:6, 3:7], MASK[4, 6:8, 8:11] = 1, 2, 1
NAMES = ["Liver", "Tumour"]
SWAPPED = np.array([0, 2, 1], np.uint8)[MASK]
EXPECTED = MASK.transpose(2, 1, 0)[::-1, ::-1]


def patient(
    scan: Path, seg: Path | None, number: int, planes: Any = MASK, names: Any = NAMES
) -> Path:
    """A series of its own, and its segmentation."""
    uids = {"SeriesInstanceUID": f"1.5.{number}", "FrameOfReferenceUID": f"1.6.{number}"}
    write_classic(scan, STACK + number, **uids)
    if seg is not None:
        seg.parent.mkdir(parents=True, exist_ok=True)
        segmentation(scan, planes, names).save_as(seg, enforce_file_format=True)
    return scan


def labels(manifest: Any) -> dict[str, Any]:
    """The label map of each case, as an array."""
    found = {}
    for case in manifest:
        image = read_image(case, ReadOptions())
        label = read_label(case, ReadOptions(), image, manifest.labels)
        found[case.id] = None if label is None else label.array[0]
    return found


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series and segmentations in folders of their own, in the same one, and one without."""
    root = tmp_path_factory.mktemp("hospital")
    patient(root / "p1" / "1.2.3", root / "p1" / "1.2.4" / "1.dcm", 1)
    patient(root / "p2" / "ct", root / "p2" / "ct" / "z.dcm", 2)
    patient(root / "p3" / "ct", None, 3)
    return root


def test_segmentations_belong_to_the_series_they_name(hospital: Path) -> None:
    manifest = read_manifest(hospital)
    assert {case.id: case.label and case.label.name for case in manifest} == {
        "p1_1.2.3": "1.dcm", "p2_ct": "z.dcm", "p3_ct": None,
    }  # fmt: skip
    assert manifest.labels == {1: "Liver", 2: "Tumour"}
    found = labels(manifest)
    assert np.array_equal(found["p1_1.2.3"], EXPECTED)
    assert np.array_equal(found["p2_ct"], EXPECTED)
    report = check(manifest, deep=True)
    assert [one.code for one in report.problems if one.severity == "error"] == []
    assert report.summary["label_cases"] == {"1": 2, "2": 2}


def test_a_prepared_data_set(hospital: Path, tmp_path: Path) -> None:
    manifest = read_manifest(hospital, modality="CT")
    plan = Plan(
        spacing=(0.5, 0.75, 2.5), mode="volume", size=(12, 10, 6), downsampling=(2, 2, 2),
        intensity={"CT": {"kind": "window", "low": -1000.0, "high": 1000.0}},  # type: ignore[dict-item]
        labels={4: "tumour", 5: "liver"},
    )  # fmt: skip
    done = prepare(manifest, plan, tmp_path / "a", workers=1)
    assert done.failed == {}
    assert done.unlabelled == {}
    values = Prepared(tmp_path / "a").label(Prepared(tmp_path / "a").find("p2_ct"))
    assert values is not None
    assert np.array_equal(values[0], np.array([0, 5, 4])[EXPECTED])


def test_a_series_with_its_segmentation(tmp_path: Path) -> None:
    scan = patient(tmp_path / "s", tmp_path / "s" / "seg.dcm", 1)
    manifest = read_manifest(scan)
    assert [case.label for case in manifest] == [scan / "seg.dcm"]
    assert np.array_equal(labels(manifest)["s"], EXPECTED)
    assert [one.code for one in check(manifest).problems if one.severity != "info"] == []
    patient(tmp_path / "o", scan / "other.dcm", 2)
    manifest = read_manifest(scan)
    assert [case.label for case in manifest] == [scan / "seg.dcm"]
    assert "1 segmentation(s) that refer to another series are skipped" in manifest.notes[0]


def test_by_name_beside_converted_images(tmp_path: Path) -> None:
    scan = patient(tmp_path / "s", tmp_path / "data" / "labels" / "a.dcm", 1)
    image = read_volume(scan)
    (tmp_path / "data" / "images").mkdir()
    nib.save(nib.Nifti1Image(image.array[0], image.affine), tmp_path / "data/images/a.nii.gz")
    manifest = read_manifest(tmp_path / "data")
    assert np.array_equal(labels(manifest)["a"], EXPECTED)
    (tmp_path / "data" / "labels" / "a.dcm").rename(tmp_path / "data" / "images" / "a_seg.dcm")
    (tmp_path / "data" / "labels").rmdir()
    manifest = read_manifest(tmp_path / "data" / "images")
    assert np.array_equal(labels(manifest)["a"], EXPECTED)
    line = {"id": "x", "image": "images/a.nii.gz", "label": "images/a_seg.dcm"}
    (tmp_path / "data" / "cases.jsonl").write_text(json.dumps(line))
    manifest = read_manifest(tmp_path / "data" / "cases.jsonl")
    assert manifest.labels == {1: "Liver", 2: "Tumour"}
    assert np.array_equal(labels(manifest)["x"], EXPECTED)


def test_numbers_that_differ_between_cases(tmp_path: Path) -> None:
    """Names decide, once the data set gives each a value."""
    patient(tmp_path / "a", tmp_path / "seg" / "a.dcm", 1)
    patient(tmp_path / "b", tmp_path / "seg" / "b.dcm", 2, SWAPPED, ["tumour", "liver"])
    with pytest.raises(MedarError, match=r"segment 1 is 'tumour', but 'Liver' in .*labels\.json"):
        read_manifest(tmp_path)
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "tumour"}')
    found = labels(read_manifest(tmp_path))
    assert np.array_equal(found["a"], EXPECTED)
    assert np.array_equal(found["b"], EXPECTED)
    (tmp_path / "labels.json").write_text('{"3": "tumour", "7": "LIVER"}')
    manifest = read_manifest(tmp_path)
    assert np.array_equal(labels(manifest)["b"], np.array([0, 7, 3])[EXPECTED])
    own = read_label_map(tmp_path / "seg" / "b.dcm", manifest.labels)
    assert np.unique(own.array).tolist() == [0, 3, 7]
    for names, message in (
        ('{"1": "spleen"}', r"segment 1 is 'Liver', but label 1 is 'spleen'"),
        ('{"2": "liver"}', r"segment 2 is 'Tumour', but label 2 is 'liver'"),
    ):
        (tmp_path / "labels.json").write_text(names)
        manifest = read_manifest(tmp_path)
        with pytest.raises(MedarError, match=message):
            labels(manifest)
        report = check(manifest)
        assert {p.code for p in report.problems if p.case == "a"} >= {"unreadable"}


def test_what_medar_writes_has_its_values_again(tmp_path: Path) -> None:
    """Segments are numbered from 1, also where label values are not."""
    image = read_volume(patient(tmp_path / "s", None, 1))
    names = {3: "Kidney left", 7: "a\\b", 300: "x" * 90}
    array = np.array([0, 3, 300], np.int16)[EXPECTED][None]
    write_seg(tmp_path / "seg.dcm", image.with_array(array), names, model="abc")
    case = Case(id="s", images=(tmp_path / "s",), label=tmp_path / "seg.dcm")
    label = read_label(case, ReadOptions(), image, names)
    assert label is not None
    assert np.array_equal(label.array, array)
    assert np.array_equal(label.affine, image.affine)


def test_what_check_reports(tmp_path: Path) -> None:
    scan = patient(tmp_path / "s", tmp_path / "s" / "seg.dcm", 1)
    lines = [
        {"id": "short", "image": "short", "label": "s/seg.dcm"},
        {"id": "damaged", "image": "s", "label": "damaged.dcm"},
        {"id": "other", "image": "other", "label": "s/seg.dcm"},
    ]
    uids = {"SeriesInstanceUID": "1.5.1", "FrameOfReferenceUID": "1.6.1"}
    write_classic(tmp_path / "short", STACK[:4], **uids)
    write_classic(tmp_path / "other", STACK, SeriesInstanceUID="1.8", FrameOfReferenceUID="1.8.1")
    (tmp_path / "damaged.dcm").write_bytes((scan / "seg.dcm").read_bytes()[:700])
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = check(read_manifest(tmp_path / "cases.jsonl"))
    found = {p.case: (p.code, p.message) for p in report.problems if p.severity == "error"}
    assert found["short"][0] == "affine-mismatch"
    assert "lies beyond" in found["short"][1]
    assert found["damaged"][0] == "unreadable"
    assert found["other"][0] == "unreadable"
    assert "in the frame of reference 1.6.1, the image" in found["other"][1]


def test_contours_and_doses_are_no_cases(tmp_path: Path) -> None:
    """They stand in folders of their own, as archives send them."""
    patient(tmp_path / "p" / "ct", tmp_path / "p" / "seg" / "1.dcm", 1)
    (tmp_path / "p" / "rs").mkdir()
    made = image("1.2.840.10008.5.1.4.1.1.481.3", "1.2.9", STACK[0])
    made.save_as(tmp_path / "p" / "rs" / "1.dcm", enforce_file_format=True)
    manifest = read_manifest(tmp_path)
    assert [case.id for case in manifest] == ["p_ct"]
    assert manifest.notes == (
        "1 folder(s) of DICOM files without a scan are skipped (the first: p/rs, contours (RT "
        "Structure Set))",
    )
    for label in (tmp_path / "p" / "rs" / "1.dcm", tmp_path / "p" / "rs"):
        case = replace(manifest.cases[0], label=label)
        with pytest.raises(
            MedarError, match=r"RT Structure Set\): a label, but not as voxels.*3D Sl"
        ):
            read_label(case, ReadOptions(), read_image(case, ReadOptions()), {})


def each_alone(scan: Path, folder: Path, parts: dict[str, Any]) -> list[Path]:
    """A file for each name, in which it is segment 1; parts are masks or (mask, name)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (stem, part) in enumerate(parts.items()):
        mask, name = part if isinstance(part, tuple) else (part, stem)
        made = segmentation(scan, mask.astype(np.uint8), [name], instance=f"1.2.7.{number + 1}")
        paths.append(folder / f"{stem}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_several_segmentations_of_a_series(tmp_path: Path) -> None:
    """Segments of the same number are merged by their names, in every layout alike."""
    scan = patient(tmp_path / "d" / "s", None, 1)
    parts = {"a": (MASK == 2, "Tumour"), "b": (MASK == 1, "Liver")}
    paths = each_alone(scan, tmp_path / "d" / "segs", parts)
    manifest = read_manifest(tmp_path / "d")
    assert [case.labels for case in manifest] == [tuple(paths)]
    assert manifest.labels == {1: "Tumour", 2: "Liver"}
    merged = np.array([0, 2, 1])[EXPECTED]
    assert np.array_equal(labels(manifest)["s"], merged)
    (tmp_path / "d" / "labels.json").write_text('{"1": "liver", "7": "tumour"}')
    named = read_manifest(tmp_path / "d")
    assert np.array_equal(labels(named)["s"], np.array([0, 1, 7])[EXPECTED])
    report = check(named, deep=True)
    assert [p.message for p in report.problems if p.severity == "error"] == []
    assert report.summary["label_cases"] == {"1": 1, "7": 1}
    manifest.save(tmp_path / "cases.jsonl")
    again = read_manifest(tmp_path / "cases.jsonl")
    assert again.cases == manifest.cases
    assert np.array_equal(labels(again)["s"], merged)
    paths[0].rename(scan / "a.dcm")
    paths[1].rename(scan / "b.dcm")
    alone = read_manifest(scan)
    assert alone.cases[0].labels == (scan / "a.dcm", scan / "b.dcm")
    assert np.array_equal(labels(alone)["s"], merged)
    lost = read_manifest(tmp_path / "cases.jsonl")
    assert (lost.cases[0].labels, lost.cases[0].missing_label) == ((), paths[0])


def test_values_of_merged_segmentations(tmp_path: Path) -> None:
    """Names in the order of cases, files and segments: their number, or the first free value."""
    first = patient(tmp_path / "p1", None, 1)
    second = patient(tmp_path / "p2", None, 2)
    each_alone(first, tmp_path / "a", {"Tumour": MASK == 2, "liver": MASK == 1})
    each_alone(second, tmp_path / "b", {"Liver": MASK == 1})
    manifest = read_manifest(tmp_path)
    assert manifest.labels == {1: "Tumour", 2: "liver"}
    found = labels(manifest)
    assert np.array_equal(found["p1"], np.array([0, 2, 1])[EXPECTED])
    assert np.array_equal(found["p2"], np.array([0, 2, 0])[EXPECTED])


def test_prepared_labels_follow_each_file(tmp_path: Path) -> None:
    scan = patient(tmp_path / "d" / "s", None, 1)
    plan = Plan(
        spacing=(0.5, 0.75, 2.5), mode="volume", size=(12, 10, 6), downsampling=(2, 2, 2),
        intensity={"CT": {"kind": "window", "low": -1000.0, "high": 1000.0}},  # type: ignore[dict-item]
        labels={4: "tumour", 5: "liver"},
    )  # fmt: skip
    smaller = (MASK == 1) & (np.arange(6) == 1)[:, None, None]
    for liver in (MASK == 1, smaller):
        parts = {"a": (MASK == 2, "Tumour"), "b": (liver, "Liver")}
        each_alone(scan, tmp_path / "d" / "segs", parts)
        manifest = read_manifest(tmp_path / "d", modality="CT")
        for made in (1, 0):
            done = prepare(manifest, plan, tmp_path / "out", workers=1)
            assert (done.failed, done.unlabelled, done.made) == ({}, {}, made)
        prepared = Prepared(tmp_path / "out")
        values = prepared.label(prepared[0])
        assert values is not None
        expected = np.where(MASK == 2, 4, 0) + np.where(liver, 5, 0)
        assert np.array_equal(values[0], expected.transpose(2, 1, 0)[::-1, ::-1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": (MASK == 1, "Liver"), "b": (MASK > 0, "Body")},
         r"b\.dcm: 'Body' and 'Liver' of .*a\.dcm overlap in 24 voxels in all.*keep one"),
        ({"a": (MASK == 1, "Liver"), "b": (MASK == 1, "liver")},
         r"b\.dcm: 'liver' and 'Liver' of .*a\.dcm overlap"),
        ({"a": (MASK == 1, "Segment_1"), "b": (MASK == 2, "Segment_1")},
         r"'Segment_1' is a name that .*a\.dcm uses too and that does not say what it is"),
    ],
)  # fmt: skip
def test_segmentations_that_cannot_be_merged(tmp_path: Path, parts: Any, message: str) -> None:
    """The case is set aside, not the data set."""
    scan = patient(tmp_path / "d" / "s", None, 1)
    patient(tmp_path / "d" / "t", tmp_path / "d" / "t.dcm", 2)
    each_alone(scan, tmp_path / "d" / "segs", parts)
    manifest = read_manifest(tmp_path / "d")
    with pytest.raises(MedarError, match=message) as caught:
        labels(manifest)
    assert "\n" not in str(caught.value)
    problems = [p for p in check(manifest, deep=True).problems if p.severity == "error"]
    assert {(p.case, p.code) for p in problems} == {("s", "unreadable")}


def test_one_name_of_two_meanings(tmp_path: Path) -> None:
    scan = patient(tmp_path / "d" / "s", None, 1)
    parts = {"a": (MASK == 1, "Lesion"), "b": (MASK == 2, "Lesion")}
    paths = each_alone(scan, tmp_path / "d" / "segs", parts)
    found = labels(read_manifest(tmp_path / "d"))
    assert np.array_equal(found["s"], EXPECTED > 0)
    made = pydicom.dcmread(paths[1])
    made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"
    made.save_as(paths[1])
    with pytest.raises(MedarError, match="'Lesion' has the code 10200004 SCT, but 85756007 SCT in"):
        labels(read_manifest(tmp_path / "d"))


def test_only_segmentations_of_a_grid_are_merged(tmp_path: Path) -> None:
    scan = patient(tmp_path / "d" / "s", None, 1)
    parts = {"a": (MASK == 2, "Tumour"), "b": (MASK == 1, "Liver")}
    paths = each_alone(scan, tmp_path / "d" / "segs", parts)
    with pytest.raises(MedarError, match=r"b\.dcm: has another grid than .*a\.dcm; .* their image"):
        read_label_header(paths, ReadOptions(), None, {})
    image = read_volume(scan)
    nib.save(nib.Nifti1Image(EXPECTED, image.affine), tmp_path / "c.nii.gz")
    case = Case(
        id="s", images=(scan,), label=paths[0], further_labels=(paths[1], tmp_path / "c.nii.gz")
    )
    with pytest.raises(MedarError, match=r"c\.nii\.gz: one of 3 label maps .* only DICOM segm"):
        read_label(case, ReadOptions(), image, {})
    for label in ([], [1], [""], {"a": 1}):
        line = {"id": "x", "image": "d/s", "label": label}
        (tmp_path / "cases.jsonl").write_text(json.dumps(line))
        with pytest.raises(MedarError, match=":1: label must be the path of a file, or a list"):
            read_manifest(tmp_path / "cases.jsonl")


def test_layouts_with_a_description(tmp_path: Path) -> None:
    """A `dataset.json` can name a segmentation; a BIDS tree skips it, with a note."""
    scan = patient(tmp_path / "s", tmp_path / "d" / "labelsTr" / "a.dcm", 1)
    image = read_volume(scan)
    for path in ("d/imagesTr/a_0000.nii.gz", "b/sub-01/anat/sub-01_T1w.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(image.array[0], image.affine), tmp_path / path)
    pair = ("imagesTr/a_0000.nii.gz", "labelsTr/a.dcm")
    described: list[dict[str, Any]] = [
        {"modality": {"0": "CT"}, "labels": {"0": "background", "4": "tumour", "9": "liver"},
         "numTraining": 1, "training": [{"image": pair[0], "label": pair[1]}], "test": []},
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 4, "liver": 9},
         "numTraining": 1, "file_ending": ".nii.gz",
         "dataset": {"a": {"images": [pair[0]], "label": pair[1]}}},
    ]  # fmt: skip
    for one in described:
        (tmp_path / "d" / "dataset.json").write_text(json.dumps(one))
        (array,) = labels(read_manifest(tmp_path / "d")).values()
        assert np.array_equal(array, np.array([0, 9, 4])[EXPECTED])
    del described[1]["dataset"]
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(described[1]))
    assert read_manifest(tmp_path / "d").cases[0].missing_label == tmp_path / "d/labelsTr/a.nii.gz"
    shutil.copy(tmp_path / "d" / pair[1], tmp_path / "b/sub-01/anat/sub-01_dseg.dcm")
    manifest = read_manifest(tmp_path / "b")
    assert manifest.cases[0].label is None
    assert manifest.notes[0].startswith(
        "1 DICOM segmentations are skipped (the first: sub-01/anat/sub-01_dseg.dcm)"
    )


def test_segmentations_without_an_image(tmp_path: Path) -> None:
    patient(tmp_path / "s", tmp_path / "d" / "a.dcm", 1)
    with pytest.raises(MedarError, match=r"a\.dcm: a segmentation, and no image in"):
        read_manifest(tmp_path / "d")
    with pytest.raises(MedarError, match="no volume found"):
        _pairs(tmp_path / "d", tmp_path / "out", 1, ".nii.gz")


def test_finished_label_maps_are_evaluated(hospital: Path, tmp_path: Path) -> None:
    """The numbers of predicted segments need not be those of the truth."""
    manifest = read_manifest(hospital)
    usable = tuple(replace(case, split="test") for case in manifest if case.label)
    manifest = manifest.with_cases(usable)
    cases = EvaluationCases(manifest, "test", Labels(names=manifest.labels), ReadOptions())
    assert cases.tolerance() == 2.5
    for case in usable:
        made = segmentation(case.images[0], SWAPPED, ["tumour", "liver"])
        made.save_as(tmp_path / f"{case.id}.dcm", enforce_file_format=True)
    files = find_files(tmp_path, usable)
    for case in usable:
        one = cases.read(case)
        predicted = cases.read_label(case, one.image, files[case.id])
        assert np.array_equal(one.truth.array[0], EXPECTED)
        assert np.array_equal(predicted.array[0], EXPECTED)

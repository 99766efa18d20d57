"""Every data set layout gives the correct manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.case import modality_of
from medar.data.manifest import Manifest
from medar.data.sources import read_manifest
from medar.data.sources.dataset_json import parse_labels
from medar.errors import MedarError
from medar.volume import Volume, write_nifti


def touch(root: Path, *names: str) -> None:
    """Create empty files: reading a manifest opens none but DICOM."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def dicom(root: Path, *names: str) -> None:
    """Create files with only a DICOM preamble."""
    touch(root, *names)
    for name in names:
        (root / name).write_bytes(b"\0" * 128 + b"DICM")


def ids(found: Manifest) -> list[str]:
    return [case.id for case in found]


def labelled(found: Manifest) -> dict[str, str]:
    return {case.id: case.label.name for case in found if case.label}


def described(root: Path, **keys: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(keys))
    return root / "dataset.json"


# Folders


def test_a_dicomdir_is_not_a_series(tmp_path: Path) -> None:
    dicom(tmp_path, "DICOMDIR", "p1/DICOMDIR", "p1/images/1", "p2/DICOMDIR", "p2/images/1")
    found = read_manifest(tmp_path)
    assert ids(found) == ["p1_images", "p2_images"]
    assert found.notes == ()


def test_a_nested_folder_of_every_format(tmp_path: Path) -> None:
    touch(
        tmp_path, "x.nii.gz", "a/y.NII", "a/z.hdr", "a/z.img", "n.nhdr", "n.raw", "m.mhd", "m.raw"
    )
    touch(tmp_path, "a/b/w.nrrd", ".hidden.nii", ".cache/v.nii", "notes.txt", "v.mha")
    dicom(tmp_path, "series/0001", "more/deep/1.dcm")
    found = read_manifest(tmp_path)
    assert found.source == "folder"
    assert ids(found) == ["a_b_w", "a_y", "a_z", "m", "more_deep", "n", "series", "v", "x"]
    assert found["a_z"].images[0].name == "z.hdr"
    assert found["more_deep"].images == (tmp_path / "more" / "deep",)


def test_ids_are_unique_and_stable(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.nii", "a_b.nii", "c:d.nii")
    found = ids(read_manifest(tmp_path))
    assert len(set(found)) == 3
    assert found[-1] == "c_d"
    touch(tmp_path, "other.nii")
    assert set(found) < set(ids(read_manifest(tmp_path)))


def test_of_one_name_in_two_formats_the_first_is_kept(tmp_path: Path) -> None:
    """Any other case is read nevertheless."""
    touch(tmp_path, "a.nii", "a.nii.gz", "a.nrrd", "b.nii")
    with pytest.warns(UserWarning, match=r"left out, as it has the same name as a\.nii") as caught:
        found = read_manifest(tmp_path)
    assert [case.images[0].name for case in found] == ["a.nii", "b.nii"]
    assert [str(one.message).partition(":")[0] for one in caught] == [
        str(tmp_path / name) for name in ("a.nii.gz", "a.nrrd")
    ]


def test_one_name_in_training_and_test_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii", "imagesTs/a.nii")
    with pytest.raises(MedarError, match=r"has the same name as .*a\.nii"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_images_and_labels(tmp_path: Path, labels: str) -> None:
    touch(tmp_path, "images/s/a.nii.gz", "images/b.nii.gz", f"{labels}/s/a.nii", f"{labels}/q.nii")
    (tmp_path / "labels.json").write_text('{"liver": 1, "0": "background"}')
    found = read_manifest(tmp_path)
    assert ids(found) == ["b", "s_a"]
    assert labelled(found) == {"s_a": "a.nii"}
    assert found.labels == {1: "liver"}
    assert "1 label files without an image" in found.notes[0]


def test_train_and_test_folders_without_description(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{n}_0000.nii.gz" for n in "abcd"), "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTs/t.nii.gz")
    found = read_manifest(tmp_path)
    assert labelled(found) == {"a_0000": "a.nii.gz"}
    assert [case.id for case in found.select("test")] == ["t"]
    assert len(found.select("val")) == 1


def test_channels_without_description_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    with pytest.raises(MedarError, match=r"channels of one case; write nnU-Net's dataset\.json"):
        read_manifest(tmp_path)


def test_labels_beside_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_label.nii.gz", "b.nii", "b-seg.nii.gz", "c.nii", "d_mask.nii")
    touch(tmp_path, "k/imaging.nii", "k/segmentation.nii", "s/ct.nii", "s/segmentations/liver.nii")
    found = read_manifest(tmp_path)
    assert ids(found) == ["a", "b", "c", "k_imaging", "s_ct"]
    assert labelled(found) == {
        "a": "a_label.nii.gz",
        "b": "b-seg.nii.gz",
        "k_imaging": "segmentation.nii",
    }
    assert "2 label files without an image" in found.notes[0]


@pytest.mark.parametrize(
    "name",
    [
        "ct0.seg", "ct0_seg", "ct0-seg", "ct0-label", "ct0_label", "ct0_labels", "ct0-labelmap",
        "ct0_label-map", "ct0_mask", "ct0_Mask", "ct0.mask", "ct0_gt", "ct0_GT", "ct0-groundtruth",
        "ct0_ground_truth", "ct0_segmentation", "ct0.Segmentation", "ct0 seg", "ct0_dseg",
        "ct0_mask_1", "ct0-label2", "seg_ct0", "mask-ct0", "gt.ct0", "label0", "segmentation0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "images/", "a/b/"])
def test_label_maps_beside_images_are_never_images(tmp_path: Path, name: str, folder: str) -> None:
    touch(tmp_path, f"{folder}ct0.nrrd", f"{folder}{name}.nrrd", f"{folder}ct1.nrrd")
    found = read_manifest(tmp_path)
    assert [case.images[0].name for case in found] == ["ct0.nrrd", "ct1.nrrd"]
    if folder == "images/":
        assert "1 label files without an image of their name are skipped" in found.notes[0]
    else:
        assert [case.label and case.label.name for case in found] == [f"{name}.nrrd", None]


@pytest.mark.parametrize(
    ("others", "images"),
    [
        # LiTS, and numbered files in one folder.
        (["volume-0", "volume-10", "segmentation-0", "segmentation-10"], ["volume-0", "volume-10"]),
        (["img_001", "img_002", "seg_001", "seg_002"], ["img_001", "img_002"]),
        # Two images of one number, or a rater's map: not decided here, but no images either.
        (["ct-1", "pet-1", "mask-1"], ["ct-1", "pet-1"]),
        (["a", "a_seg_rater1", "b_seg_rater1"], ["a", "b_seg_rater1"]),
        # Words that only look alike.
        (["gtv", "segment", "masked", "GT_001", "GT_002", "labelled", "a_targets"], None),
        (["a", "b_mask", "c-gt"], ["a"]),
        # Beside their image, words that say less are enough.
        (["a", "a_roi", "a_manual", "a_truth", "a-pred", "a_lesion", "a.contour"], ["a"]),
        (["a", "a_brainmask", "a_aseg", "aSeg", "aseg", "a_segV2", "a_mask(1)"], ["a"]),
        (["a", "a_lbl", "a_msk", "a_segm", "a_labeled", "a_parcellation", "a tumour 2"], ["a"]),
        (["a", "a_post", "a_masked", "a_segment", "a_0001", "a_T2", "a_structural"], None),
        (["a_roi", "a_manual", "b_pred"], None),
        # Folders, too.
        (["ct/a", "lesion_masks/a", "manual/a", "labels_final/a", "msks/a"], ["ct_a"]),
        (["mask_study/a", "mask_study/b"], None),
    ],
)
def test_which_names_are_label_maps(
    tmp_path: Path, others: list[str], images: list[str] | None
) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in others))
    found = read_manifest(tmp_path)
    expected = images or [name.replace("/", "_") for name in others]
    assert sorted(case.id for case in found) == sorted(expected)


def test_images_named_as_their_labels_stay(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_gt.nii", "images/b.nii", "labels/a_gt.nii", "labels/b.nii")
    assert labelled(read_manifest(tmp_path)) == {"a_gt": "a_gt.nii", "b": "b.nii"}


def test_two_labels_of_an_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a_seg.nii", "a_mask.nii")
    with pytest.raises(MedarError, match="a second label of 'a'"):
        read_manifest(tmp_path)


def test_single_volumes(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "text.txt", "p.hdr", "p.img")
    dicom(tmp_path, "d/1", "d/2")
    single = read_manifest(tmp_path / "a.nii.gz", modality="CT")
    assert (single.source, ids(single), single.cases[0].modality) == ("file", ["a"], "CT")
    assert ids(read_manifest(tmp_path / "p.img")) == ["p"]
    assert ids(read_manifest(tmp_path / "d")) == ["d"]
    assert ids(read_manifest(tmp_path / "d" / "1")) == ["1"]
    for path, message in ((tmp_path / "text.txt", "no volume found"), (tmp_path / "q", "no such")):
        with pytest.raises(MedarError, match=message):
            read_manifest(path)


def test_an_empty_folder_error_lists_the_formats(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"no volume found.*NIfTI"):
        read_manifest(tmp_path)


# JSONL


def test_jsonl_by_path_or_in_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "l.nii")
    line = {"id": "a", "image": "a.nii", "label": "l.nii", "split": "test"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    for path in (tmp_path, tmp_path / "manifest.jsonl"):
        found = read_manifest(path)
        assert (found.source, found["a"].split, found["a"].label) == (
            "JSONL",
            "test",
            tmp_path / "l.nii",
        )


def test_a_missing_label_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    (tmp_path / "m.jsonl").write_text('{"id": "a", "image": "a.nii", "label": "l.nii"}')
    found = read_manifest(tmp_path / "m.jsonl")
    assert (found["a"].label, found["a"].missing_label) == (None, tmp_path / "l.nii")
    found.save(tmp_path / "m.jsonl")
    touch(tmp_path, "l.nii")
    again = read_manifest(tmp_path / "m.jsonl")
    assert (again["a"].label, again["a"].missing_label) == (tmp_path / "l.nii", None)


# MSD


def test_msd(tmp_path: Path) -> None:
    touch(tmp_path, "labelsTr/a.nii.gz")
    path = described(
        tmp_path,
        modality={"1": "T1gd", "0": "FLAIR"},
        labels={"0": "background", "1": "edema"},
        training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        test=["./imagesTs/b.nii.gz"],
    )
    found = read_manifest(path)
    assert (found.source, found.channels, found.labels) == ("MSD", ("FLAIR", "T1gd"), {1: "edema"})
    assert ids(found) == ["a", "b"]
    assert found["a"].images == (tmp_path / "imagesTr" / "a.nii.gz",)
    assert (found["a"].modality, found["a"].split, found["b"].split) == ("MR", "train", "test")
    assert labelled(found) == {"a": "a.nii.gz"}


def test_msd_with_only_training_cases_has_no_split(tmp_path: Path) -> None:
    training = [{"image": f"{n}.nii"} for n in "abcdefghij"]
    described(tmp_path, modality={"0": "CT"}, labels={"liver": 1}, training=training, test=[])
    found = read_manifest(tmp_path)
    assert {len(found.select(s)) for s in ("val", "test")} == {1}
    assert {case.modality for case in found} == {"CT"}


def test_msd_duplicate_names(tmp_path: Path) -> None:
    described(tmp_path, training=[{"image": "a/ct.nii"}, {"image": "b/ct.nii"}])
    assert ids(read_manifest(tmp_path)) == ["a_ct", "b_ct"]
    described(tmp_path, training=[{"image": "a.nii"}, {"image": "./a.nii"}])
    with pytest.raises(MedarError, match="listed twice"):
        read_manifest(tmp_path)


def test_msd_paths_from_windows(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "c\\d.nii")
    entry = {"image": ".\\imagesTr\\a.nii.gz", "label": ".\\labelsTr\\a.nii.gz"}
    described(tmp_path, training=[entry, {"image": "c\\d.nii"}])
    found = read_manifest(tmp_path)
    assert ids(found) == ["a", "c_d"]
    assert found["a"].images == (tmp_path / "imagesTr" / "a.nii.gz",)
    assert labelled(found) == {"a": "a.nii.gz"}
    assert found["c_d"].images == (tmp_path / "c\\d.nii",)  # a file may have such a name elsewhere


def test_a_byte_order_mark_in_a_description(tmp_path: Path) -> None:
    path = described(tmp_path, training=[{"image": "a.nii"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ids(read_manifest(tmp_path)) == ["a"]


# nnU-Net


def test_nnunet_v1(tmp_path: Path) -> None:
    """It names images without the number of their channel."""
    for name in ("a", "b"):
        touch(tmp_path, f"imagesTr/{name}_0000.nii.gz", f"imagesTr/{name}_0001.nii.gz")
    touch(tmp_path, "labelsTr/a.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz")
    described(
        tmp_path,
        modality={"0": "T1", "1": "T2"},
        labels={"0": "background", "1": "edema"},
        training=[
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"
        ],
        test=["./imagesTs/c.nii.gz"],
    )
    found = read_manifest(tmp_path)
    assert (found.source, found.channels, ids(found)) == ("nnU-Net", ("T1", "T2"), ["a", "b", "c"])
    assert [one.name for one in found["a"].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [case.id for case in found.select("test")] == ["c"]
    assert labelled(found) == {"a": "a.nii.gz"}


NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}


def test_nnunet_folders(tmp_path: Path) -> None:
    names = [f"imagesTr/{case}_000{c}.nii.gz" for case in ("a", "b", "c_1") for c in (1, 0)]
    touch(tmp_path, *names, "labelsTr/a.nii.gz", "labelsTr/c_1.nii.gz", "imagesTr/readme.txt")
    touch(tmp_path, "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz", "labelsTs/t.nii.gz")
    described(
        tmp_path,
        channel_names={"0": "T1", "1": "noNorm"},
        labels={"background": 0, "liver": 1, "ignore": 2},
        file_ending=".nii.gz",
    )
    found = read_manifest(tmp_path)
    assert (found.source, found.channels, found.ignore_label) == ("nnU-Net", ("T1", "noNorm"), 2)
    assert ids(found) == ["a", "b", "c_1", "t"]
    assert [path.name for path in found["a"].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert labelled(found) == {"a": "a.nii.gz", "c_1": "c_1.nii.gz", "t": "t.nii.gz"}
    assert found["b"].missing_label == tmp_path / "labelsTr" / "b.nii.gz"
    assert [case.id for case in found.select("test")] == ["t"]


def test_nnunet_with_named_files(tmp_path: Path) -> None:
    dataset = {"p": {"images": ["deep/x.nii.gz"], "label": "deep/y.nii.gz"}}
    touch(tmp_path, "deep/y.nii.gz")
    found = read_manifest(described(tmp_path, **NNUNET, dataset=dataset))
    assert found["p"].images == (tmp_path / "deep" / "x.nii.gz",)
    assert (found["p"].modality, labelled(found)) == ("CT", {"p": "y.nii.gz"})


def test_region_based_labels_keep_their_values(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    found = read_manifest(described(tmp_path, **{**NNUNET, "labels": labels}))
    assert found.labels == {1: "label_1", 2: "label_2", 3: "enhancing"}
    assert found.notes == (
        "labels whole, core are regions (unions of values); the values 1, 2, 3 are used",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "x"}, "neither MSD's key 'training'"),
        ({"training": {}}, "training must be a list, got {}"),
        ({"training": []}, "no case to read"),
        ({"training": [3]}, r"training\[0\] must be .*, got 3"),
        ({"training": [{"image": 3}]}, r"training\[0\].image must be .*, got 3"),
        (
            {"training": [{"image": "a.nii", "label": ""}]},
            r"training\[0\].label must be .*, got ''",
        ),
        ({"training": ["a.nii"], "modality": "CT"}, "modality must map .*, got 'CT'"),
        ({"training": ["a.nii"], "modality": {"0": 1}}, "modality"),
        ({"training": ["a.nii"], "modality": {"1": "CT"}}, "count from 0"),
        ({"training": ["a.nii"], "labels": ["liver"]}, "labels"),
        ({"training": ["a.nii"], "labels": {"liver": "x"}}, "labels: 'liver' must be .*, got 'x'"),
        ({"training": ["a.nii"], "labels": {"liver": 1.5}}, "labels: 'liver' must be .*, got 1.5"),
        ({"training": ["a.nii"], "labels": {"a": 1, "b": 1}}, "a value has one name"),
        ({**NNUNET, "file_ending": ".png"}, "file_ending must be .*, got '.png'"),
        ({**NNUNET, "channel_names": None}, "channel_names must map .*, got None"),
        ({**NNUNET, "labels": None}, "labels must be .*, got None"),
        ({**NNUNET, "dataset": []}, "dataset must be an object"),
        ({**NNUNET, "dataset": {"a": {"images": []}}}, "dataset.a must be "),
        (
            {**NNUNET, "dataset": {"a": {"images": "x.nii"}}},
            "dataset.a.images must be a list, got 'x.nii'",
        ),
        (
            {**NNUNET, "dataset": {"a": {"images": ["x.nii"], "label": 1}}},
            "dataset.a.label must be .*, got 1",
        ),
        (NNUNET, "no case"),
    ],
)
def test_an_invalid_description_gives_one_line(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    path = described(tmp_path, **keys)
    with pytest.raises(MedarError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_description_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(MedarError, match="must hold a JSON object, got a list"):
        read_manifest(tmp_path)


# BIDS


def test_bids(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
        "sub-02/ct/sub-02_ct.nii.gz",
        "sub-02/ct/sub-02_desc-lung_mask.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_ses-1_T1w_seg.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_ses-1_space-MNI_dseg.nii.gz",
        "derivatives/y/sub-01/anat/sub-01_ses-2_dseg.nii.gz",
        "derivatives/y/sub-01/anat/sub-01_ses-2_probseg.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t33\n")
    (tmp_path / "derivatives" / "y" / "dseg.tsv").write_text("index\tname\n0\tnone\n1\tgrey\n")
    found = read_manifest(tmp_path)
    assert found.source == "BIDS"
    assert ids(found) == ["sub-01_ses-1_FLAIR", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ct"]
    assert labelled(found) == {
        "sub-01_ses-1_T1w": "sub-01_ses-1_T1w_seg.nii.gz",
        "sub-01_ses-2_T1w": "sub-01_ses-2_dseg.nii.gz",
        "sub-02_ct": "sub-02_desc-lung_mask.nii.gz",
    }
    first = found["sub-01_ses-1_T1w"]
    assert (first.subject, first.modality) == ("sub-01", "MR")
    assert first.attributes == {"suffix": "T1w", "session": "1", "age": 33}
    assert (found["sub-02_ct"].modality, found.labels) == ("CT", {1: "grey"})
    assert "suffix bold are skipped" in found.notes[0]
    assert len({case.split for case in found if case.subject == "sub-01"}) == 1


def test_bids_with_several_labels_uses_none(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_desc-a_dseg.nii.gz")
    touch(tmp_path, "sub-01/anat/sub-01_desc-b_dseg.nii.gz")
    found = read_manifest(tmp_path)
    assert labelled(found) == {}
    assert "several label maps" in found.notes[0]


def test_subject_folders_without_bids_names(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/brain.nii.gz")
    found = read_manifest(tmp_path)
    assert (found.source, ids(found)) == ("folder", ["sub-01_brain"])


def test_bids_without_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/func/sub-01_task-rest_bold.nii.gz")
    with pytest.raises(MedarError, match="no MR or CT image"):
        read_manifest(tmp_path)


# Fields


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *((name, "CT") for name in ("CT", "ct", "CTA")),
        *((name, "MR") for name in ("MRI", "MR", "T1w", "T1-weighted", "FLAIR", "T1gd", "t2star")),
        *((name, None) for name in ("PET", "", None, "CTX", "noNorm")),
    ],
)
def test_modalities(name: str | None, modality: str | None) -> None:
    assert modality_of(name) == modality


def test_labels_in_both_directions() -> None:
    expected = {1: "liver", 2: "2nd"}
    assert parse_labels({"0": "background", "1": "liver", "2": "2nd"}, "x").names == expected
    assert parse_labels({"background": 0, "liver": 1, "2nd": "2"}, "x").names == expected


def test_real_data(shared_data: Path) -> None:
    found = read_manifest(shared_data / "hippocampus_mr")
    assert (found.source, len(found), len(labelled(found))) == ("MSD", 211, 210)
    assert found["hippocampus_118"].missing_label is not None
    assert len(read_manifest(shared_data / "awkward")) == 9


def test_the_modality_of_an_earlier_manifest_is_kept(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", Volume(array=np.zeros((1, 2, 2, 2)), affine=np.eye(4)))
    first = read_manifest(tmp_path, modality="CT")
    assert [case.modality for case in read_manifest(tmp_path, stored=first)] == ["CT"]
    assert [case.modality for case in read_manifest(tmp_path)] == [None]

"""Manifests: validation, and the JSONL round trip."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medar.data.manifest import Case, Manifest
from medar.errors import MedarError


def manifest(root: Path, **changes: Any) -> Manifest:
    cases = (
        Case(
            id="a_1",
            images=(root / "a.nii.gz", root / "a2.nii.gz"),
            subject="a",
            label=root / "l" / "a.nii.gz",
            annotated=(2,),
            modality="CT",
            attributes={"age": 61, "site": "Köln"},
            split="train",
        ),
        Case(id="b_1", images=(root / "b.nii.gz",), missing_label=root / "l" / "b.nii.gz"),
    )
    fields: dict[str, Any] = {
        "root": root,
        "source": "nnU-Net",
        "cases": cases,
        "labels": {1: "liver", 2: "spleen"},
        "ignore_label": 3,
        "channels": ("T1", "T2"),
        "notes": ("a note",),
    }
    return Manifest(**{**fields, **changes})


def test_manifest_round_trip(tmp_path: Path) -> None:
    before = manifest(tmp_path)
    before.save(tmp_path / "m.jsonl")
    assert Manifest.load(tmp_path / "m.jsonl") == before


def test_a_manifest_moves_with_its_folder(tmp_path: Path) -> None:
    before = manifest(tmp_path / "here")
    before.save(tmp_path / "here" / "m.jsonl")
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = Manifest.load(tmp_path / "there" / "m.jsonl")
    assert after.cases[0].images[0] == tmp_path / "there" / "a.nii.gz"
    assert after.digest == before.digest


def test_relative_and_absolute_paths_are_one_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert manifest(Path()).digest == manifest(tmp_path).digest


def test_the_digest_depends_on_the_content(tmp_path: Path) -> None:
    before = manifest(tmp_path)
    assert manifest(tmp_path, notes=()).digest == before.digest
    assert manifest(tmp_path, labels={1: "lung", 2: "spleen"}).digest != before.digest


def test_annotated_labels(tmp_path: Path) -> None:
    whole = manifest(tmp_path)
    labelled = Case(id="c", images=(tmp_path / "c.nii",), label=tmp_path / "l.nii")
    assert whole.annotated(whole["a_1"]) == (2,)
    assert whole.annotated(whole["b_1"]) == ()
    assert whole.annotated(labelled) == (1, 2)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", ".hidden"])
def test_refuses_ids_that_are_no_file_names(name: str) -> None:
    with pytest.raises(MedarError, match="file name"):
        Case(id=name, images=(Path("a.nii"),))


def test_refuses_contradictions(tmp_path: Path) -> None:
    case = Case(id="a", images=(Path("a.nii"),), subject="s", split="train")
    other = Case(id="b", images=(Path("b.nii"),), subject="s", split="test")
    with pytest.raises(MedarError, match="two cases"):
        manifest(tmp_path, cases=(case, case))
    with pytest.raises(MedarError, match="it must be in one"):
        manifest(tmp_path, cases=(case, other))
    with pytest.raises(MedarError, match="no volume"):
        manifest(tmp_path, cases=())
    with pytest.raises(MedarError, match="no name"):
        manifest(tmp_path, labels={1: "liver"})
    with pytest.raises(MedarError, match="no case 'x'"):
        manifest(tmp_path)["x"]


CASE = {"id": "a", "image": "a.nii"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ([1], "must be a JSON object"),
        ({"id": "a"}, "'image' or 'images'"),
        ({**CASE, "images": ["b.nii"]}, "'image' or 'images'"),
        ({**CASE, "lable": "l.nii"}, "unknown key 'lable'"),
        ({"id": "a", "images": "a.nii"}, "images must be a list of paths, got 'a.nii'"),
        ({"id": "a", "image": 3}, r"list of paths, got \[3\]"),
        (
            {**CASE, "label": 5},
            "label must be the path of a file, or a list of DICOM segm.*, got 5",
        ),
        ({**CASE, "subject": [1]}, "subject"),
        ({**CASE, "annotated": 1}, "annotated must be a list of label values, got 1"),
        ({**CASE, "annotated": [True]}, "annotated"),
        ({**CASE, "attributes": {"a": [1]}}, "attributes"),
        ({**CASE, "attributes": {"a": float("nan")}}, "attributes"),
        ({**CASE, "split": "training"}, "must be one of train, val, test"),
        ({**CASE, "split": ["train"]}, "must be one of train, val, test"),
        ({"medar_manifest": 9}, "medar_manifest must be 1, got 9"),
        ({"medar_manifest": 1, "labels": {"liver": 1}}, "labels"),
        ({"medar_manifest": 1, "labels": ["liver"]}, "labels"),
        ({"medar_manifest": 1, "ignore_label": "3"}, "ignore_label must be a label value, got '3'"),
        ({"medar_manifest": 1, "channels": "CT"}, "channels must be a list of texts, got 'CT'"),
        ({"medar_manifest": 1, "root": 3}, "root must be a text, got 3"),
        ({"medar_manifest": 1, "label": {}}, "unknown key 'label'"),
    ],
)
def test_an_invalid_line_gives_one_line(tmp_path: Path, line: Any, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(MedarError, match=message) as caught:
        Manifest.load(path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert "\n" not in str(caught.value)


def test_a_file_without_a_case(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"medar_manifest": 1}')
    with pytest.raises(MedarError, match=r"m\.jsonl: no case"):
        Manifest.load(tmp_path / "m.jsonl")


def test_the_header_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{json.dumps(CASE)}\n{{"medar_manifest": 1}}\n')
    with pytest.raises(MedarError, match=":2: a header"):
        Manifest.load(path)

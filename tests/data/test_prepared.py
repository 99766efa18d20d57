"""Reading a prepared folder, and refusing one that was changed."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.preparation import restore_image, restore_label
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.reading import read_image, read_label
from medar.errors import MedarError

MakeDataset = Callable[..., Manifest]
MakePlan = Callable[..., Plan]


@pytest.fixture
def manifest(dataset: MakeDataset) -> Manifest:
    return dataset(3)


@pytest.fixture
def folder(tmp_path: Path, manifest: Manifest, plan: MakePlan) -> Path:
    return prepare(manifest, plan(), tmp_path / "out", workers=1).folder


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_cases_refer_to_their_files(
    tmp_path: Path, manifest: Manifest, plan: MakePlan, mode: str
) -> None:
    chosen = plan(mode=mode)
    prepared = Prepared(prepare(manifest, chosen, tmp_path / "out", workers=1).folder)
    for case, source in zip(prepared, manifest, strict=True):
        trace, values = prepared.trace(case), prepared.label(case)
        assert values is not None
        original = read_image(source, chosen.reading)
        back = restore_image(prepared.image(case), trace)
        assert back.array == pytest.approx(original.array, abs=1e-3)
        label = read_label(source, chosen.reading, original, chosen.labels)
        assert label is not None
        assert np.array_equal(restore_label(values, trace).array, label.array)
        assert trace.provenance is not None
        assert trace.provenance.path == str(source.images[0])


def test_splits(folder: Path) -> None:
    assert [case.id for case in Prepared(folder)] == ["c0", "c1", "c2"]
    assert [case.id for case in Prepared(folder, split="train")] == ["c0", "c1"]
    assert [case.id for case in Prepared(folder, split="val")] == ["c2"]
    with pytest.raises(MedarError, match="no case in the split 'test'; splits: train, val"):
        Prepared(folder, split="test")


def test_cases_by_id_and_by_index(folder: Path) -> None:
    prepared = Prepared(folder)
    assert prepared.find("c1") == prepared[1]
    with pytest.raises(MedarError, match="no case 'c9'; the first is 'c0'"):
        prepared.find("c9")
    for index in (3, -1):
        with pytest.raises(IndexError):
            prepared[index]


def test_non_ascii_names_round_trip(tmp_path: Path, manifest: Manifest, plan: MakePlan) -> None:
    case = replace(manifest.cases[0], id="Größe", subject="Größe", attributes={"ort": "Köln\u2028"})
    manifest = manifest.with_cases((case, manifest.cases[1]))
    prepared = Prepared(prepare(manifest, plan(), tmp_path / "out", workers=1).folder)
    assert [c.id for c in prepared] == ["Größe", "c1"]
    assert prepared[0].attributes == {"ort": "Köln\u2028"}


def test_pickles(folder: Path) -> None:
    prepared = Prepared(folder)
    prepared.image(prepared[0])
    other = pickle.loads(pickle.dumps(prepared))
    assert list(other) == list(prepared)
    assert np.array_equal(other.image(other[1]), prepared.image(prepared[1]))


def test_an_unprepared_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MedarError, match="not a prepared data set"):
        Prepared(tmp_path / "in")
    (folder / "cases.jsonl").unlink()
    with pytest.raises(MedarError, match=r"no cases\.jsonl.*medar data prepare"):
        Prepared(folder)


def test_an_edited_plan_is_detected(folder: Path, plan: MakePlan) -> None:
    file = folder / "plan.yaml"
    file.write_text(file.read_text() + "# a comment changes nothing\n")
    Prepared(folder)
    plan(size=(8, 8, 10)).save(file)
    with pytest.raises(MedarError, match=r"plan\.yaml has changed since the cases were prepared"):
        Prepared(folder)


@pytest.mark.parametrize("content", ["", "{}\n", "[]\n", '{"plan"', "header\n"])
def test_a_damaged_case_list_gives_one_line(folder: Path, content: str) -> None:
    (folder / "cases.jsonl").write_text(content)
    with pytest.raises(MedarError, match=r"cases\.jsonl: damaged \(.*\); run `medar data prepare"):
        Prepared(folder)


def test_a_case_line_is_checked(folder: Path) -> None:
    header, *lines = (folder / "cases.jsonl").read_text().splitlines()
    broken = {k: v for k, v in json.loads(lines[0]).items() if k != "split"}
    (folder / "cases.jsonl").write_text("\n".join([header, json.dumps(broken), *lines[1:]]))
    with pytest.raises(MedarError, match="damaged"):
        Prepared(folder, split="train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 5}, "line 2: image must be a string, got 5"),
        ({"image": "[" * 3000}, "line 2: image names no cache entry: '[[["),
        ({"label": "../x"}, "line 2: label names no cache entry: '../x'"),
        ({"annotated": ["liver"]}, "line 2: annotated.0 must be an integer, got 'liver'"),
        ({"split": "dev"}, "line 2: split must be 'train', 'val' or 'test', got 'dev'"),
        ({"attributes": []}, "line 2: attributes must be a mapping"),
        ({"scanner": "x"}, "line 2: its keys must be annotated, attributes, id"),
    ],
)
def test_fields_of_a_wrong_type_give_one_line(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    header, first, *lines = (folder / "cases.jsonl").read_text().splitlines()
    broken = json.dumps({**json.loads(first), **change})
    (folder / "cases.jsonl").write_text("\n".join([header, broken, *lines]))
    with pytest.raises(MedarError) as caught:
        Prepared(folder)
    assert f"cases.jsonl: damaged ({message}" in str(caught.value)
    assert "\n" not in str(caught.value)

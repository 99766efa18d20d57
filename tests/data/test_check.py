"""Checks: each code is reported for exactly the affected case, and nothing stops a check."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medar.data import check as checking
from medar.data import examine as examining
from medar.data.check import check
from medar.data.manifest import Case, Manifest
from medar.data.problems import CODES, Report
from medar.errors import MedarError
from medar.volume import ReadOptions

SHAPE = (6, 5, 4)
Write = Callable[..., Path]


def labels(*values: int) -> Any:
    array = np.zeros(SHAPE, np.uint8)
    array.reshape(-1)[: len(values)] = values
    return array


def manifest(root: Path, *cases: Case, **fields: Any) -> Manifest:
    return Manifest(root=root, source="folder", cases=cases, **fields)


def in_memory(path: Path) -> Any:
    """A copy of an image in memory, so that its file may be overwritten."""
    image = nib.load(path)
    return nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, image.header)


def found(report: Report) -> dict[str, list[str]]:
    """The cases of each problem code, without codes of severity info."""
    cases: dict[str, list[str]] = {}
    for problem in report.problems:
        if problem.severity != "info":
            cases.setdefault(problem.code, []).append(problem.case)
    return cases


@pytest.fixture
def broken(tmp_path: Path, write: Write) -> Manifest:
    """One case per problem, among cases without problems."""

    def case(name: str, **fields: Any) -> Case:
        image = tmp_path / f"{name}.nii"
        if not image.exists() and name != "absent":
            write(f"{name}.nii")
        given: dict[str, Any] = {"id": name, "images": (image,), "split": "train"}
        return Case(**{**given, **fields})

    def label(name: str, array: Any, **fields: Any) -> Path:
        return write(f"{name}-label.nii", array, **fields)

    write("nonfinite.nii", np.where(np.arange(120) < 2, np.nan, np.arange(120) % 7).reshape(SHAPE))
    write("constant.nii", np.full(SHAPE, 7.0, np.float32))
    write("bright.nii", np.random.default_rng(0).normal(size=SHAPE) * 1e4)
    write("far.nii", spacing=(1.0, 1.0, 5.0))
    write("fraction-label.nii", np.full(SHAPE, 0.5))
    write("byte.nii", np.arange(120, dtype=np.uint8).reshape(SHAPE))
    write("leak.nii", np.asarray(nib.load(write("first.nii")).dataobj))
    write("twin.nii", np.asarray(nib.load(write("first.nii")).dataobj))
    write("flipped.nii")
    flipped = in_memory(tmp_path / "flipped.nii")
    nib.save(flipped.as_reoriented([[0, -1], [1, 1], [2, 1]]), tmp_path / "flipped.nii")
    (tmp_path / "damaged.nii").write_bytes((tmp_path / "first.nii").read_bytes()[:400])
    image = in_memory(write("turned.nii"))
    image.set_qform(np.diag([1.0, 1.0, 1.5, 1.0]), code=1)
    nib.save(image, tmp_path / "turned.nii")
    positive = np.random.default_rng(1).uniform(0, 900, SHAPE)
    cases = (
        *(case(f"fine{n}", label=label(f"fine{n}", labels(1, 2))) for n in range(4)),
        case("first"),
        case("twin"),
        case("leak", split="val"),
        case("absent"),
        case("damaged"),
        case("nonfinite"),
        case("constant"),
        case("bright"),
        case("far"),
        case("byte"),
        case("flipped"),
        case("turned"),
        case("mask", images=(write("mask-image.nii", labels(*[1] * 60)),)),
        case("hu", modality="CT", images=(write("hu.nii", positive),)),
        case("lost", missing_label=tmp_path / "lost-label.nii"),
        case("shape", label=label("shape", np.ones((6, 5, 3), np.uint8))),
        case("moved", label=label("moved", labels(1), origin=3.0)),
        case("fraction", label=tmp_path / "fraction-label.nii"),
        case("odd", label=label("odd", labels(1, 7))),
        case("empty", label=label("empty", labels())),
        case("unasked", label=label("unasked", labels(1, 2)), annotated=(1,)),
        case("ignored", label=label("ignored", labels(1, 9))),
        case("large", label=label("large", labels(*[1] * 60))),
        case("channels", images=(tmp_path / "fine0.nii", tmp_path / "fine1.nii")),
    )
    names = {1: "liver", 2: "spleen", 3: "kidney"}
    return manifest(tmp_path, *cases, labels=names, ignore_label=9, notes=("read so",))


SHALLOW = {
    "missing-file": ["absent"],
    "shape-mismatch": ["shape"],
    "affine-mismatch": ["moved"],
    "channel-mismatch": ["channels"],
    "split-leak": ["leak"],
    "duplicate": ["twin"],
    "missing-label-file": ["lost"],
    "geometry": ["turned"],
    "spacing-outlier": ["far"],
    "empty-split": [""],
    "unlabelled-split": [""],
}
DEEP = {
    **SHALLOW,
    "unreadable": ["damaged"],
    "nonfinite": ["nonfinite"],
    "non-integer-label": ["fraction"],
    "unexpected-label": ["odd"],
    "constant": ["constant"],
    "empty-label": ["empty"],
    "label-outlier": ["shape", "large"],
    "label-never-present": [""],
    "not-annotated-present": ["unasked"],
    "few-values": ["mask"],
    "intensity-range": ["hu"],
    "intensity-scale": [""],
}


def test_header_problems_are_found_without_reading_voxels(broken: Manifest) -> None:
    report = check(broken)
    assert found(report) == SHALLOW
    assert report.splits == {"train": 27, "val": 1, "test": 0}


def test_every_problem_is_reported_for_its_case(broken: Manifest) -> None:
    report = check(broken, deep=True, workers=1)
    assert found(report) == DEEP
    assert {problem.code for problem in report.problems if problem.severity == "info"} == {
        "missing-label",
        "orientation-mix",
        "dtype-mix",
        "note",
    }
    assert (report.cases, report.labelled, report.subjects) == (28, 12, 28)
    assert report.errors == sum(CODES[code] == "error" for code in DEEP)
    assert report.summary["label_cases"]["1"] == 10
    assert report.summary["orientations"] == {"RAS": 26, "LAS": 1}


def test_the_report_is_json(broken: Manifest) -> None:
    report = check(broken, deep=True, workers=1).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    severities = [problem["severity"] for problem in report["problems"]]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert all(not problem["path"].startswith("/") for problem in report["problems"])


def test_several_processes_give_the_same_report(broken: Manifest) -> None:
    assert check(broken, deep=True, workers=2) == check(broken, deep=True, workers=1)


def test_replaced_voxels_are_not_reported(broken: Manifest) -> None:
    report = check(broken, deep=True, workers=1, options=ReadOptions(nonfinite="min"))
    assert "nonfinite" not in found(report)


def test_a_valid_data_set_has_no_problem(tmp_path: Path, write: Write) -> None:
    cases = [Case(id=n, images=(write(f"{n}.nii.gz"),)) for n in ("a", "b")]
    report = check(manifest(tmp_path, *cases), deep=True)
    assert report.problems == ()
    assert report.summary["shape"]["median"] == list(SHAPE)


def test_labels_without_names(tmp_path: Path, write: Write) -> None:
    case = Case(id="a", images=(write("a.nii"),), label=write("l.nii", labels(4, 2)))
    report = check(manifest(tmp_path, case), deep=True)
    assert [(problem.code, problem.message) for problem in report.problems] == [
        ("unnamed-labels", "labels have no names (values: 2, 4); write labels.json")
    ]


def test_channels_of_one_file_and_of_several(tmp_path: Path, write: Write) -> None:
    whole = write("whole.nii", np.random.default_rng(0).normal(size=(2, *SHAPE)))
    moved = (write("x.nii"), write("y.nii", origin=2.0))
    sides = (write("z.nii"), write("w.nii", np.arange(8.0).reshape(2, 2, 2)))
    cases = (
        Case(id="whole", images=(whole,)),
        Case(id="one", images=(write("one.nii"),)),
        Case(id="moved", images=moved),
        Case(id="sides", images=sides),
    )
    report = check(manifest(tmp_path, *cases, channels=("T1", "T2")), deep=True)
    assert found(report) == {
        "channel-mismatch": ["one"],
        "affine-mismatch": ["moved"],
        "shape-mismatch": ["sides"],
    }


def test_the_modality_is_read_from_the_file(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = examining.read_header
    monkeypatch.setattr(
        examining, "read_header", lambda *given: replace(read(*given), modality="MR")
    )
    cases = [Case(id=m, images=(write(f"{m}.nii"),), modality=m) for m in ("CT", "MR")]
    assert found(check(manifest(tmp_path, *cases))) == {"modality-mismatch": ["CT"]}


def test_a_crash_in_one_case_does_not_affect_the_others(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case(id=n, images=(write(f"{n}.nii"),)) for n in "abc"]
    before = examining._describe

    def describe(header: Any, name: str, facts: Any) -> None:
        if facts.case == "b":
            raise KeyError("surprise")
        before(header, name, facts)

    monkeypatch.setattr(examining, "_describe", describe)
    report = check(manifest(tmp_path, *cases))
    assert [(problem.code, problem.case, problem.message) for problem in report.problems] == [
        ("unreadable", "b", "KeyError: 'surprise'")
    ]


class _Deadly:
    """An object that kills the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_a_killed_process_loses_only_its_case(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "POOL_FROM", 2)
    cases = [
        Case(id=n, images=(write(f"{n}.nii"),), attributes={"x": _Deadly()} if n == "b" else {})
        for n in "abc"
    ]
    report = check(manifest(tmp_path, *cases), deep=True, workers=2)
    assert found(report) == {"unreadable": ["b"]}
    assert "the worker process died" in report.problems[0].message


def test_workers_are_counted_from_one(broken: Manifest) -> None:
    with pytest.raises(MedarError, match="workers must be at least 1, got 0"):
        check(broken, workers=0)


def test_the_reference_lists_every_code() -> None:
    text = Path(__file__).parents[2].joinpath("docs/reference/datasets.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning|info) \|", text, re.MULTILINE)
    assert dict(rows) == CODES


def test_every_code_is_tested() -> None:
    infos = {"missing-label", "orientation-mix", "dtype-mix", "note", "unnamed-labels"}
    elsewhere = {"modality-mismatch", "surprising"}  # the latter in evaluation/test_surprise.py
    assert set(DEEP) | infos | elsewhere == set(CODES)


def test_real_data(shared_data: Path) -> None:
    from medar.data.sources import read_manifest

    report = check(read_manifest(shared_data / "hippocampus_mr"), deep=True, workers=1)
    assert found(report) == {"missing-label-file": ["hippocampus_118"], "intensity-scale": [""]}
    assert report.summary["dtypes"] == {"float32": 170, "uint8": 41}

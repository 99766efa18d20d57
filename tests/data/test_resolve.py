"""A data set in a model's form: used as it is, prepared, or refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.resolve import prepare_for_model
from medar.errors import MedarError

Dataset = Callable[..., Manifest]
MakePlan = Callable[..., Plan]


def test_a_prepared_folder_is_used_directly(
    dataset: Dataset, plan: MakePlan, tmp_path: Path
) -> None:
    prepare(dataset(), plan(), tmp_path / "prepared", workers=1)
    found = prepare_for_model(tmp_path / "prepared", plan(), tmp_path / "other")
    assert found.folder == tmp_path / "prepared"
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"spacing": (2.0, 1.0, 1.0)},
            r"spacing \[1.0, 1.0, 1.0\], but the model's plan has \[2.0",
        ),
        ({"size": (16, 8, 8)}, "prepared with size"),
        ({"mode": "patch"}, "mode volume, but the model's plan has patch"),
        ({"intensity": {}}, "prepared with intensity"),
        ({"labels": {1: "liver"}}, "prepared with labels"),
    ],
)
def test_a_different_plan_is_refused_with_the_difference(
    dataset: Dataset, plan: MakePlan, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    prepare(dataset(), plan(), tmp_path / "prepared", workers=1)
    with pytest.raises(MedarError, match=message):
        prepare_for_model(tmp_path / "prepared", plan(**changed), tmp_path)


def test_unused_labels_and_downsampling_may_differ(
    dataset: Dataset, plan: MakePlan, tmp_path: Path
) -> None:
    prepare(dataset(), plan(), tmp_path / "prepared", workers=1)
    other = plan(labels={7: "liver"}, downsampling=(4, 4, 4))
    assert prepare_for_model(tmp_path / "prepared", other, tmp_path, labels=False).failed == {}


@pytest.mark.parametrize("labels", [True, False])
def test_a_data_set_is_prepared_with_the_model_plan(
    dataset: Dataset, plan: MakePlan, tmp_path: Path, labels: bool
) -> None:
    manifest = dataset(4)
    manifest.save(tmp_path / "in.jsonl")
    chosen = plan(size=(4, 8, 8), labels={1: "a", 2: "b"} if labels else {})
    for _ in range(2):  # the second time all is there
        found = prepare_for_model(
            tmp_path / "in.jsonl", chosen, tmp_path / "out", labels=labels, workers=1
        )
    prepared = Prepared(found.folder)
    assert prepared.plan == chosen
    assert len(prepared) == 4
    assert (prepared.label(prepared[0]) is not None) == labels
    assert [prepared[k].split for k in range(4)] == [case.split for case in manifest]


def test_reading_options_come_from_the_caller(
    dataset: Dataset, plan: MakePlan, tmp_path: Path
) -> None:
    manifest = dataset(2)
    calls = []

    def read(path: Path, before: Manifest | None) -> Manifest:
        calls.append((path, before is None))
        return manifest.with_cases(tuple(replace(c, split="test") for c in manifest))

    for _ in range(2):
        prepare_for_model(tmp_path / "x", plan(), tmp_path / "out", workers=1, read=read)
    assert calls == [(tmp_path / "x", True), (tmp_path / "x", False)]
    assert Prepared(tmp_path / "out")[0].split == "test"


def test_skipped_cases_are_reported(dataset: Dataset, plan: MakePlan, tmp_path: Path) -> None:
    manifest = dataset(3)
    manifest.save(tmp_path / "in.jsonl")
    manifest.cases[1].images[0].write_bytes(b"broken")
    found = prepare_for_model(tmp_path / "in.jsonl", plan(), tmp_path / "out", workers=1)
    assert list(found.failed) == ["c1"]

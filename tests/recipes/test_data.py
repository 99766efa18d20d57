"""The data set of a recipe: requirements, and digests of files and results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data import prepare as preparing
from medar.data.cache import ArrayCache
from medar.data.case import Case
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.prepared import CASES_FILE
from medar.errors import MedarError
from medar.files import LOCK
from medar.recipes.data import (
    check_data,
    copy_hashes,
    data_digests,
    data_manifest,
    file_digests,
    files_result,
    folder_digest,
    manifest_in,
    prepared_result,
    resolve_data,
    tokens_result,
)
from medar.recipes.settings import DataSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokens import MAPS, TokenCase, TokenIndex
from medar.volume import Volume, write_nifti


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    """A folder of six volumes."""
    for number in range(6):
        add(tmp_path / "data", number)
    return DataSettings(path=tmp_path / "data", workers=1)


def add(folder: Path, number: int, value: float = 1.0) -> None:
    volume = Volume.from_array(np.full((4, 4, 4), value, np.float32), np.eye(4))
    write_nifti(folder / f"c{number}.nii.gz", volume)


def test_the_data_set_must_exist(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text("")
    for path, message in (
        (None, "no data set: name one with --data"),
        (tmp_path / "no", "no such file or folder"),
        (tmp_path, "is already prepared"),
    ):
        with pytest.raises(MedarError, match=message):
            check_data(DataSettings(path=path))


def test_a_run_inside_its_data_folder_is_refused(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    check_data(data, tmp_path / "data-runs" / "x")
    for out in (data.path, data.path / "runs" / "x"):
        with pytest.raises(MedarError, match="is inside the data set"):
            check_data(data, out)


def test_single_files_are_identified_by_content(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("1")
    before = file_digests({"weights": tmp_path / "w", "nothing": None})
    assert list(before) == ["the content of weights"]
    (tmp_path / "w").rename(tmp_path / "v")
    assert file_digests({"weights": tmp_path / "v"}) == before
    (tmp_path / "v").write_text("2")
    assert file_digests({"weights": tmp_path / "v"}) != before
    with pytest.raises(MedarError, match="w: cannot be read"):
        file_digests({"weights": tmp_path / "w"})


def test_folders_are_identified_by_content(tmp_path: Path) -> None:
    add(tmp_path / "pairs", 0)
    before = folder_digest("pairs", tmp_path / "pairs", tmp_path)
    assert list(before) == ["the content of pairs"]
    (tmp_path / "pairs").rename(tmp_path / "moved")
    (tmp_path / "moved" / LOCK).touch()  # left by a process that was killed
    assert folder_digest("pairs", tmp_path / "moved", tmp_path) == before
    add(tmp_path / "moved", 0, value=2.0)
    assert folder_digest("pairs", tmp_path / "moved", tmp_path) != before
    assert folder_digest("pairs", None, tmp_path) == {}
    with pytest.raises(MedarError, match="pairs: no such folder"):
        folder_digest("pairs", tmp_path / "pairs", tmp_path)


def test_a_read_only_folder_can_be_planned(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise MedarError(f"{path}: cannot be written")

    out = tmp_path / "out"
    out.mkdir()
    before = data_digests(data, out)
    monkeypatch.setattr("medar.data.hashes.SETTLED", -1)
    monkeypatch.setattr("medar.data.hashes.write_text", refuse)
    assert data_digests(data, out) == before


def test_digests_follow_the_content(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    out = tmp_path / "out"
    before = data_digests(data, out)
    assert not out.exists()
    out.mkdir()
    assert data_digests(data, out) == before
    data.path.rename(tmp_path / "moved")
    moved = DataSettings(path=tmp_path / "moved", workers=1)
    assert data_digests(moved, out) == before
    add(tmp_path / "moved", 3, value=2.0)
    changed = data_digests(moved, out)
    assert {n for n in before if before[n] != changed[n]} == {"the content of files"}
    add(tmp_path / "moved", 6)
    assert data_digests(moved, out)["the list of cases"] != before["the list of cases"]


def test_hashes_are_cached_once(tmp_path: Path) -> None:
    copy_hashes(tmp_path, tmp_path / "prepared")  # there is nothing to copy, and no error
    (tmp_path / "hashes.json").write_text("{}")
    copy_hashes(tmp_path, tmp_path / "prepared")
    assert (tmp_path / "prepared" / "hashes.json").read_text() == "{}"


def test_splits_are_stable_when_data_are_added(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    out = tmp_path / "out"
    first = manifest_in(data, out)
    # As a run leaves it that was moved aside since.
    first.save(out / "old" / "prepare-1" / "manifest.jsonl")
    for number in range(6, 30):
        add(data.path, number)
    then = manifest_in(data, out)
    assert len(then) == 30
    splits = {case.id: case.split for case in then}
    assert all(splits[case.id] == case.split for case in first)


PLAN = Plan(
    spacing=(1.0, 1.0, 1.0),
    mode="volume",
    size=(8, 8, 8),
    downsampling=(2, 2, 2),
    intensity={"MR": IntensityRule(kind="window", low=-3.0, high=3.0)},
    labels={},
)


def prepared(data: Path, out: Path, **changes: Any) -> str:
    """Prepare the volume of a folder with a changed case and return the digest."""
    file = data / "c0.nii.gz"
    if not file.exists():
        array = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
        write_nifti(file, Volume.from_array(array, np.eye(4)))
    case = Case(id="c0", images=(file,), modality="MR", split="train")
    cases = (replace(case, **changes),)
    prepare(Manifest(root=data, source="folder", cases=cases, labels={}), PLAN, out, workers=1)
    return prepared_result(out)


def test_prepared_data_are_identified_by_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(tmp_path / "data", tmp_path / "a")
    assert prepared(tmp_path / "data", tmp_path / "b", split="val") != before
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setattr(preparing, "VERSION", "another")
    assert prepared(tmp_path / "moved", tmp_path / "c") == before
    names = [(tmp_path / folder / CASES_FILE).read_text() for folder in ("a", "c")]
    assert names[0] != names[1]


def test_code_that_changes_values_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(tmp_path / "data", tmp_path / "a")
    usual = preparing.prepare_image

    def shifted(volume: Volume, plan: Plan) -> Any:
        array, trace = usual(volume, plan)
        return array + np.float32(0.01), trace

    monkeypatch.setattr(preparing, "prepare_image", shifted)
    assert prepared(tmp_path / "data", tmp_path / "b") != before
    # The names of arrays are the same: that of a case is no digest of its content.
    names = [(tmp_path / folder / CASES_FILE).read_text() for folder in ("a", "b")]
    assert names[0] == names[1]


def tokens(folder: Path, file: bytes = b"1", voxel: int = 0, **changes: Any) -> str:
    """Write the tokens of one case and return the digest of the folder."""
    values: dict[str, Any] = {
        "id": "c0", "subject": "c0", "split": "train", "modality": "MR", "attributes": {"age": 1},
        "annotated": (1,), "image": "image-1", "label": "label-1", "trace": {"path": "here"},
    }  # fmt: skip
    case = TokenCase(**{**values, **changes})
    index = TokenIndex(
        tokenizer="t", schedule=ScaleSchedule(grids=((1, 1, 1),)), codebook_size=3, plan="p",
        seed=0, variants=0, augmentation=None, maps={1: "liver"}, cases=(case,),
    )  # fmt: skip
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    index.save(folder)
    (folder / case.file).write_bytes(file)
    ArrayCache(folder / MAPS).put("c0", np.full((1, 2, 2, 2), voxel, np.int8), {}, whole=True)
    return tokens_result(folder)


def test_tokens_are_identified_by_content(tmp_path: Path) -> None:
    before = tokens(tmp_path / "a")
    ways = {"image": "image-2", "label": "label-2", "trace": {"path": "there"}}
    assert tokens(tmp_path / "b", **ways) == before
    others = [{"file": b"2"}, {"voxel": 1}, {"split": "val"}, {"attributes": {"age": 2}}]
    found = [tokens(tmp_path / str(n), **options) for n, options in enumerate(others)]  # type: ignore[arg-type]
    assert len({before, *found}) == 5


def test_files_are_identified_by_name_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "a").write_text("1")
    (tmp_path / "log").write_text("1")
    before = files_result(tmp_path, "model/**/*")
    (tmp_path / "log").write_text("2")
    assert files_result(tmp_path, "model/**/*") == before
    (tmp_path / "model" / "inner" / "a").write_text("2")
    changed = files_result(tmp_path, "model/**/*")
    (tmp_path / "model" / "inner" / "a").rename(tmp_path / "model" / "b")
    assert len({before, changed, files_result(tmp_path, "model/**/*")}) == 3


WINDOW = {"kind": "window", "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    ("rules", "modality"), [({}, None), ({"MR": WINDOW}, "MR"), ({"other": WINDOW}, None)]
)
def test_the_only_modality_of_the_plan_is_inferred(
    data: DataSettings, tmp_path: Path, rules: dict[str, Any], modality: str | None
) -> None:
    resolved, message = resolve_data(data, tmp_path / "out", {"intensity": rules}, "held-out")
    assert resolved.modality == modality
    assert bool(message) == (modality is not None)
    if message:
        assert f"taken as {modality}, the only one in the plan" in message


def test_a_stated_modality_is_not_inferred(data: DataSettings, tmp_path: Path) -> None:
    stated = replace(data, modality="MR")
    resolved, message = resolve_data(stated, tmp_path, {"intensity": {"MR": WINDOW}}, "held-out")
    assert (resolved, message) == (stated, "")


@pytest.mark.parametrize(
    ("stated", "rules"), [(None, {"CT": WINDOW, "MR": WINDOW}), ("CT", {"MR": WINDOW})]
)
def test_volumes_without_an_intensity_rule_are_refused(
    data: DataSettings, tmp_path: Path, stated: Any, rules: dict[str, Any]
) -> None:
    data = replace(data, modality=stated)
    with pytest.raises(MedarError, match=f"volumes state {stated or 'no modality'}, and the plan"):
        resolve_data(data, tmp_path, {"intensity": rules}, "held-out")


def test_too_few_cases_are_refused(data: DataSettings, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"none of the \d cases in the split 'train' is labelled"):
        resolve_data(data, tmp_path, {}, "test", labelled=True)
    assert data.path is not None
    for case in list(data_manifest(data))[2:]:
        case.images[0].unlink()
    with pytest.raises(MedarError, match="of 2 cases in the split 'train', at least 2"):
        resolve_data(data, tmp_path, {}, "held-out")

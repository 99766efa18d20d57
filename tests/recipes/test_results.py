"""Digests of what stages leave: content changes them, the way there does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data import prepare as preparing
from medar.data.cache import ArrayCache
from medar.data.case import Case
from medar.data.intensity import IntensityRule
from medar.data.layout import CASES_FILE
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.recipes.results import files_content, prepared_content, tokens_content
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokens import MAPS, TokenCase, TokenIndex
from medar.volume import Volume, write_nifti

PLAN = Plan(
    spacing=(1.0, 1.0, 1.0),
    mode="volume",
    size=(8, 8, 8),
    downsampling=(2, 2, 2),
    intensity={"MR": IntensityRule(kind="window", low=-3.0, high=3.0)},
    labels={},
)


def prepared(data: Path, out: Path, **changes: Any) -> str:
    """Prepare the volume of a folder, its case changed; the digest."""
    file = data / "c0.nii.gz"
    if not file.exists():
        array = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
        write_nifti(file, Volume.from_array(array, np.eye(4)))
    case = Case(id="c0", images=(file,), modality="MR", split="train")
    cases = (replace(case, **changes),)
    prepare(Manifest(root=data, source="folder", cases=cases, labels={}), PLAN, out, workers=1)
    return prepared_content(out)


def test_prepared_data_count_by_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(tmp_path / "data", tmp_path / "a")
    assert prepared(tmp_path / "data", tmp_path / "b", split="val") != before
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setattr(preparing, "VERSION", "another")
    assert prepared(tmp_path / "moved", tmp_path / "c") == before
    names = [(tmp_path / place / CASES_FILE).read_text() for place in ("a", "c")]
    assert names[0] != names[1]


def test_code_that_gives_other_values_is_seen(
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
    names = [(tmp_path / place / CASES_FILE).read_text() for place in ("a", "b")]
    assert names[0] == names[1]


def tokens(folder: Path, file: bytes = b"1", voxel: int = 0, **changes: Any) -> str:
    """A folder of one case in tokens; its digest."""
    said: dict[str, Any] = {
        "id": "c0", "subject": "c0", "split": "train", "modality": "MR", "attributes": {"age": 1},
        "annotated": (1,), "image": "image-1", "label": "label-1", "trace": {"path": "here"},
    }  # fmt: skip
    case = TokenCase(**{**said, **changes})
    index = TokenIndex(
        tokenizer="t", schedule=ScaleSchedule(grids=((1, 1, 1),)), codebook_size=3, plan="p",
        seed=0, variants=0, augmentation=None, maps={1: "liver"}, cases=(case,),
    )  # fmt: skip
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    index.save(folder)
    (folder / case.file).write_bytes(file)
    ArrayCache(folder / MAPS).put("c0", np.full((1, 2, 2, 2), voxel, np.int8), {}, whole=True)
    return tokens_content(folder)


def test_tokens_count_by_their_content(tmp_path: Path) -> None:
    before = tokens(tmp_path / "a")
    ways = {"image": "image-2", "label": "label-2", "trace": {"path": "there"}}
    assert tokens(tmp_path / "b", **ways) == before
    others = [{"file": b"2"}, {"voxel": 1}, {"split": "val"}, {"attributes": {"age": 2}}]
    found = [tokens(tmp_path / str(n), **one) for n, one in enumerate(others)]  # type: ignore[arg-type]
    assert len({before, *found}) == 5


def test_files_count_by_name_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "a").write_text("1")
    (tmp_path / "log").write_text("1")
    before = files_content(tmp_path, "model/**/*")
    (tmp_path / "log").write_text("2")
    assert files_content(tmp_path, "model/**/*") == before
    (tmp_path / "model" / "inner" / "a").write_text("2")
    changed = files_content(tmp_path, "model/**/*")
    (tmp_path / "model" / "inner" / "a").rename(tmp_path / "model" / "b")
    assert len({before, changed, files_content(tmp_path, "model/**/*")}) == 3

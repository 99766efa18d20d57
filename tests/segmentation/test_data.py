"""Training cases: label fractions, folds, annotated subjects, and initial head biases."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_segmenters import make_plan, make_settings
from torch import nn

from medar.data.loading import UNKNOWN, PreparedDataset
from medar.data.prepared import Prepared, PreparedCase
from medar.errors import MedarError
from medar.segmentation.data import AnnotatedDataset, annotated_indices, fold_splits
from medar.segmentation.settings import DataSettings, parse_fraction
from medar.segmentation.training import MAX_TOTAL_FRACTION, MIN_FRACTION, label_fractions, make_task


def subjects(folder: Path, fraction: float, seed: int = 0) -> list[str]:
    return AnnotatedDataset(folder, DataSettings(label_fraction=fraction, label_seed=seed)).subjects


def test_label_fractions_are_nested(prepared: Path) -> None:
    whole = subjects(prepared, 1.0)
    assert sorted(whole) == ["s1", "s2", "s3", "s4"], "nobody looked at the case of s5"
    for fraction, count in ((0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)):
        assert subjects(prepared, fraction) == whole[:count]
    assert len({tuple(subjects(prepared, 1.0, seed)) for seed in range(9)}) > 1


def test_a_subject_comes_with_all_its_cases(prepared: Path) -> None:
    for seed in range(9):
        data = AnnotatedDataset(prepared, DataSettings(label_fraction=0.25, label_seed=seed))
        ids = [data.base.prepared[index].id for index in data.indices]
        assert ids == (["c0", "c1"] if data.subjects == ["s1"] else [f"c{data.subjects[0][1:]}"])
        assert {int(data[item]["index"]) for item in range(len(data))} == set(data.indices)


def test_the_epoch_length_does_not_depend_on_the_label_fraction(prepared: Path) -> None:
    few = AnnotatedDataset(prepared, DataSettings(label_fraction=0.25, label_seed=1), seed=3)
    assert len(few) == len(AnnotatedDataset(prepared, DataSettings())) == 5
    first, again = few[0]["image"], few[len(few.indices)]["image"]
    assert not torch.equal(first, again), "the same case, augmented otherwise"
    assert torch.equal(first, few[0]["image"])
    assert few.digest != AnnotatedDataset(prepared, DataSettings()).digest


def test_items_contain_the_annotated_labels(prepared: Path) -> None:
    data = AnnotatedDataset(prepared, DataSettings(augmentation=None))
    known = {int(data[n]["index"]): data[n]["annotated"].tolist() for n in range(len(data))}
    assert known[0] == [True, True]
    assert known[4] == [True, False]


def test_folds_partition_the_annotated_subjects(prepared: Path) -> None:
    held_out = []
    for fold in range(3):
        splits = fold_splits(prepared, DataSettings(fold=fold, folds=3))
        train = AnnotatedDataset(prepared, DataSettings(fold=fold, folds=3), splits=splits)
        validation = PreparedDataset(prepared, split="val", splits=splits)
        held = {validation.prepared[index].subject for index in range(len(validation))}
        assert held.isdisjoint(train.subjects)
        assert sorted({*held, *train.subjects}) == ["s1", "s2", "s3", "s4", "s6", "s7"]
        held_out += sorted(held)
    assert sorted(held_out) == ["s1", "s2", "s3", "s4", "s6", "s7"]
    assert fold_splits(prepared, DataSettings()) is None


def test_invalid_folds_are_refused(prepared: Path) -> None:
    with pytest.raises(MedarError, match="folds must be at most 6"):
        fold_splits(prepared, DataSettings(fold=0, folds=7))
    with pytest.raises(MedarError, match="fold must be at most folds - 1 = 4, got 5"):
        DataSettings(fold=5)
    with pytest.raises(MedarError, match="folds must be at least 2, got 1"):
        DataSettings(folds=1)


def test_validation_cases_are_spread(prepared: Path) -> None:
    train = PreparedDataset(prepared, split="train")
    assert annotated_indices(train, 9) == [0, 1, 2, 3, 4]
    assert annotated_indices(train, 2) == [0, 2]


def test_data_without_labels_are_refused(unlabelled: Path) -> None:
    with pytest.raises(MedarError, match="no annotated case in the split 'train'"):
        AnnotatedDataset(unlabelled, DataSettings())
    with pytest.raises(MedarError, match="no annotated case to validate with"):
        annotated_indices(PreparedDataset(unlabelled, split="val"), 4)


def test_fractions_are_parsed() -> None:
    assert [parse_fraction(text) for text in ("10%", "10 %", "0.1", ".1", "100%", "1", "2.5%")] == [
        0.1, 0.1, 0.1, 0.1, 1.0, 1.0, 0.025,
    ]  # fmt: skip
    for text in ("10", "0", "0%", "101%", "-5%", "many", ""):
        with pytest.raises(MedarError, match="a fraction of the subjects"):
            parse_fraction(text)


class Cases:
    """Label maps and their annotated labels, as a substitute for a prepared data set."""

    def __init__(self, *cases: tuple[list[int], list[int]]) -> None:
        self.cases = [(np.array(voxels), annotated) for voxels, annotated in cases]

    def __getitem__(self, index: int) -> PreparedCase:
        return PreparedCase(
            id=str(index), subject=str(index), split="train", modality="CT", image="",
            annotated=tuple(self.cases[index][1]), attributes={}, label="",
        )  # fmt: skip

    def label(self, case: PreparedCase) -> npt.NDArray[Any]:
        return self.cases[int(case.id)][0].reshape(1, -1, 1, 1)


def fractions(*cases: tuple[list[int], list[int]]) -> list[float]:
    return label_fractions(Cases(*cases), range(len(cases)), make_plan())  # type: ignore[arg-type]


def test_label_fractions_are_means_over_annotated_cases() -> None:
    first = ([3, 7] + [0] * 18, [3, 7])
    second = ([3, 3, 3, 7] + [0] * 16, [3])
    assert fractions(first, second) == pytest.approx([0.1, 0.05])


def test_unknown_voxels_are_ignored() -> None:
    assert fractions(([3] + [0] * 9 + [UNKNOWN] * 10, [3, 7])) == pytest.approx([0.1, MIN_FRACTION])


def test_label_fractions_are_bounded() -> None:
    assert fractions(([0] * 10, [3])) == [MIN_FRACTION, MIN_FRACTION]
    assert sum(fractions(([3] * 9 + [7], [3, 7]))) == pytest.approx(MAX_TOTAL_FRACTION)
    assert fractions(([3] * 9 + [7], [3, 7])) == pytest.approx(
        [0.9 * MAX_TOTAL_FRACTION, 0.1 * MAX_TOTAL_FRACTION]
    )


def test_large_label_maps_are_subsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medar.segmentation.training.SAMPLED_VOXELS", 10)
    assert fractions(([3, 0] * 500, [3, 7]))[0] == pytest.approx(0.5, abs=0.1)


def test_head_biases_start_at_the_label_fractions(prepared: Path) -> None:
    task = make_task(make_settings(loss__deep_supervision_levels=1), prepared)
    cases = [n for n in range(6) if n != 5]
    expected = label_fractions(Prepared(prepared), cases, task.train.plan)
    assert task.deep is not None
    for head in (task.model.head, *task.deep.heads):
        assert isinstance(head, nn.Conv3d)
        silent = head(torch.zeros(1, head.in_channels, 1, 1, 1)).softmax(1).flatten()
        torch.testing.assert_close(silent[1:], torch.tensor(expected))

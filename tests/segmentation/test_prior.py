"""Initial predictions: head biases from the label fractions of the training cases."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_segmenters import make_plan, make_settings
from torch import nn

from medar.data.loading import UNKNOWN
from medar.data.prepared import Prepared, PreparedCase
from medar.segmentation.training import MAX_TOTAL_FRACTION, MIN_FRACTION, label_fractions, make_task


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

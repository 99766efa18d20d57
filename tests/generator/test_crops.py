"""Random crops in training: the same loss where they cover all, unbiased where they do not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.crops import Crop, crop_starts, cropped_length, draw_crop
from medar.generator.settings import ModelSettings
from medar.generator.task import GeneratorTask
from medar.generator.training import make_task
from medar.tokenizer.schedule import ScaleSchedule

from ..synthesis.tiny import tiny_tokenizer
from .conftest import MakeModel
from .toy_tokens import CERTAIN, settings, write_tokens

WINDOWS = {"window_size": 2, "window_min_side": 2}
UNEVEN = ScaleSchedule(grids=((1, 1, 1), (2, 3, 2), (5, 7, 2)))


def every_crop(schedule: ScaleSchedule, side: int, step: int) -> list[Crop]:
    """All crops of a schedule, once each."""
    found: dict[tuple[int, ...], Crop] = {}
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        crop = draw_crop(schedule, side, step, random)
        found.setdefault(tuple(crop.indices.tolist()), crop)
    return list(found.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"), tiny_tokenizer(), noise=0.5)


def task_of(folder: Path, objective: dict[str, Any], **model: Any) -> GeneratorTask:
    task = make_task(
        settings(
            model={"depth": 1, "head_width": 12, "mlp_ratio": 2.0, **WINDOWS, **model},
            objective=objective,
            condition__drop_probability=0,
        ),
        folder,
    )
    torch.manual_seed(5)
    with torch.no_grad():
        task.model.head.weight.normal_()
    return task


def test_a_crop_of_everything_has_the_plain_loss_bit_by_bit(folder: Path) -> None:
    results = []
    for side in (None, 4):
        objective = {"corrupted_token_fraction": 0.3, "known_box_fraction": 0.5}
        task = task_of(folder, objective, depth=2, head_width=6, crop_side=side)
        torch.manual_seed(0)
        loss, named = task.loss(next(task.batches(0, 0)), 0)
        loss.backward()
        weights = task.model.named_parameters()
        results.append((named, {name: one.grad for name, one in weights if one.grad is not None}))
    (named, grads), (cropped, cropped_grads) = results
    assert len(named) == 4
    assert all(torch.equal(named[name], cropped[name]) for name in named)
    torch.testing.assert_close(cropped_grads, grads, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_the_mean_over_all_crops_is_the_loss_of_the_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly so where crops cut no window: one block, crops that start where windows do."""
    whole, cropped = (task_of(folder, CERTAIN["objective"], crop_side=n) for n in (None, 2))
    batch = next(whole.batches(0, 0))
    expected, _ = whole.loss(batch, 0)
    losses = []
    for crop in every_crop(whole.model.schedule, 2, 2):
        monkeypatch.setattr("medar.generator.task.draw_crop", lambda *_, one=crop: one)
        losses.append(cropped.loss(batch, 0)[0])
    assert len(losses) == 8
    torch.testing.assert_close(torch.stack(losses).mean(), expected)
    assert torch.stack(losses).std() > 1e-3


def test_each_token_counts_once_on_average() -> None:
    """Also where crops overlap and grids are no multiples of them."""
    crops = every_crop(UNEVEN, 3, 2)
    assert len(crops) == 2 * 3
    ones = [crop.spread(torch.ones(1, len(crop.indices)), UNEVEN.length) for crop in crops]
    torch.testing.assert_close(torch.stack(ones).mean(0), torch.ones(1, UNEVEN.length))
    length = cropped_length(UNEVEN, 3)
    assert {len(crop.indices) for crop in crops} == {length} == {1 + 12 + 18}
    first, last = crop_starts(7, 3, 2)[0], crop_starts(7, 3, 2)[-1]
    assert (first, last, crop_starts(2, 3, 2)) == (0, 4, [0])


@torch.no_grad()
@pytest.mark.parametrize(("map_channels", "mixer"), [(0, "none"), (3, "none"), (3, "none+1")])
def test_tokens_of_a_crop_are_those_of_the_whole(
    make_model: MakeModel, tokens: Tensor, condition: Condition, map_channels: int, mixer: str
) -> None:
    """Positions, map and coarser scales are the volume's; one block, crops that cut no window."""
    sizes = {"depth": 1, "head_width": 12, "crop_side": 2, **WINDOWS}
    model = make_model(mixer=mixer, map_channels=map_channels, **sizes)
    if map_channels:
        condition = Condition(
            attributes=condition.attributes, map=torch.rand(3, map_channels, 6, 4, 6)
        )
    known = torch.rand(tokens.shape) < 0.3
    whole = model(tokens, condition, known)
    for crop in every_crop(model.schedule, 2, 2):
        start = crop.indices[crop.indices >= 9][0] - 9
        cut = model(tokens, condition, known, crop.indices)
        same = cut.shape[1] if start == 0 else 9  # the last sites of 3 are a window of their own
        torch.testing.assert_close(cut[:, :same], whole[:, crop.indices[:same]])
        assert cut.shape[1] == cropped_length(model.schedule, 2) == 1 + 8 + 8


def test_crops_are_drawn_and_counted(folder: Path) -> None:
    task = task_of(folder, {}, crop_side=2)
    batch = next(task.batches(0, 0))
    assert task.amount(batch) == len(batch["tokens"]) * (1 + 8 + 8)
    crop = task._draw_crop(torch.Generator().manual_seed(0), torch.device("cpu"))
    assert crop is not None
    assert crop.weights[-1] == 8  # one of eight crops holds a site of the finest grid
    assert task_of(folder, {})._draw_crop(torch.Generator(), torch.device("cpu")) is None


def test_the_model_stays_the_same(make_model: MakeModel) -> None:
    plain, cropped = make_model(**WINDOWS), make_model(**WINDOWS, crop_side=2)
    assert plain.digest == cropped.digest
    assert list(plain.state_dict()) == list(cropped.state_dict())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_side": 12}, "a multiple of window_size 8 and at least window_min_side 12, got 12"),
        ({"crop_side": 8}, "a multiple of window_size 8 and at least window_min_side 12, got 8"),
        ({"crop_side": 16, "mixer": {"kind": "mamba"}}, "needs mixer.kind none, got 'mamba'"),
    ],
)
def test_crops_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        settings(model=values)
    assert ModelSettings(crop_side=16).crop_side == 16

"""Deep supervision: losses of all levels, and auxiliary heads that are not exported."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_segmenters import make_plan, make_segmenter, make_settings

from medar.errors import MedarError
from medar.losses import label_losses, to_classes
from medar.segmentation.backbones import BackboneSettings, TrunkSettings
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import LossSettings
from medar.segmentation.task import DeepSupervision
from medar.segmentation.training import make_task, train_segmenter

SIZE = (32, 32, 16)
KINDS = {
    "dynunet": BackboneSettings(width=4, max_levels=4),
    "segresnet": BackboneSettings(kind="segresnet", width=8, max_levels=3),
    "trunk": BackboneSettings(
        kind="trunk", width=4, trunk=TrunkSettings(depth=1, head_width=8, scales=2)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_supervision_levels_match_the_decoder(kind: str) -> None:
    torch.manual_seed(0)
    model = Segmenter(KINDS[kind], make_plan(size=SIZE)).eval()
    backbone = model.backbone
    volumes = torch.randn(1, 1, *SIZE)
    classes = torch.randint(-1, 3, (1, 1, *SIZE))
    most = len(backbone.channels) - 2
    levels = DeepSupervision(model, most)(model, volumes, classes)
    assert len(levels) == most + 1 > 1
    assert torch.equal(levels[0].logits, model(volumes))
    assert torch.equal(levels[0].classes, classes)
    for level, step in zip(levels, backbone.steps, strict=False):
        sides = tuple(n // s for n, s in zip(SIZE, step, strict=True))
        assert level.logits.shape == (1, 3, *sides)
        assert level.classes.shape == (1, 1, *sides)
    weights = [level.weight for level in levels]
    assert sum(weights) == pytest.approx(1)
    assert all(fine == 2 * coarse for fine, coarse in pairwise(weights))
    with pytest.raises(MedarError, match=f"deep_supervision_levels must be at most {most}"):
        DeepSupervision(model, most + 1)


def test_coarse_labels_are_sampled_at_voxel_centres_and_padding_is_ignored() -> None:
    model = make_segmenter(make_plan(size=(16, 16, 16)))
    assert model.backbone.multiple == (4, 4, 4)
    classes = torch.arange(13 * 16 * 15).view(1, 1, 13, 16, 15)
    deep = DeepSupervision(model, 1)
    fine, coarse = deep(model, torch.randn(1, 1, 13, 16, 15), classes)
    assert fine.logits.shape[2:] == fine.classes.shape[2:] == (16, 16, 16)
    assert torch.equal(fine.classes[:, :, :13, :, :15], classes)
    assert (fine.classes[:, :, 13:] == -1).all()
    assert (fine.classes[..., 15:] == -1).all()
    assert torch.equal(coarse.classes, fine.classes[:, :, 1::2, 1::2, 1::2])


def test_the_loss_is_the_weighted_sum_over_levels(prepare_with: Callable[..., Path]) -> None:
    folder = prepare_with(size=(16, 16, 8))
    settings = make_settings(
        loss__deep_supervision_levels=1, loss__dice=0.5, data__augmentation=None
    )
    task, plain = make_task(settings, folder), make_task(make_settings(), folder)
    assert task.deep is not None
    own = task.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.model.state_dict().items())
    batch = next(iter(task.batches(0, 0)))
    total, parts = task.loss(batch, 0)
    classes = to_classes(batch["label"], [3, 7])
    levels = task.deep(task.model, batch["image"], classes)
    each = [label_losses(level.logits, level.classes, batch["annotated"]) for level in levels]
    losses = [entropy + 0.5 * dice for entropy, dice in each]
    torch.testing.assert_close(total, (2 * losses[0] + losses[1]) / 3)
    assert torch.equal(parts["cross_entropy"], each[0].cross_entropy)
    assert torch.equal(parts["dice"], each[0].dice)


def test_auxiliary_heads_are_trained_but_not_exported(
    prepare_with: Callable[..., Path], tmp_path: Path
) -> None:
    folder = prepare_with(size=(16, 16, 8))
    settings = make_settings(loss__deep_supervision_levels=1, training__ema_decay=0.0)
    train_segmenter(settings, folder, tmp_path / "deep")
    saved = load_file(tmp_path / "deep" / "model" / "model.safetensors")
    assert set(saved) == set(Segmenter.from_pretrained(tmp_path / "deep").state_dict())
    before = make_task(settings, folder).companions()["deep_supervision"].state_dict()
    (last,) = (tmp_path / "deep" / "checkpoints").glob("*2*")
    after = torch.load(last, weights_only=True)["companions"]["deep_supervision"]
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(MedarError, match=r"task\.loss"):
        train_segmenter(make_settings(training__ema_decay=0.0), folder, tmp_path / "deep")
    with pytest.raises(MedarError, match="deep_supervision_levels must be at least 0, got -1"):
        LossSettings(deep_supervision_levels=-1)
    with pytest.raises(MedarError, match="leaves no level to train"):
        make_settings(loss__deep_supervision_levels=1, transfer__frozen=True)

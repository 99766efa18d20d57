"""Training: patches, pretrained and frozen weights, deep supervision, and outputs."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_segmenters import make_plan, make_segmenter, make_settings
from torch import Tensor

from medar.errors import MedarError
from medar.losses import label_losses, to_classes
from medar.segmentation.backbones import BackboneSettings, TrunkSettings, make_backbone
from medar.segmentation.data import AnnotatedDataset
from medar.segmentation.segmenter import (
    Segmenter,
    save_backbone,
)
from medar.segmentation.settings import DataSettings, LossSettings, TransferSettings
from medar.segmentation.task import DeepSupervision
from medar.segmentation.training import make_task, train_segmenter
from medar.settings import to_dict


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_reduces_the_loss_and_saves_a_network(prepared: Path, tmp_path: Path) -> None:
    settings = make_settings(
        training__steps=40, training__learning_rate=0.01, training__ema_decay=0.5,
        training__evaluate_every=20, data__augmentation=None,
    )  # fmt: skip
    outcome = train_segmenter(settings, prepared, tmp_path)
    assert set(outcome.metrics) == {"dice", "dice_liver", "dice_spleen"}
    assert outcome.metrics["dice"] > 0.6
    mean = (outcome.metrics["dice_liver"] + outcome.metrics["dice_spleen"]) / 2
    assert outcome.metrics["dice"] == pytest.approx(mean)
    assert lines(tmp_path)[-1]["train/loss"] < lines(tmp_path)[0]["train/loss"]
    model = Segmenter.from_pretrained(tmp_path, "cpu")
    task = make_task(settings, prepared)
    task.model.load_state_dict(model.state_dict())
    assert task.evaluate()["dice"] == pytest.approx(outcome.best, abs=1e-4)


def test_unannotated_labels_give_no_gradient(prepared: Path) -> None:
    task = make_task(make_settings(data__batch_size=1, data__augmentation=None), prepared)
    batch = next(b for b in task.batches(0, 0) if not b["annotated"].all())
    before = task.loss(batch, 0)[0]
    unseen = torch.where(batch["label"] == 7, 0, batch["label"])
    after = task.loss({**batch, "label": unseen}, 0)[0]
    assert (batch["label"] == 7).any()
    assert torch.equal(before, after)


def test_weights_of_the_loss(prepared: Path) -> None:
    task = make_task(make_settings(loss__dice=0.5, loss__cross_entropy=2.0), prepared)
    total, parts = task.loss(next(iter(task.batches(0, 0))), 0)
    torch.testing.assert_close(total, 2 * parts["cross_entropy"] + 0.5 * parts["dice"])


def test_patches(prepare_with: Callable[..., Path], tmp_path: Path) -> None:
    folder = prepare_with(mode="patch", size=(8, 8, 8))
    outcome = train_segmenter(make_settings(data__foreground_fraction=1.0), folder, tmp_path)
    assert 0 <= outcome.metrics["dice"] <= 1


def test_the_label_fraction_is_part_of_the_run(prepared: Path, tmp_path: Path) -> None:
    settings = make_settings()
    train_segmenter(settings.with_label_fraction(0.25), prepared, tmp_path)
    with pytest.raises(MedarError, match=r"task\.data"):
        train_segmenter(settings, prepared, tmp_path)


def test_the_validation_fold_is_held_out(prepared: Path) -> None:
    task = make_task(make_settings(data__fold=1, data__folds=3), prepared)
    held = {task.validation.prepared[index].subject for index in range(len(task.validation))}
    assert isinstance(task.train, AnnotatedDataset)
    assert len(held) == 2
    assert len(task.train.subjects) == 4
    assert held.isdisjoint(task.train.subjects)


def test_learning_rates_decay_towards_the_input(prepared: Path) -> None:
    task = make_task(make_settings(transfer__layer_decay=0.5), prepared)
    groups = task.parameter_groups()["model"]
    factors = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert set(factors) == {id(p) for p in task.model.parameters()}
    assert all(factors[id(p)] == 1 for p in task.model.head.parameters())
    stages = [{factors[id(p)] for p in stage} for stage in task.model.backbone.stage_parameters()]
    assert stages == [{0.5 ** (len(stages) - n)} for n in range(len(stages))]
    assert all(p.ndim <= 1 for g in groups if g.get("weight_decay") == 0 for p in g["params"])


def test_weights_move_in_proportion_to_their_learning_rate(prepared: Path, tmp_path: Path) -> None:
    """AdamW's first step moves every weight with a gradient by the learning rate."""
    settings = make_settings(
        transfer__layer_decay=0.5, training__steps=1, training__warmup_fraction=0.0,
        training__ema_decay=0.0, training__weight_decay=0.0, training__learning_rate=1e-3,
        training__min_learning_rate=1e-3,
    )  # fmt: skip
    before = make_task(settings, prepared).model
    train_segmenter(settings, prepared, tmp_path)
    after = Segmenter.from_pretrained(tmp_path, "cpu")
    stages = [
        [*model.backbone.stage_parameters(), list(model.head.parameters())]
        for model in (before, after)
    ]
    moved = [
        max(float((q - p).detach().abs().max()) for p, q in zip(old, new, strict=True))
        for old, new in zip(*stages, strict=True)
    ]
    rates = [1e-3 * 0.5 ** (len(moved) - 1 - n) for n in range(len(moved))]
    assert moved == pytest.approx(rates, rel=0.01)


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_frozen_weights_do_not_change(part: str, prepared: Path, tmp_path: Path) -> None:
    start = make_segmenter()
    start.save_pretrained(tmp_path / "start")
    settings = make_settings(transfer__frozen=True, transfer__part=part, training__ema_decay=0.0)
    train_segmenter(settings, prepared, tmp_path / "run", pretrained=tmp_path / "start")
    encoder = {f"backbone.{name}" for name in start.backbone.encoder_weights()}
    before, after = (
        start.state_dict(),
        Segmenter.from_pretrained(tmp_path / "run", "cpu").state_dict(),
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    backbone = {name for name in before if name.startswith("backbone.")}
    assert same == (encoder if part == "encoder" else backbone)
    with pytest.raises(MedarError, match="no weights to freeze"):
        make_task(settings, prepared)


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_a_pretrained_backbone_is_loaded(part: Any, tmp_path: Path) -> None:
    settings, plan = BackboneSettings(width=4), make_plan(labels={})
    torch.manual_seed(5)
    backbone = make_backbone(settings, plan)
    save_backbone(tmp_path / "pretrained", backbone, settings, plan, {"pretext": "masked"})
    model = make_segmenter()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert model.load_backbone(tmp_path / "pretrained", part)
    encoder = backbone.encoder_weights()
    for name, value in model.backbone.state_dict().items():
        taken = part == "backbone" or name in encoder
        assert torch.equal(value, backbone.state_dict()[name] if taken else before[name])
    assert json.loads((tmp_path / "pretrained" / "config.json").read_text())["pretext"] == "masked"
    with pytest.raises(MedarError, match="expected Segmenter"):
        Segmenter.from_pretrained(tmp_path / "pretrained", "cpu")


def test_the_pretrained_weights_are_part_of_the_run(prepared: Path, tmp_path: Path) -> None:
    make_segmenter().save_pretrained(tmp_path / "start")
    train_segmenter(make_settings(), prepared, tmp_path / "run", pretrained=tmp_path / "start")
    with pytest.raises(MedarError, match=r"made with task\.pretrained .* now it is none"):
        train_segmenter(make_settings(), prepared, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "plan", "message"),
    [
        ({"width": 8}, {}, r"has backbone\.width 4, this network has 8"),
        (
            {"kind": "segresnet", "width": 8},
            {},
            r"backbone\.kind dynunet, this",
        ),
        (
            {"width": 4},
            {"channels": ("T1", "T2")},
            r"channels \[\], this .* \['T1', 'T2'\]",
        ),
        ({"width": 4}, {"size": (64, 64, 64)}, r"strides .* this network has"),
    ],
)
def test_another_backbone_is_refused(
    settings: Any, plan: Any, message: str, tmp_path: Path
) -> None:
    make_segmenter().save_pretrained(tmp_path)
    other = Segmenter(BackboneSettings(**settings), make_plan(**plan))
    with pytest.raises(MedarError, match=message):
        other.load_backbone(tmp_path)


def test_folders(tmp_path: Path) -> None:
    model = make_segmenter(mirrors=("y",))
    model.save_pretrained(tmp_path / "run" / "model")
    again = Segmenter.from_pretrained(tmp_path / "run", "cpu")
    assert (again.plan, again.settings, again.mirrors) == (model.plan, model.settings, ("y",))
    assert again.digest == model.digest
    volumes: Tensor = torch.randn(1, 1, 16, 12, 8)
    assert torch.equal(again(volumes), model(volumes))
    assert "3 liver, 7 spleen" in (tmp_path / "run" / "model" / "README.md").read_text()
    weights = tmp_path / "run" / "model" / "model.safetensors"
    assert set(load_file(weights)) == set(model.state_dict())
    weights.write_bytes(b"0")
    with pytest.raises(MedarError, match="not the weights of this configuration"):
        Segmenter.from_pretrained(tmp_path / "run", "cpu")
    with pytest.raises(MedarError, match="not the weights"):
        model.load_backbone(tmp_path / "run")
    with pytest.raises(MedarError, match="no segmentation network"):
        Segmenter.from_pretrained(tmp_path, "cpu")


def test_a_folder_of_an_older_format_is_refused_in_one_line(tmp_path: Path) -> None:
    make_segmenter().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 1}))
    with pytest.raises(MedarError, match=r"format 1, written by .* train the model again"):
        Segmenter.from_pretrained(tmp_path, "cpu")


@pytest.mark.parametrize("mirrors", [5, "xy", ["w"], [["x"]]])
def test_invalid_mirror_axes_are_refused(mirrors: Any, tmp_path: Path) -> None:
    make_segmenter().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mirrors": mirrors}))
    with pytest.raises(MedarError, match=r"config\.json: mirrors must be a list of x, y and z"):
        Segmenter.from_pretrained(tmp_path, "cpu")


def test_unlabelled_data_are_refused(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="segmentation needs labels"):
        train_segmenter(make_settings(), unlabelled, tmp_path)


def test_invalid_settings_are_refused() -> None:
    for make, message in (
        (
            lambda: DataSettings(label_fraction=0.0),
            "label_fraction must be greater than 0",
        ),
        (
            lambda: DataSettings(foreground_fraction=2.0),
            "foreground_fraction must be at most 1",
        ),
        (lambda: DataSettings(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: LossSettings(dice=-1.0), "dice must be at least 0, got -1.0"),
        (lambda: LossSettings(dice=float("nan")), "dice must be"),
        (
            lambda: LossSettings(dice=0.0, cross_entropy=0.0),
            "cross_entropy or dice must be above 0",
        ),
        (lambda: TransferSettings(layer_decay=0.0), "layer_decay must be greater than 0, got 0.0"),
    ):
        with pytest.raises(MedarError, match=message):
            make()
    assert make_settings().within(3.0).training.minutes == 3.0
    settings = make_settings()
    assert settings.within(None) == settings.with_label_fraction(None) is settings
    assert settings.with_label_fraction(0.5) == replace(
        settings, data=DataSettings(label_fraction=0.5)
    )


@pytest.mark.slow
def test_two_processes_train_the_same_network(
    prepared: Path, tmp_path: Path, in_two_processes: Callable[..., list[str]]
) -> None:
    """One epoch with a frozen encoder; without Dice, which is computed per process."""
    make_segmenter().save_pretrained(tmp_path / "start")
    chosen = make_settings(
        training__steps=2, training__ema_decay=0.0, training__learning_rate=1e-3, loss__dice=0.0,
        transfer__part="encoder", transfer__frozen=True, transfer__layer_decay=0.8,
    )  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(chosen)))
    script = Path(__file__).with_name("trainer.py")
    start = tmp_path / "start"
    in_two_processes(script, "train", prepared, tmp_path / "two", tmp_path / "settings.json", start)
    train_segmenter(chosen, prepared, tmp_path / "one", pretrained=start)
    first, second = (
        Segmenter.from_pretrained(tmp_path / name, "cpu").state_dict() for name in ("one", "two")
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["dynunet", "segresnet", "swinunetr", "trunk"])
def test_ten_steps_on_a_gpu(kind: str, prepare_with: Callable[..., Path], tmp_path: Path) -> None:
    folder = prepare_with(mode="patch", size=(64, 32, 32))
    settings = make_settings(
        backbone={"kind": kind, "width": 24}, training__steps=10, training__device="cuda",
        training__precision="bf16",
    )  # fmt: skip
    outcome = train_segmenter(settings, folder, tmp_path)
    assert 0 <= outcome.metrics["dice"] <= 1
    assert all(line["train/loss"] == line["train/loss"] for line in lines(tmp_path))


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

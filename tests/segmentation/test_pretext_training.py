"""Pretraining: outputs, reproducibility, resuming, and fine-tuning from the result."""

import json
import os
import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_pretexts import make_tokenizer, pretrain_settings
from small_segmenters import make_plan, make_segmenter, make_settings
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.errors import MedarError
from medar.segmentation.backbones import BackboneSettings, make_backbone
from medar.segmentation.pretext.training import PretextTask, make_task, pretrain_backbone
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.training import train_segmenter
from medar.settings import to_dict
from medar.tokenizer.tokenizer import Tokenizer

KINDS = ("next_scale", "mixture", "semantic_order", "masked")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    make_tokenizer().save_pretrained(folder)
    return folder


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def lines(out: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "steps_per_second", "voxels_per_second", "gemm_fraction")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in read]


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_writes_a_backbone(
    kind: str, prepared: Path, tokenizer: Path, tmp_path: Path
) -> None:
    settings = pretrain_settings(tokenizer, pretext__kind=kind)
    outcome = pretrain_backbone(settings, prepared, tmp_path)
    task = make_task(settings, prepared)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["class"] == "Backbone"
    assert config["pretext"]["kind"] == kind
    assert "tokenizer" not in config["pretext"]
    digest = Tokenizer.from_pretrained(tokenizer, "cpu").digest
    assert config["tokenizer"] == ("none" if kind == "masked" else digest)
    assert config["data"] == PreparedDataset(prepared, split="train").prepared.digest
    assert set(weights(tmp_path)) == {
        f"backbone.{name}" for name in task.model.backbone.state_dict()
    }
    beside = {"marginal", "accuracy"} if kind in KINDS[:2] else {"error", "constant_error"}
    assert {"loss", *beside} <= set(outcome.metrics)
    assert outcome.metrics["loss"] == outcome.best
    assert any(name.startswith("train/") for name in lines(tmp_path)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    kind: str, prepared: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pretrain_settings(
        tokenizer, pretext__kind=kind, data__augmentation={"flips": ["x"]},
        training__evaluate_every=2, training__accumulation_steps=2,
    )  # fmt: skip

    def interrupt(self: PretextTask, step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, again, cut = (tmp_path / name for name in ("whole", "again", "cut"))
    for out in (whole, again):
        pretrain_backbone(settings, prepared, out)
    with monkeypatch.context() as patch:
        patch.setattr(PretextTask, "after_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain_backbone(settings, prepared, cut)
    pretrain_backbone(settings, prepared, cut)
    file = Path("model") / "model.safetensors"
    assert (whole / file).read_bytes() == (again / file).read_bytes() == (cut / file).read_bytes()
    assert lines(whole) == lines(again) == lines(cut)


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_pretraining_does_not_read_labels(
    mode: str, data: Manifest, prepare_with: Callable[..., Path], tmp_path: Path
) -> None:
    """Neither for patch positions nor for mirroring, so labels need no mirrored counterpart."""
    changes: dict[str, Any] = {"mode": "patch", "size": (8, 8, 8)} if mode == "patch" else {}
    make_tokenizer(make_plan(**changes)).save_pretrained(tmp_path / "tokenizer")
    settings = pretrain_settings(tmp_path / "tokenizer", data__augmentation={"flips": ["x"]})
    bare = tuple(replace(case, label=None, annotated=None) for case in data.cases)
    folders = {
        "with": prepare_with(labels={3: "left lung", 7: "spleen"}, **changes),
        "without": prepare_with(replace(data, cases=bare, labels={}), labels={}, **changes),
    }
    for name, folder in folders.items():
        pretrain_backbone(settings, folder, tmp_path / name)
    first, second = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_every_evaluation_uses_the_same_patches(
    prepare_with: Callable[..., Path], tmp_path: Path
) -> None:
    plan = make_plan(mode="patch", size=(8, 8, 8))
    make_tokenizer(plan).save_pretrained(tmp_path / "tokenizer")
    folder = prepare_with(mode="patch", size=(8, 8, 8))
    task = make_task(pretrain_settings(tmp_path / "tokenizer"), folder)
    with torch.no_grad():
        assert task.evaluate() == task.evaluate()
    assert bool(task.loss(next(task.batches(0, 0)), 0)[0].isfinite())


def test_masks_and_patches_use_independent_random_numbers(prepared: Path) -> None:
    """In epochs of one step, masks differ from the random numbers of patches and evaluations."""
    settings = pretrain_settings(None, pretext__kind="masked", data__batch_size=6)
    task = make_task(settings, prepared)
    forward, drawn, cut = task.model.forward, [], []

    def noted(volumes: Tensor, random: Any) -> Any:
        drawn.extend(deepcopy(generator).random() for generator in random)
        return forward(volumes, random)

    task.model.forward = noted  # type: ignore[method-assign]
    for step in range(3):
        batch = next(task.batches(step, 0))
        task.loss(batch, step)
        indices = batch["index"]
        cut += [np.random.default_rng([0, step, index]).random() for index in indices]
    with torch.no_grad():
        task.evaluate()
    assert len(set(drawn)) == len(drawn) == 3 * 6 + 2
    assert not set(drawn) & set(cut)


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_fine_tuning_starts_from_the_pretrained_backbone(
    part: Any, prepared: Path, tokenizer: Path, tmp_path: Path
) -> None:
    pretrain_backbone(pretrain_settings(tokenizer), prepared, tmp_path / "pretrained")
    model, left = make_segmenter(), weights(tmp_path / "pretrained")
    origin = model.load_backbone(tmp_path / "pretrained", part)
    encoder = {f"backbone.{name}" for name in model.backbone.encoder_weights()}
    taken = set(left) if part == "backbone" else encoder
    same = {n for n, w in model.state_dict().items() if n in left and torch.equal(w, left[n])}
    # Gains and biases of norms may be as they were at first.
    assert taken <= same
    assert len(same) < len(left) or part == "backbone"
    settings = make_settings(transfer__part=part, transfer__frozen=True)
    train_segmenter(settings, prepared, tmp_path / "run", pretrained=tmp_path / "pretrained")
    tuned = Segmenter.from_pretrained(tmp_path / "run", "cpu").state_dict()
    assert all(torch.equal(tuned[name], left[name]) for name in taken)
    assert origin in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_is_not_resumed_with_another_pretext(
    prepared: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pretrain_backbone(pretrain_settings(tokenizer), prepared, out)
    with pytest.raises(MedarError, match=r"task\.pretext"):
        pretrain_backbone(pretrain_settings(tokenizer, pretext__scale_exponent=1.0), prepared, out)
    other = make_tokenizer(codebook="gradient")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MedarError, match=r"task\.tokenizer"):
        pretrain_backbone(pretrain_settings(tmp_path / "other"), prepared, out)
    Path(tokenizer).rename(tmp_path / "moved")
    try:
        pretrain_backbone(pretrain_settings(tmp_path / "moved"), prepared, out)
    finally:
        (tmp_path / "moved").rename(tokenizer)


def test_each_setting_changes_one_thing(tokenizer: Path) -> None:
    settings = pretrain_settings(tokenizer)
    assert settings.within(3.0).training.minutes == 3.0
    assert settings.within(None) == settings.with_tokenizer(None) == settings
    assert settings.with_tokenizer("there").pretext.tokenizer == "there"


@pytest.mark.slow
def test_two_processes_pretrain_the_same_backbone(
    prepared: Path,
    tokenizer: Path,
    tmp_path: Path,
    in_two_processes: Callable[..., list[str]],
) -> None:
    chosen = pretrain_settings(
        tokenizer, pretext__kind="mixture", training__steps=3, training__ema_decay=0.0,
        training__learning_rate=1e-3,
    )  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(chosen)))
    script = Path(__file__).with_name("trainer.py")
    in_two_processes(script, "pretrain", prepared, tmp_path / "two", tmp_path / "settings.json")
    pretrain_backbone(chosen, prepared, tmp_path / "one")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    start = make_task(chosen, prepared).model.backbone.state_dict()
    moved = apart = 0.0
    for name, value in first.items():
        moved += float((value - start[name.removeprefix("backbone.")]).abs().sum())
        apart += float((value - second[name]).abs().sum())
    assert apart < 0.01 * moved  # AdamW makes much of gradients that are next to nothing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_on_a_gpu(kind: str, prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    settings = pretrain_settings(
        tokenizer, pretext__kind=kind, training__steps=10, training__device="cuda",
        training__precision="bf16",
    )  # fmt: skip
    outcome = pretrain_backbone(settings, prepared, tmp_path)
    assert outcome.metrics["loss"] > 0
    assert all(line["train/loss"] == line["train/loss"] for line in lines(tmp_path))
    plan = make_plan()
    make_backbone(BackboneSettings(width=4), plan).load_state_dict(
        {n.removeprefix("backbone."): w for n, w in weights(tmp_path).items()}
    )

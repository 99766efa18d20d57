"""Training a tokenizer: every loss, resuming, several processes, and codebooks that collapse."""

import json
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import run_scripts
from safetensors.torch import load_file

from medar.data.loading import PreparedDataset
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.settings import to_dict
from medar.tokenizer import Tokenizer
from medar.tokenizer.settings import AdversarialSettings, LossSettings, TokenizerSettings
from medar.tokenizer.training import make_task, train_tokenizer

Settings = Callable[..., TokenizerSettings]
ADVERSARIAL = {"width": 4, "layers": 1, "adaptive_weight": True}
TEXTURE = {"texture_start_fraction": 0.5, "adversarial": ADVERSARIAL}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_training_writes_a_tokenizer(prepared: Path, settings: Settings, tmp_path: Path) -> None:
    chosen = settings(training__steps=60, training__evaluate_every=60, training__log_every=10)
    outcome = train_tokenizer(chosen, prepared, tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "model", "cpu")
    assert tokenizer.plan == Plan.load(prepared / "plan.yaml")
    volumes = torch.stack([item["image"] for item in PreparedDataset(prepared, split="val")])
    back = tokenizer.decode(tokenizer.encode(volumes)).volume
    psnr = 10 * torch.log10(4 / (back - volumes).square().mean((1, 2, 3, 4))).mean()
    assert outcome.metrics["psnr"] == pytest.approx(float(psnr), abs=0.01)
    flat = 10 * torch.log10(4 / volumes.var((1, 2, 3, 4))).mean()
    assert psnr > flat + 1
    losses = [line["train/loss"] for line in lines(tmp_path)]
    assert losses[-1] < losses[0]


def test_each_loss_is_logged_when_it_is_on(
    prepared: Path, settings: Settings, tmp_path: Path
) -> None:
    chosen = settings(loss={**TEXTURE, "frequency_weight": 0.01}, model__label_head=True)
    train_tokenizer(chosen, prepared, tmp_path)
    early, *_, late = lines(tmp_path)
    always = {"l1", "quantiser", "label_cross_entropy", "label_dice"}
    for name in always:
        assert late[f"train/{name}"] > 0
        assert f"train/{name}" in early
    for name in ("frequency", "adversarial", "feature_matching", "discriminator"):
        assert f"train/{name}" not in early
        assert f"train/{name}" in late
    total = sum(late[f"train/{name}"] for name in always)
    assert late["train/loss"] > total - 1


def test_generator_and_discriminator_learn_from_their_own_losses(
    prepared: Path, settings: Settings
) -> None:
    task = make_task(settings(loss=TEXTURE), prepared)
    task.model.eval()  # neither dropout nor a codebook that moves between the calls
    batch = next(task.batches(0, 0))
    task.progress = 0.2
    task.loss(batch, 0)[0].backward()
    assert task.discriminator is not None
    assert all(p.grad is None for p in task.discriminator.parameters())
    task.progress = 0.6
    own = list(task.discriminator.parameters())
    expected = torch.autograd.grad(task.loss(batch, 0)[1]["discriminator"], own)
    task.loss(batch, 0)[0].backward()
    for parameter, alone in zip(own, expected, strict=True):
        torch.testing.assert_close(parameter.grad, alone)


def test_the_score_is_perceptual_if_texture_is_trained(prepared: Path, settings: Settings) -> None:
    task = make_task(settings(), prepared)
    task.model.eval()
    with torch.no_grad():
        plain = task.evaluate()
    assert plain[task.metric] == plain["psnr"]
    task = make_task(settings(loss=TEXTURE), prepared)
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate()
    assert found[task.metric] == found["psnr"] - found["spectral_distance"]
    assert found["power_ratio"] > 0
    assert 0 < found["codebook_usage"] <= 1


def test_quantisation_begins_late(prepared: Path, settings: Settings, tmp_path: Path) -> None:
    chosen = settings(
        model__quantiser={"start_fraction": 0.5}, training__steps=4, training__evaluate_every=1
    )
    train_tokenizer(chosen, prepared, tmp_path)
    found = lines(tmp_path)
    assert [line["validation/score"] is None for line in found] == [True, True, False, False]
    assert [line["train/quantiser"] > 0 for line in found] == [False, False, True, True]
    assert ["validation/codebook_usage" in line for line in found] == [False, False, True, True]
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert checkpoint["state"]["best_step"] > 2


def test_the_seed_determines_the_weights(prepared: Path, settings: Settings) -> None:
    digests = [
        make_task(settings(training__seed=seed), prepared).model.digest for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_killed(prepared: Path, settings: Settings, tmp_path: Path) -> None:
    """After `kill -9` a resumed run equals an uninterrupted one bit for bit."""
    chosen = settings(loss=TEXTURE, training__steps=6)
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(chosen)))
    words = [prepared, tmp_path / "a", tmp_path / "settings.json"]
    script = Path(__file__).with_name("trainer.py")
    (killed,) = run_scripts((script, *words, "kill=4"), timeout=120)
    assert killed.returncode == -signal.SIGKILL
    train_tokenizer(chosen, prepared, tmp_path / "a")
    train_tokenizer(chosen, prepared, tmp_path / "b")
    first, second = (
        torch.load(tmp_path / run / "checkpoints" / "step-00000006.pt", weights_only=True)
        for run in ("a", "b")
    )
    for part in ("model", "companions", "average"):
        assert str(first[part]) == str(second[part])
    for name, value in weights(tmp_path / "a").items():
        assert torch.equal(value, weights(tmp_path / "b")[name]), name


@pytest.mark.slow
def test_two_processes_equal_one(
    prepared: Path, settings: Settings, tmp_path: Path, in_two_processes: Callable[..., list[str]]
) -> None:
    """Including codebook statistics, restarts, dropout and the discriminator."""
    chosen = settings(
        loss={**TEXTURE, "adversarial": {**ADVERSARIAL, "adaptive_weight": False}},
        training__steps=6,
        training__learning_rate=1e-3,
        training__seed=2,  # with some seeds a vector lies between two codes, and rounding decides
    )
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(chosen)))
    script = Path(__file__).with_name("trainer.py")
    in_two_processes(script, prepared, tmp_path / "two", tmp_path / "settings.json")
    train_tokenizer(chosen, prepared, tmp_path / "one")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-4)


def test_downsampling_affects_only_the_model(prepared: Path, settings: Settings) -> None:
    task = make_task(settings(plan={"downsampling": [2, 2, 2]}), prepared)
    assert task.model.config.schedule.latent == (8, 8, 8)
    assert task.model.plan is not None
    assert task.model.plan.downsampling == (2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": {"spacing": [1.0, 1.0, 1.0]}}, "was prepared with spacing"),
        ({"plan": {"sise": [1, 1, 1]}}, "did you mean 'size'"),
        ({"model__grids": [[1, 1, 1], [4, 4, 4]]}, "exclude each other"),
        ({"model__scales": None, "model__grids": [[1, 1, 1], [2, 4, 4]]}, "latent grid 4x4x4"),
        ({"loss": {"perceptual_weight": 1.0}}, "without perceptual_file"),
        ({"loss": {"perceptual_weight": 1.0, "perceptual_file": "no.pth"}}, "no.pth"),
        ({"loss": {"texture_start_fraction": 1.0}}, "texture_start_fraction must be less than 1"),
        ({"loss": {"adversarial": {"layers": 4}}}, "need sides of at least 32"),
        ({"loss": {"frequency_weight": -1}}, "frequency_weight must be at least 0"),
        ({"data": {"batch_size": 0}}, "batch_size must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, Any], message: str, prepared: Path, settings: Settings
) -> None:
    with pytest.raises(MedarError, match=message):
        make_task(settings(**changes), prepared)


def test_a_label_head_needs_labels(prepared: Path, settings: Settings) -> None:
    plan = Plan(spacing=(1, 1, 1), mode="volume", size=(8, 8, 8), downsampling=(4, 4, 4))
    with pytest.raises(MedarError, match="the plan names no labels"):
        settings(model__label_head=True).model.config(plan)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [True, False])
def test_a_collapsed_codebook_recovers(restarts: bool, prepared: Path, settings: Settings) -> None:
    chosen = {"kind": "ema", "size": 32, "width": 8, "restart_dead_codes": restarts}
    task = make_task(settings(model__codebook=chosen), prepared)
    codebook: Any = task.model.quantiser.codebook
    codebook.set_codes(100 * torch.randn(codebook.size, codebook.width))  # far from all vectors
    optimiser = torch.optim.AdamW(task.model.parameters(), 3e-3)
    for step in range(100):
        batches = list(task.batches(step // 3, step % 3))
        loss, _ = task.loss(batches[0], step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    task.progress = 1.0
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        found = task.evaluate()
    assert (found["codebook_usage"] > 0.6) == restarts
    assert (
        any("has collapsed; enable restart_dead_codes" in str(w.message) for w in caught)
        != restarts
    )


def test_defaults_are_complete() -> None:
    assert LossSettings().adversarial is None
    assert AdversarialSettings().discriminator(2).channels == 2

"""The training loop: steps, evaluations and checkpoints."""

import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import ITEMS, Toy, items, settings

from medar.errors import MedarError
from medar.progress import Gauge
from medar.training import fit

Metrics = Callable[[Path], list[dict[str, Any]]]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_the_loss_falls(tmp_path: Path, metrics: Metrics) -> None:
    outcome = fit(Toy(), settings(steps=150, evaluate_every=150), tmp_path)
    lines = metrics(tmp_path)
    assert outcome.metrics["error"] < 0.1 * lines[0]["train/loss"]
    assert outcome.best == outcome.metrics["error"]
    assert {"train/root", "train/gradient_norm/model", "epoch"} <= set(lines[0])
    assert lines[-1]["epoch"] == (150 - 1) * 4 // ITEMS


def test_the_log_shows_how_much_is_processed_per_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(Gauge, "show", lambda self, fraction, text: shown.append(text))
    seconds = count()  # a step takes one
    chosen = settings(steps=8, accumulation_steps=2, log_every=4)
    fit(Toy(batch_size=4), chosen, tmp_path, clock=lambda: float(next(seconds)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["numbers_per_second"] for line in lines if "seconds" in line]
    assert speeds == [2 * 4 * 3, 2 * 4 * 3]
    assert ", 24 numbers/s, " in shown[-1]
    assert shown[-1].endswith("% of the GEMM ceiling")


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    fit(Toy(batch_size=8), settings(), tmp_path / "a")
    fit(Toy(batch_size=4), settings(accumulation_steps=2), tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


def test_the_best_checkpoint_is_the_best(tmp_path: Path) -> None:
    class Scripted(Toy):
        metric = "score"
        larger_is_better = True
        scores = iter([1.0, float("nan"), 3.0, 2.0, 3.0])

        def evaluate(self) -> dict[str, float]:
            assert not self.model.training
            seen.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
            return {"score": next(self.scores)}

    seen: list[dict[str, Tensor]] = []
    outcome = fit(Scripted(), settings(steps=10, evaluate_every=2), tmp_path)
    assert (outcome.best, outcome.best_step) == (3.0, 6)
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert best["state"]["step"] == 6
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, seen[2][name])
        assert torch.equal(value, best["average"]["averages"][name])
        assert not torch.equal(value, best["model"][name])


def test_without_averaging_the_raw_weights_are_saved(tmp_path: Path) -> None:
    task = Toy()
    fit(task, settings(ema_decay=0.0), tmp_path)
    assert torch.equal(weights(tmp_path)["0.weight"], task.model[0].weight)  # type: ignore[index]


def test_numpy_numbers_do_not_enter_checkpoints(tmp_path: Path) -> None:
    task = Toy()
    task.evaluate = lambda: {"error": np.float64(0.5)}  # type: ignore[method-assign]
    fit(task, settings(steps=2), tmp_path)
    assert fit(Toy(), settings(steps=2), tmp_path).best == 0.5


def test_evaluation_restores_modes_and_weights(tmp_path: Path) -> None:
    class Partly(Toy):
        def after_step(self, step: int) -> None:
            self.model[1].eval()  # type: ignore[index]
            modes.append([module.training for module in self.model])  # type: ignore[union-attr]

    modes: list[list[bool]] = []
    fit(Partly(), settings(steps=4, evaluate_every=1), tmp_path)
    assert modes == 4 * [[True, False, True, True]]


class Spoilt(Toy):
    """A task whose loss is not finite at some steps."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.seen: list[Tensor] = []

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(self.model[0].weight.detach().clone())  # type: ignore[index]
        loss, metrics = super().loss(batch, step)
        return (loss * float("nan") if step in self.steps else loss), metrics


def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: Metrics
) -> None:
    task = Spoilt(5, 6, 11)
    outcome = fit(task, settings(max_nonfinite_steps=3), tmp_path)
    unmoved = [n for n in range(29) if torch.equal(task.seen[n], task.seen[n + 1])]
    assert unmoved == [5, 6, 11]
    assert len(re.findall("^warning: step (6|7|12): ", capsys.readouterr().err, re.M)) == 3
    assert all(line.get("train/loss", 0.0) is not None for line in metrics(tmp_path))
    assert outcome.step == 30


def test_consecutive_nonfinite_steps_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"step 9: .* not finite in 3 consecutive steps; try") as e:
        fit(Spoilt(*range(6, 30)), settings(max_nonfinite_steps=3), tmp_path)
    assert "\n" not in str(e.value)
    assert (tmp_path / "checkpoints" / "step-00000007.pt").exists()


class Adversarial(Toy):
    """A generator and a discriminator in one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(1, 1)

    def companions(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        from medar.training.task import frozen_call

        x, y = batch
        made = self.model(x)
        loss = nn.functional.mse_loss(made, y)
        if step < 3:  # the critic rests
            return loss, {}
        fooled = -frozen_call(self.critic, made).mean()
        critic = (self.critic(made.detach()) - self.critic(y)).mean()
        return loss + 0.1 * fooled + critic, {"fooled": fooled, "critic": critic}


def test_each_network_gets_the_gradients_of_its_own_loss() -> None:
    task = Adversarial()
    x, y = items()
    task.loss((x, y), 3)[0].backward()
    got = task.model[0].weight.grad, task.critic.weight.grad  # type: ignore[index]
    made = task.model(x)
    generator = nn.functional.mse_loss(made, y) - 0.1 * task.critic(made).mean()
    (expected,) = torch.autograd.grad(generator, task.model[0].weight)  # type: ignore[index]
    assert torch.allclose(got[0], expected)
    critic = (task.critic(task.model(x).detach()) - task.critic(y)).mean()
    assert torch.allclose(got[1], torch.autograd.grad(critic, task.critic.weight)[0])


def test_a_companion_is_trained_and_saved_in_checkpoints(tmp_path: Path, metrics: Metrics) -> None:
    task = Adversarial()
    start = task.critic.weight.detach().clone()
    fit(task, settings(steps=12), tmp_path)
    assert not torch.equal(task.critic.weight, start)
    assert "train/gradient_norm/critic" in metrics(tmp_path)[0]
    assert "train/critic" in metrics(tmp_path)[0]
    saved = torch.load(tmp_path / "checkpoints" / "step-00000012.pt", weights_only=True)
    assert torch.equal(saved["companions"]["critic"]["weight"], task.critic.weight)
    assert list(saved["optimisers"]) == ["model", "critic"]
    assert "critic" not in "".join(weights(tmp_path))


def test_bf16_keeps_weights_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: Metrics
) -> None:
    outcome = fit(Toy(), settings(precision="bf16", steps=60), tmp_path)
    assert outcome.metrics["error"] < metrics(tmp_path)[0]["train/loss"]
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"training on CPU \(cpu\), bf16 \(.*\), not compiled, 1 process", first)


def test_compile_compiles_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Toy()
    compiled: list[bool] = []
    task.model.compile = lambda: compiled.append(True)  # type: ignore[method-assign]
    fit(task, settings(steps=1, compile=True), tmp_path)
    assert compiled == [True]
    assert "(as requested), compiled, 1 process" in capsys.readouterr().err


def test_no_batches(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="epoch 0 has no batch"):
        fit(Toy(batch_size=ITEMS + 1), settings(), tmp_path)


def test_the_evaluation_must_have_the_tasks_metric(tmp_path: Path) -> None:
    task = Toy()
    task.metric = "dice"
    with pytest.raises(MedarError, match="has no 'dice', which determines the best weights; it"):
        fit(task, settings(), tmp_path)

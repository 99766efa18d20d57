"""Settings, schedule, averages, checkpoints and trackers, each in isolation."""

import errno
import math
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import Toy, settings

from medar.errors import MedarError
from medar.settings import from_dict, load_yaml, save_yaml
from medar.training import TrainingSettings, fit
from medar.training.distributed import Ranks, current_ranks
from medar.training.folder import Checkpoints, load_checkpoint
from medar.training.loop import interruptible
from medar.training.optimisers import Average, learning_rate, progress
from medar.training.precision import (
    choose_precision,
    random_state,
    restore_random_state,
    seed_everything,
)
from medar.training.task import to_device, weight_decay_groups
from medar.training.tracker import JsonlTracker


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "neither steps nor minutes is set"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"minutes": -1.0}, "minutes must be greater than 0, got -1.0"),
        ({"minutes": math.inf}, "minutes must be finite, got inf"),
        ({"steps": 5, "learning_rate": 0.0}, "learning_rate must be greater than 0, got 0.0"),
        ({"steps": 5, "ema_decay": 1.0}, "ema_decay must be less than 1, got 1.0"),
        ({"steps": 5, "warmup_fraction": math.nan}, "warmup_fraction must be finite"),
        ({"steps": 5, "betas": [0.9, 1.0]}, "betas.1 must be less than 1, got 1.0"),
        ({"steps": 5, "min_learning_rate": 1.0}, "must not exceed learning_rate 0.0003"),
        ({"steps": 5, "final": 0.1}, "'final' has a new name: min_learning_rate, now absolute"),
        ({"steps": 5, "precision": "fp8"}, "'fp8'"),
        ({"steps": 5, "lerning_rate": 1}, "did you mean 'learning_rate'?"),
    ],
)
def test_invalid_settings_give_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError) as error:
        from_dict(TrainingSettings, values, "a.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_round_trip_through_yaml(tmp_path: Path) -> None:
    chosen = settings(minutes=2.5, max_grad_norm=None)
    save_yaml(chosen, tmp_path / "a.yaml")
    assert load_yaml(TrainingSettings, tmp_path / "a.yaml") == chosen


def test_progress_is_the_larger_fraction() -> None:
    both = settings(steps=100, minutes=2)
    assert progress(both, 25, 6.0) == 0.25
    assert progress(both, 25, 60.0) == 0.5
    assert progress(both, 200, 0.0) == 1.0
    assert progress(settings(steps=None, minutes=1), 10**6, 15.0) == 0.25


def test_warm_up_and_cosine() -> None:
    chosen = settings(learning_rate=2.0, warmup_fraction=0.2, min_learning_rate=0.2)
    expected = {0.0: 0.0, 0.1: 1.0, 0.2: 2.0, 0.6: 1.1, 1.0: 0.2}
    for fraction, rate in expected.items():
        assert learning_rate(chosen, fraction) == pytest.approx(rate)
    assert learning_rate(settings(learning_rate=2.0, warmup_fraction=0.0), 0.0) == 2.0


def test_the_average_follows_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average, expected = Average(model, 0.25), 1.0
    for update, value in enumerate((3.0, -2.0, 8.0, 5.0), 1):
        nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.25, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 5.0


def test_an_applied_average_is_removed_after_an_error() -> None:
    model = nn.Linear(1, 1)
    average, before = Average(model, 0.5), model.weight.item()
    nn.init.constant_(model.weight, before + 1)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert model.weight.item() == before + 1


def test_random_states_are_restored() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(), float(np.random.normal()), float(torch.rand(()))

    seed_everything(5)
    draw()  # both kinds of normal numbers now have one in stock
    state = random_state(torch.device("cpu"))
    expected = [draw() for _ in range(3)]
    seed_everything(6)
    restore_random_state(state, torch.device("cpu"))
    assert [draw() for _ in range(3)] == expected


def test_weight_decay_spares_norms_and_biases() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    decayed, spared = weight_decay_groups(model)
    assert [p.shape for p in decayed["params"]] == [(2, 1, 1, 1, 1)]
    assert len(spared["params"]) == 4
    assert spared["weight_decay"] == 0.0


def test_all_tensors_of_a_batch_move() -> None:
    moved = to_device({"a": torch.ones(2), "b": [torch.ones(1), "x"]}, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][0].is_meta
    assert moved["b"][1] == "x"


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": torch.ones(1)}, best=True)

    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MedarError, match=r"step-00000002\.pt: .*No space left on device.*free"):
        checkpoints.save(2, {"a": torch.zeros(1)}, best=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-00000001.pt"]
    for path in tmp_path.iterdir():
        assert load_checkpoint(path)["a"] == 1


def test_old_checkpoints_are_removed_except_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 100):
        checkpoints.save(step, {"at": step}, best=step == 2)
    assert list(checkpoints.all()) == [10, 100]
    assert checkpoints.last() == tmp_path / "step-00000100.pt"
    assert load_checkpoint(checkpoints.best)["at"] == 2


def test_checkpoints_work_on_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"at": step}, best=step == 1)
    assert load_checkpoint(checkpoints.best)["at"] == 1


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"version": 2, "evil": Toy}, tmp_path / "a.pt")
    with pytest.raises(MedarError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save({"version": 99}, tmp_path / "b.pt")
    with pytest.raises(MedarError, match="not a checkpoint of version 2"):
        load_checkpoint(tmp_path / "b.pt")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log_metrics({"loss": 0.5, "odd": math.inf}, 1)
    assert path.read_text() == '{"step": 1, "loss": 0.5, "odd": null}\n'  # before closing
    tracker.log_metrics({"loss": 0.4}, 2)
    tracker.close()
    JsonlTracker(path, step=1).close()
    assert path.read_text() == '{"step": 1, "loss": 0.5, "odd": null}\n'


def test_the_callers_tracker_receives_everything_and_stays_open(tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []

        def log_parameters(self, parameters: dict[str, Any]) -> None:
            self.calls.append(("parameters", parameters))

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.calls.append(("metrics", step))

        def log_artifact(self, path: Path) -> None:
            self.calls.append(("artifact", path))

        def close(self) -> None:
            self.calls.append(("close", None))

    recorder = Recorder()
    for _ in range(2):  # the second time the run is finished already
        fit(Toy(), settings(steps=4, evaluate_every=9), tmp_path, recorder)
    assert [name for name, _ in recorder.calls] == [
        "parameters",
        "metrics",
        "artifact",
        "parameters",
    ]
    assert recorder.calls[0][1]["training.learning_rate"] == 0.02
    assert recorder.calls[0][1]["task.batch_size"] == 4
    assert recorder.calls[2][1] == tmp_path / "model"


def test_a_batch_is_divided_evenly_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks(1, 4, 1).per_rank_batch_size(8) == 2
    with pytest.raises(
        MedarError, match="batch_size 6 must be a multiple of the number of processes, 4"
    ):
        Ranks(0, 4, 0).per_rank_batch_size(6)
    assert current_ranks() == Ranks(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert current_ranks() == Ranks(5, 8, 1)
    assert not current_ranks().is_rank_zero


def test_a_second_interrupt_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signal_handlers_are_not_set_outside_the_main_thread() -> None:
    seen: list[bool] = []

    def enter() -> None:
        with interruptible() as interruption:
            seen.append(interruption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


def test_an_unavailable_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MedarError, match="device 'cuda' is not available here"):
        choose_precision(settings(device="cuda"))

"""A killed or interrupted run resumes and equals an uninterrupted one bit for bit."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import run_scripts
from toy import SETTINGS, Toy, settings

from medar.errors import MedarError
from medar.training import fit

Same = Callable[[Path, Path], None]
Metrics = Callable[[Path], list[dict[str, Any]]]


class Signalled(Toy):
    """A task that gets a signal in the middle of a step."""

    def __init__(self, at: int, number: int = signal.SIGTERM, **options: Any) -> None:
        super().__init__(**options)
        self.at, self.number = at, number

    def after_step(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def test_killed(tmp_path: Path, same_runs: Same, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).with_name("toy.py")
    (killed,) = run_scripts((script, tmp_path / "a", "noise=0.1", "kill=14"), timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in sorted((tmp_path / "a" / "checkpoints").iterdir())]
    assert left == ["best.pt", "step-00000010.pt"]  # four batches into the second epoch
    (tmp_path / "a" / "checkpoints" / ".tmp-x-step-00000015.pt").write_bytes(b"half")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tr')
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 5
    task = Toy(noise=0.1)
    fit(task, settings(), tmp_path / "a")
    assert task.after == list(range(11, 31))
    fit(Toy(noise=0.1), settings(), tmp_path / "b")
    same_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(number: int, tmp_path: Path, same_runs: Same) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt, match="run the same command again to continue"):
        fit(Signalled(11, number, noise=0.1), settings(), tmp_path / "a")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert (tmp_path / "a" / "checkpoints" / "step-00000011.pt").exists()
    fit(Toy(noise=0.1), settings(), tmp_path / "a")
    fit(Toy(noise=0.1), settings(), tmp_path / "b")
    same_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("at", [5, 6])
def test_a_step_takes_batches_of_two_epochs(at: int, tmp_path: Path, same_runs: Same) -> None:
    def chosen() -> Any:
        return settings(accumulation_steps=4, steps=9)

    with pytest.raises(KeyboardInterrupt):
        fit(Signalled(at), chosen(), tmp_path / "a")
    fit(Toy(), chosen(), tmp_path / "a")
    fit(Toy(), chosen(), tmp_path / "b")
    same_runs(tmp_path / "a", tmp_path / "b")


def test_steps_increase_in_the_metrics_file(tmp_path: Path, metrics: Metrics) -> None:
    for at in (9, 16, 22):
        with pytest.raises(KeyboardInterrupt):
            fit(Signalled(at), settings(), tmp_path)
    fit(Toy(), settings(), tmp_path)
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == sorted({*range(4, 30, 4), *range(7, 30, 7), 30})


def test_a_finished_run_is_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], same_runs: Same
) -> None:
    first = fit(Toy(), settings(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    task = Toy()
    second = fit(task, settings(), tmp_path)
    assert (second.step, second.best) == (first.step, first.best)
    assert task.after == []
    assert capsys.readouterr().err == (f"{tmp_path}: already finished at step 30\n")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_minutes_end_a_run_and_count_over_resumptions(tmp_path: Path) -> None:
    def a_second_a_step() -> Callable[[], float]:
        ticks = itertools.count(100)
        return lambda: float(next(ticks))

    chosen = settings(steps=None, minutes=0.5)
    whole = fit(Toy(), chosen, tmp_path / "b", clock=a_second_a_step())
    assert (whole.step, whole.elapsed) == (30, 30.0)
    with pytest.raises(KeyboardInterrupt):
        fit(Signalled(12), chosen, tmp_path / "a", clock=a_second_a_step())
    task = Toy()
    outcome = fit(task, chosen, tmp_path / "a", clock=a_second_a_step())
    assert task.after == list(range(13, 31))
    assert outcome.elapsed == 30.0
    assert outcome.metrics == whole.metrics


def test_steps_end_a_run_before_its_minutes(tmp_path: Path) -> None:
    assert fit(Toy(), settings(steps=3, minutes=60), tmp_path).step == 3


def test_incompatible_runs_are_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Signalled(6), settings(), tmp_path)
    last = tmp_path / "checkpoints" / "step-00000006.pt"
    for resume in ("never", False):
        with pytest.raises(MedarError, match=r"has a run already, at step-00000006\.pt; choose"):
            fit(Toy(), settings(), tmp_path, resume=resume)
    changed = r"step-00000006\.pt: was made with learning_rate 0\.02, now it is 0\.1; use the same"
    with pytest.raises(MedarError, match=changed) as error:
        fit(Toy(), settings(learning_rate=0.1), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(MedarError, match=r"was made with task\.batch_size 4, now it is 6"):
        fit(Toy(batch_size=6), settings(), tmp_path)
    with pytest.raises(MedarError, match="no such checkpoint"):
        fit(Toy(), settings(), tmp_path, resume=tmp_path / "absent.pt")
    other = Toy()
    other.model = torch.nn.Linear(3, 1)
    with pytest.raises(MedarError, match="belongs to another model"):
        fit(other, settings(), tmp_path)
    assert [path.name for path in last.parent.glob("step-*")] == [last.name]
    assert fit(Toy(), settings(log_every=1, keep_checkpoints=3, save_every=2), tmp_path).step == 30


def test_a_path_resumes_with_other_settings(tmp_path: Path, metrics: Metrics) -> None:
    fit(Toy(), settings(steps=12, keep_checkpoints=9), tmp_path / "a")
    middle = tmp_path / "a" / "checkpoints" / "step-00000005.pt"
    task = Toy()
    outcome = fit(task, settings(steps=8, learning_rate=1e-3), tmp_path / "b", resume=middle)
    assert task.after == [6, 7, 8]
    assert outcome.best_step in (7, 8)
    assert outcome.step == 8
    assert (tmp_path / "b" / "model" / "model.safetensors").exists()
    assert metrics(tmp_path / "b")[-1]["learning_rate"] < 1e-3
    fit(Toy(), settings(steps=8, keep_checkpoints=9), tmp_path / "a", resume=str(middle))
    assert metrics(tmp_path / "a")[-1]["step"] == 8
    assert not (middle.parent / "step-00000012.pt").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x80\x02junk", b"text"])
def test_damaged_checkpoints_are_reported_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-00000004.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(MedarError, match=r"step-00000004\.pt: not a readable checkpoint") as error:
        fit(Toy(), settings(), tmp_path)
    assert "\n" not in str(error.value)


def test_logging_and_evaluation_intervals_do_not_change_the_weights(tmp_path: Path) -> None:
    often = {**SETTINGS, "log_every": 1, "evaluate_every": 1, "save_every": 1}
    a = fit(Toy(noise=0.1), settings(), tmp_path / "a")
    b = fit(Toy(noise=0.1), settings(**often), tmp_path / "b")
    assert a.metrics == b.metrics


def test_an_average_may_start_at_a_checkpoint_without_one(tmp_path: Path) -> None:
    fit(Toy(), settings(steps=5, ema_decay=0.0), tmp_path / "a")
    middle = tmp_path / "a" / "checkpoints" / "step-00000005.pt"
    chosen = settings(steps=6, ema_decay=0.99, learning_rate=1e-9)
    fit(Toy(), chosen, tmp_path / "b", resume=middle)
    before = torch.load(middle, weights_only=True)["model"]["0.weight"]
    last = tmp_path / "b" / "checkpoints" / "step-00000006.pt"
    after = torch.load(last, weights_only=True)["average"]["averages"]["0.weight"]
    torch.testing.assert_close(before, after)

"""Progress: plain lines on standard error, or a bar on a terminal."""

import sys
from collections.abc import Iterator

import pytest

from medar import progress


class Terminal:
    """Standard error that claims to be a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return True


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def test_without_a_terminal_a_line_is_printed_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ticking(2.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcdef", total=6, label="reading")) == list("abcdef")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["reading: 3/6, 6 s left", "reading: 6/6, 0 s left"]


def test_the_time_left_does_not_count_the_start_of_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def slow_start() -> Iterator[int]:
        for index in range(4):
            now[0] += 60.0 if index == 0 else 6.0
            yield index

    assert list(progress.track(slow_start(), total=4, label="reading")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "reading: 1/4", "reading: 2/4, 12 s left", "reading: 3/4, 6 s left",
        "reading: 4/4, 0 s left",
    ]  # fmt: skip


def test_a_gauge_does_not_count_the_time_before_its_first_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    gauge = progress.Gauge("training")
    for seconds, fraction in ((100.0, 0.2), (110.0, 0.4), (120.0, 0.6)):
        now[0] = seconds
        gauge.show(fraction, "step")
    assert capsys.readouterr().err.splitlines() == [
        "training: 20%, step", "training: 40%, step, 30 s left", "training: 60%, step, 20 s left",
    ]  # fmt: skip


def test_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), total=3, label="reading")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.track(range(3), total=3, label="reading", unit="file")) == [0, 1, 2]
    assert "reading" in terminal.text
    assert capsys.readouterr().out == ""


def test_a_gauge_of_a_fraction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ticking(2.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    gauge = progress.Gauge("training", fraction=0.2)
    quiet = progress.Gauge("training", quiet=True)
    for fraction in (0.3, 0.4, 0.5, 0.6):
        gauge.show(fraction, f"loss {fraction}")
        quiet.show(fraction, "unseen")
    gauge.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("training: 40%, loss 0.4, ")
    assert "unseen" not in err


def test_a_gauge_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    gauge = progress.Gauge("training")
    gauge.show(0.5, "step 3")
    gauge.close()
    assert "training" in terminal.text

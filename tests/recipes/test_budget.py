"""A budget of time, and what is said of time and memory beforehand."""

import json
from pathlib import Path

import pytest
from fakes import Kitchen

from medar.devices import peak_memory_mib, reset_peak_memory
from medar.errors import MedarError
from medar.recipes.estimates import NUMBERS, duration
from medar.records import Records


def took(kitchen: Kitchen, name: str, seconds: float) -> None:
    """Pretend that a stage took so long."""
    records = Records(kitchen.out)
    entry = records.read(name)
    assert entry is not None
    entry.seconds = seconds
    records.write(entry)


def test_a_training_gets_its_share_of_what_is_left(kitchen: Kitchen) -> None:
    kitchen.budget = 10.0
    kitchen.run(last="first")
    took(kitchen, "first", 240.0)
    kitchen.run()
    # Six minutes are left of ten, for shares of 2 and 1.
    assert kitchen.minutes == {"first": None, "second": 4.0, "third": None}


def test_the_minutes_of_a_stage_do_not_move(kitchen: Kitchen) -> None:
    kitchen.budget = 9.0
    kitchen.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.run()
    given = kitchen.minutes["second"]
    took(kitchen, "first", 300.0)
    assert kitchen.run() == ["second", "third"]
    assert kitchen.minutes["second"] == given
    assert kitchen.run() == []


def test_another_budget_does_not_train_anew(kitchen: Kitchen) -> None:
    kitchen.budget = 9.0
    kitchen.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.run()
    given = kitchen.minutes["second"]
    kitchen.budget = None
    plan = kitchen.plan()
    assert plan[1].why == "was interrupted; max_minutes was 9.0, now None"
    assert kitchen.recipe().estimates(plan)[1].seconds == pytest.approx(60 * (given or 0))
    assert kitchen.run() == ["second", "third"]
    assert kitchen.minutes["second"] == given
    kitchen.budget = 30.0
    second = kitchen.plan()[1]
    assert second.action == "skip"
    assert second.why == "done; max_minutes was 9.0, now 30.0, --force second trains anew"
    assert kitchen.run(forced=("second",)) == ["second", "third"]
    assert kitchen.minutes["second"] == pytest.approx(20.0, abs=0.01)


def test_a_budget_that_is_used_up(kitchen: Kitchen) -> None:
    kitchen.budget = 2.0
    kitchen.run(last="first")
    took(kitchen, "first", 180.0)
    with pytest.raises(MedarError, match=r"the stages before second took 3\.0"):
        kitchen.run()


def test_a_budget_that_is_refused_leaves_what_is_there(kitchen: Kitchen) -> None:
    kitchen.run()
    took(kitchen, "first", 180.0)
    kitchen.budget = 2.0
    kitchen.values["second"] = {"size": 2}
    with pytest.raises(MedarError, match="nothing is left for it"):
        kitchen.run()
    assert (kitchen.out / "second-folder" / "result").exists()
    assert not (kitchen.out / "old").exists()


def test_a_budget_that_leaves_no_time_to_speak_of(kitchen: Kitchen) -> None:
    kitchen.budget = 2.00001
    kitchen.run(last="first")
    took(kitchen, "first", 120.0)
    with pytest.raises(MedarError, match="nothing is left for it"):
        kitchen.run()


def test_a_plan_says_what_each_training_will_get(kitchen: Kitchen) -> None:
    kitchen.budget = 10.0
    assert kitchen.recipe().estimates(kitchen.plan())[1].seconds == pytest.approx(5 * 60)
    kitchen.run(last="first")
    took(kitchen, "first", 240.0)
    second = kitchen.recipe().estimates(kitchen.plan())[1]
    assert second.seconds == pytest.approx(4 * 60)
    assert second.time == "4.0 min (its share)"


def test_no_budget_no_limit(kitchen: Kitchen) -> None:
    kitchen.run()
    assert set(kitchen.minutes.values()) == {None}


def test_what_is_not_known_is_not_guessed(kitchen: Kitchen) -> None:
    first, second, _ = kitchen.recipe().estimates(kitchen.plan())
    assert (first.time, first.memory) == ("unknown", "unknown")
    assert second.time == "unknown"  # 100 steps, at no known rate
    assert second.mib == pytest.approx(10**6 * NUMBERS * 4 / 2**20)
    assert "estimated, at least: 1 M parameters" in second.memory


def test_what_was_measured_before_is_said(kitchen: Kitchen) -> None:
    kitchen.run()
    took(kitchen, "first", 12.0)
    lines = [{"step": 10, "steps_per_second": 2.0, "seconds": 5.0}, {"step": 12}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 1'
    (kitchen.out / "second-folder" / "metrics.jsonl").write_text(text)
    first, second, _ = kitchen.recipe().estimates(kitchen.plan(forced=("first",)))
    assert (first.seconds, first.time) == (12.0, "12 s (measured before)")
    assert second.seconds == 50.0
    assert second.time == "50 s (100 steps at 2 a second)"
    assert "measured before" in second.memory
    kitchen.run(forced=("second",))  # what was measured goes aside with the result, and is found
    assert kitchen.recipe().estimates(kitchen.plan(forced=("second",)))[1].seconds == 50.0
    third = kitchen.recipe().estimates(kitchen.plan())[2]
    assert (third.seconds, third.time, third.memory) == (0.0, "-", "-")


def test_a_resumed_training_takes_what_is_left(kitchen: Kitchen) -> None:
    kitchen.budget = 1.0
    kitchen.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.run()
    kitchen.minutes.clear()
    (kitchen.out / "second-folder" / "metrics.jsonl").write_text('{"step": 1, "seconds": 30.0}\n')
    second = kitchen.recipe().estimates(kitchen.plan())[1]
    given = Records(kitchen.out).read("second")
    assert given is not None
    assert given.minutes is not None
    assert second.seconds == pytest.approx(60 * given.minutes - 30.0)
    assert second.time.endswith("(its share)")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.4, "3 s"), (89.0, "89 s"), (90.0, "1.5 min"), (600.0, "10 min"), (9000.0, "2.5 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says it")
def test_the_peak_is_that_of_the_stage() -> None:
    large = bytearray(200 * 2**20)
    large[:: 2**12] = b"x" * len(large[:: 2**12])
    high = peak_memory_mib()
    del large
    reset_peak_memory()
    low = peak_memory_mib()
    assert high is not None
    assert low is not None
    assert high - low > 150

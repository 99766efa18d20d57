"""A budget of time, and estimates of time before a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeRecipe

from medar.devices import peak_memory_mib, reset_peak_memory
from medar.recipes.budget import LEAST, SHORTEST, duration, minutes_for
from medar.records import Records, StageRecord


def took(fake: FakeRecipe, name: str, seconds: float) -> None:
    """Record a duration for a stage."""
    records = Records(fake.out)
    entry = records.read(name)
    assert entry is not None
    entry.seconds = seconds
    records.write(entry)


def test_each_training_gets_its_part_of_the_remaining_time(fake: FakeRecipe) -> None:
    fake.budget = 10.0
    fake.run(last="first")
    took(fake, "first", 240.0)
    fake.run()
    # Six minutes are left of ten, and the quarter of the third stage is reserved.
    assert fake.minutes == {"first": None, "second": 3.5, "third": None}


def test_the_time_of_a_stage_stays_fixed(fake: FakeRecipe) -> None:
    fake.budget = 9.0
    fake.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    given = fake.minutes["second"]
    took(fake, "first", 300.0)
    assert fake.run() == ["second", "third"]
    assert fake.minutes["second"] == given
    assert fake.run() == []


def test_a_changed_budget_does_not_repeat_training(fake: FakeRecipe) -> None:
    fake.budget = 9.0
    fake.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    given = fake.minutes["second"]
    fake.budget = None
    plan = fake.plan()
    assert plan[1].why == "was interrupted; max_minutes was 9.0, now None"
    assert fake.recipe().estimates(plan)[1].seconds == pytest.approx(60 * (given or 0))
    assert fake.run() == ["second", "third"]
    assert fake.minutes["second"] == given
    fake.budget = 30.0
    second = fake.plan()[1]
    assert second.action == "skip"
    assert second.why == "done; max_minutes was 9.0, now 30.0, --force second trains again"
    assert fake.run(forced=("second",)) == ["second", "third"]
    assert fake.minutes["second"] == pytest.approx(22.5, abs=0.01)


def test_no_training_is_left_without_time(fake: FakeRecipe) -> None:
    fake.budget = 2.0
    fake.run(last="first")
    took(fake, "first", 600.0)
    assert fake.run() == ["second", "third"]
    assert fake.minutes["second"] == pytest.approx(LEAST * 1.0)  # its part is half of the budget


def test_trainings_share_what_an_earlier_stage_took_too_much_or_left(fake: FakeRecipe) -> None:
    """Weights: 1 for `first`, 2 and 4 for trainings, 1 each for `fourth` and `page`."""
    first, second, third = fake.recipe().stages
    weights = {"fourth": 1.0, "page": 1.0}
    more = [replace(third, name=n, needs=(), budget_weight=w) for n, w in weights.items()]
    stages = (first, second, replace(third, training=second.training, budget_weight=4.0), *more)
    records = Records(fake.out)
    for seconds, expected in ((60.0, (2.0, 4.0)), (0.0, (7 / 3, 14 / 3)), (240.0, (1.0, 2.0))):
        records.write(StageRecord(name="first", status="done", seconds=seconds))
        records.path("second").unlink(missing_ok=True)
        given = minutes_for(stages[1], stages, records, 9.0)
        assert given == pytest.approx(expected[0], abs=1e-3)
        records.write(StageRecord(name="second", status="done", seconds=60 * (given or 0)))
        assert minutes_for(stages[2], stages, records, 9.0) == pytest.approx(expected[1], abs=1e-3)
    # An overrun of the second is taken from the third, and evaluation and report keep theirs.
    records.write(StageRecord(name="first", status="done", seconds=60.0))
    records.write(StageRecord(name="second", status="done", seconds=180.0))
    assert minutes_for(stages[2], stages, records, 9.0) == pytest.approx(3.0)
    # What a stage took before in this folder is reserved.
    records.write(StageRecord(name="page", status="done", seconds=120.0))
    assert minutes_for(stages[2], stages, records, 9.0) == pytest.approx(2.0)


def test_a_small_budget_reserves_time_to_start(fake: FakeRecipe) -> None:
    fake.budget = 0.3
    assert fake.recipe().estimates(fake.plan())[1].seconds == pytest.approx(
        60 * (0.3 - 0.075 - SHORTEST)
    )


def test_the_dry_run_shows_the_time_of_each_training(fake: FakeRecipe) -> None:
    fake.budget = 10.0
    assert fake.recipe().estimates(fake.plan())[1].seconds == pytest.approx(5 * 60)
    fake.run(last="first")
    took(fake, "first", 240.0)
    second = fake.recipe().estimates(fake.plan())[1]
    assert second.seconds == pytest.approx(3.5 * 60)
    assert second.time == "3.5 min (from the budget)"


def test_without_a_budget_training_has_no_time_limit(fake: FakeRecipe) -> None:
    fake.run()
    assert set(fake.minutes.values()) == {None}


def test_estimates_that_cannot_be_computed_are_unknown(fake: FakeRecipe) -> None:
    first, second, _ = fake.recipe().estimates(fake.plan())
    assert (first.seconds, first.time) == (None, "unknown")
    assert second.time == "unknown"  # 100 steps, at an unknown rate


def test_earlier_measurements_are_shown(fake: FakeRecipe) -> None:
    fake.run()
    took(fake, "first", 12.0)
    lines = [{"step": 10, "steps_per_second": 2.0, "seconds": 5.0}, {"step": 12}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 1'
    (fake.out / "second-folder" / "metrics.jsonl").write_text(text)
    first, second, _ = fake.recipe().estimates(fake.plan(forced=("first",)))
    assert (first.seconds, first.time) == (12.0, "12 s (measured before)")
    assert second.seconds == 50.0
    assert second.time == "50 s (100 steps at 2 per second)"
    fake.run(forced=("second",))  # what was measured goes aside with the result, and is found
    assert fake.recipe().estimates(fake.plan(forced=("second",)))[1].seconds == 50.0
    third = fake.recipe().estimates(fake.plan())[2]
    assert (third.seconds, third.time) == (0.0, "-")


def test_a_resumed_training_gets_the_remaining_time(fake: FakeRecipe) -> None:
    fake.budget = 1.0
    fake.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    fake.minutes.clear()
    (fake.out / "second-folder" / "metrics.jsonl").write_text('{"step": 1, "seconds": 30.0}\n')
    second = fake.recipe().estimates(fake.plan())[1]
    given = Records(fake.out).read("second")
    assert given is not None
    assert given.minutes is not None
    assert second.seconds == pytest.approx(60 * given.minutes - 30.0)
    assert second.time.endswith("(from the budget)")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.4, "3 s"), (89.0, "89 s"), (90.0, "1.5 min"), (600.0, "10 min"), (9000.0, "2.5 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says it")
def test_peak_memory_is_measured_per_stage() -> None:
    large = bytearray(200 * 2**20)
    large[:: 2**12] = b"x" * len(large[:: 2**12])
    high = peak_memory_mib()
    del large
    reset_peak_memory()
    low = peak_memory_mib()
    assert high is not None
    assert low is not None
    assert high - low > 150

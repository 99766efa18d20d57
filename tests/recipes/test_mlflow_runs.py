"""Runs in MLflow: one for the recipe and one for each stage, each with a final status."""

import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRecipe

from medar import tracking
from medar.errors import MedarError
from medar.recipes.plan import StageSelection
from medar.records import RUN_FILE

LOGGED: list[tuple[str, ...]] = []
AWAY: list[str] = []
"""Holds a word while MLflow is away."""


class Recorder:
    """Records what is logged by run name, and writes an mlflow.json."""

    def __init__(
        self, out: Path, *, name: str, uri: str = "there", parent: str = "", tags: Any = None
    ) -> None:
        self.out, self.name, self.uri, self.run_id = Path(out), name, uri, f"id of {name}"
        self.complete = True
        if parent:
            LOGGED.append((name, "below", parent, uri))

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "mlflow.json").write_text("{}")
        LOGGED.append((self.name, "parameters", *parameters))

    def catch_up(self) -> None:
        LOGGED.append((self.name, "catches up"))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        LOGGED.append((self.name, f"metrics at {step}", *metrics))

    def log_data(self, name: str, digest: str, *, source: str = "", context: str = "") -> None:
        LOGGED.append((self.name, "data", name))

    def log_artifact(self, path: Path) -> None:
        LOGGED.append((self.name, "file", path.name))

    def close(self) -> None:
        LOGGED.append((self.name, "ends", type(sys.exception()).__name__))
        self.complete = not AWAY


@pytest.fixture
def tracked(fake: FakeRecipe, monkeypatch: pytest.MonkeyPatch) -> FakeRecipe:
    """Recipes that log to the recorder."""
    LOGGED.clear()
    monkeypatch.setattr(tracking, "MlflowTracker", Recorder)
    fake.tracked = True
    return fake


def logged(name: str, what: str) -> list[tuple[str, ...]]:
    return [words[2:] for words in LOGGED if words[:2] == (name, what)]


def test_a_run_for_the_recipe_and_one_for_each_stage(tracked: FakeRecipe) -> None:
    tracked.run()
    assert LOGGED[0] == ("fake", "parameters", "word")
    assert LOGGED[-1] == ("fake", "ends", "NoneType")
    for name in ("first", "second", "third"):
        assert logged(name, "below") == [("id of fake", "there")]
        assert logged(name, "ends") == [("NoneType",)]
    assert logged("second", "parameters") == [("size",)]
    assert logged("second", "metrics at 0") == [("letters",)]
    assert logged("fake", "metrics at 0")[1] == ("second/seconds", "second/letters")


def test_a_run_without_work_logs_nothing(tracked: FakeRecipe) -> None:
    tracked.run()
    LOGGED.clear()
    tracked.run()
    assert LOGGED == []


def test_what_was_not_sent_is_sent_by_the_next_run_even_if_all_is_done(
    tracked: FakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    AWAY.append("now")
    try:
        tracked.run()
        assert tracked.recipe().records.read("second").unsent  # type: ignore[union-attr]
        LOGGED.clear()
        assert tracked.run() == []
        assert logged("second", "metrics at 0") == [("letters",)]
    finally:
        AWAY.clear()
    LOGGED.clear()
    assert tracked.run() == []
    assert logged("second", "parameters") == [("size",)]
    assert logged("second", "metrics at 0") == [("letters",)]
    assert logged("fake", "metrics at 0")[1] == ("second/seconds", "second/letters")
    assert logged("third", "ends") == [("NoneType",)]
    LOGGED.clear()
    assert tracked.run() == []
    assert LOGGED == []


def test_a_recipe_killed_at_its_end_is_completed(tracked: FakeRecipe) -> None:
    tracked.run()
    LOGGED.clear()
    (tracked.out / RUN_FILE).write_text('{"status": "running"}')
    assert tracked.run() == []
    assert [words[:2] for words in LOGGED] == [("fake", "parameters"), ("fake", "ends")]


def test_runs_end_with_a_status(tracked: FakeRecipe) -> None:
    tracked.fails["second"] = ValueError("bad")
    with pytest.raises(ValueError, match="bad"):
        tracked.run()
    assert logged("first", "ends") == [("NoneType",)]
    assert logged("second", "ends") == logged("fake", "ends") == [("ValueError",)]
    assert logged("third", "below") == []


def test_an_interrupted_run_that_does_not_resume_is_ended(tracked: FakeRecipe) -> None:
    tracked.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tracked.run()
    LOGGED.clear()
    tracked.values["second"] = {"size": 2}
    tracked.run()
    assert logged("second", "ends") == [("KeyboardInterrupt",), ("NoneType",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"register": "name", "tracked": False}, "--register name needs MLflow"),
        ({"register": "a/b"}, "register 'a/b'"),
        ({"alias": "champion"}, "alias champion belongs to a registered model"),
    ],
)
def test_unregistrable_models_are_refused_at_the_start(
    tracked: FakeRecipe, options: dict[str, Any], message: str
) -> None:
    tracked.options = options
    with pytest.raises(MedarError, match=message):
        tracked.recipe().run(StageSelection())
    assert tracked.ran == []


def test_a_missing_model_is_not_registered(tracked: FakeRecipe) -> None:
    tracked.options = {"register": "name"}
    with pytest.raises(MedarError, match="--register name: second is not done yet"):
        tracked.run(last="first")
    assert tracked.ran == []

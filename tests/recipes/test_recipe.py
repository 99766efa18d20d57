"""Recipes of simple stages: which run, resume, are skipped, and whose results are archived."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import FakeRecipe

from medar.errors import MedarError
from medar.files import exclusive
from medar.recipes import recipe
from medar.recipes.plan import StageSelection
from medar.records import Records

ALL = ["first", "second", "third"]


def entry(fake: FakeRecipe, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fake.out / "stages" / f"{name}.json").read_text())
    return found


def result(fake: FakeRecipe, name: str) -> str:
    return (fake.out / f"{name}-folder" / "result").read_text()


def test_a_run_writes_records_and_settings(fake: FakeRecipe) -> None:
    assert fake.run() == ALL
    assert yaml.safe_load((fake.out / "config.yaml").read_text()) == {"word": "hello"}
    assert json.loads((fake.out / "environment.json").read_text()) == {"python": "3"}
    assert json.loads((fake.out / "recipe.json").read_text())["status"] == "done"
    second = entry(fake, "second")
    assert (second["status"], second["attempts"]) == ("done", 1)
    assert second["facts"] == {"letters": 1, "word": "second"}
    assert second["outputs"] == ["second-folder"]
    assert second["needs"] == {"first": entry(fake, "first")["id"]}
    assert second["seconds"] >= 0
    assert second["started"] <= second["ended"]


def test_finished_stages_are_not_repeated(
    fake: FakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.run()
    before = {name: entry(fake, name) for name in ALL}
    monkeypatch.setattr(recipe, "environment", lambda: {"python": "4"})
    assert fake.run() == []
    assert json.loads((fake.out / "environment.json").read_text()) == {"python": "3"}
    assert {name: entry(fake, name) for name in ALL} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MedarError("bad"), ValueError("worse")])
def test_an_interrupted_stage_resumes(fake: FakeRecipe, error: BaseException) -> None:
    fake.fails["second"] = error
    with pytest.raises(type(error)):
        fake.run()
    status = "running" if isinstance(error, KeyboardInterrupt) else "failed"
    assert entry(fake, "second")["status"] == status
    assert fake.actions() == "first skip, second resume, third run"
    number = entry(fake, "second")["id"]
    assert fake.run() == ["second", "third"]
    assert result(fake, "second") == "ss"  # in the folder as it was left
    assert (entry(fake, "second")["attempts"], entry(fake, "second")["id"]) == (2, number)


def test_a_killed_stage_resumes(fake: FakeRecipe) -> None:
    fake.run(last="first")
    records = Records(fake.out)
    left = records.read("first")
    assert left is not None
    left.status, left.ended = "running", None
    records.write(left)
    assert fake.run() == ALL
    assert result(fake, "first") == "ff"


def test_a_changed_setting_archives_the_old_result(fake: FakeRecipe) -> None:
    fake.run()
    fake.values["second"] = {"size": 2}
    steps = fake.plan()
    assert [step.why for step in steps] == [
        "done, nothing has changed",
        "size was 1, now 2",
        "done; runs again if the result of second changes",
    ]
    assert fake.run() == ["second", "third"]
    for name in ("second", "third"):
        old = fake.out / "old" / f"{name}-1"
        assert (old / "result").read_text() == name[0]
        assert json.loads((old / "stage.json").read_text())["attempts"] == 1
    assert result(fake, "second") == "s"
    fake.values["second"] = {"size": 3}
    fake.run()
    assert sorted(p.name for p in (fake.out / "old").iterdir()) == [
        "second-1", "second-2", "third-1", "third-2",
    ]  # fmt: skip


def test_archived_results_are_printed(fake: FakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run()
    capsys.readouterr()
    fake.run(forced=("third",))
    values = capsys.readouterr().err.splitlines()
    assert f"third: the old result is now in {fake.out / 'old' / 'third-1'}" in values


def test_changed_data_reruns_every_stage(fake: FakeRecipe) -> None:
    fake.run()
    fake.digests = {"the content of files": "abd"}
    assert fake.plan()[0].why == "the content of files has changed"
    assert fake.run() == ALL


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Change the code of all stages."""
    other = {"fakes": "other"}
    return lambda: monkeypatch.setattr("medar.recipes.plan.code_digests", lambda _: other)


def test_changed_code_reruns_everything_but_training(
    fake: FakeRecipe, other_code: Callable[[], None]
) -> None:
    fake.content = True
    fake.run()
    other_code()
    assert fake.actions() == "first run, second depends, third run"
    assert fake.plan()[0].why == "the code of fakes has changed"
    assert fake.run() == ["first", "third"]
    kept = fake.plan()[1]
    assert kept.action == "skip"
    assert kept.why == "done; the code of fakes has changed, --force second trains again"
    assert fake.run(forced=("second",)) == ["second"]
    assert fake.plan()[1].why == "done, nothing has changed"


def test_a_new_default_setting_does_not_repeat_training(fake: FakeRecipe) -> None:
    fake.values["second"] = {"loss": {"size": 1, "old": 2}}
    fake.run()
    fake.values["second"] = {"loss": {"size": 1, "new": 3}}
    assert fake.run() == []
    assert fake.plan()[1].why.startswith("done; loss.new was not set, now 3")
    fake.values["second"] = {"loss": {"size": 2, "new": 3}}
    assert fake.plan()[1].why == "loss.size was 1, now 2"


def test_an_interrupted_training_resumes_after_a_code_change(
    fake: FakeRecipe, other_code: Callable[[], None]
) -> None:
    fake.content = True
    fake.fails["second"] = ValueError("bad")
    with pytest.raises(ValueError, match="bad"):
        fake.run()
    other_code()
    assert fake.actions() == "first run, second depends, third run"
    assert fake.run() == ["first", "second", "third"]
    assert (result(fake, "first"), result(fake, "second")) == ("f", "ss")


def test_an_equal_result_does_not_rerun_later_stages(
    fake: FakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.content = True
    fake.run()
    fake.digests = {"the content of files": "abd"}
    assert [(step.action, step.why) for step in fake.plan()] == [
        ("run", "the content of files has changed"),
        ("depends", "done; runs again if the result of first changes"),
        ("depends", "done; runs again if the result of first changes"),
    ]
    assert fake.run() == ["first"]
    assert "third: skip (done, nothing has changed)" in capsys.readouterr().err.splitlines()
    assert fake.actions() == "first skip, second skip, third skip"


def test_a_changed_result_reruns_dependent_stages(fake: FakeRecipe) -> None:
    fake.content = True
    fake.run()
    file = fake.out / "first-folder" / "result"

    def act() -> None:
        file.write_text("other")

    fake.acts["first"] = act
    fake.digests = {"the content of files": "abd"}
    fake.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    assert fake.actions() == "first skip, second resume, third run"
    assert fake.run() == ["second", "third"]


def test_a_stage_that_describes_others_reruns_with_them(fake: FakeRecipe) -> None:
    fake.content, fake.describing = True, "third"
    fake.run()
    assert fake.run(forced=("first",)) == ["first", "third"]
    assert fake.run() == []


def test_records_without_digests_are_used(fake: FakeRecipe) -> None:
    fake.run()
    fake.content = True
    for name in ALL:
        values = entry(fake, name)
        del values["result"]
        values["basis"]["needs"] = {"first": "a hash"}
        (fake.out / "stages" / f"{name}.json").write_text(json.dumps(values))
    assert fake.run() == []


def test_force_reruns_a_stage_and_its_dependents(fake: FakeRecipe) -> None:
    fake.run()
    assert fake.run(forced=("second",)) == ["second", "third"]
    assert fake.run() == []


def test_a_stage_detects_that_its_input_was_rebuilt(fake: FakeRecipe) -> None:
    fake.run()
    assert fake.run(forced=("first",), last="first") == ["first"]
    assert fake.plan()[1].why == "the result of first has changed"
    assert fake.run() == ["second", "third"]


def test_an_omitted_stage_reruns_its_dependents(fake: FakeRecipe) -> None:
    fake.content = True
    fake.run()
    first = fake.values.pop("first")
    assert fake.plan()[0].why == "it was made from first, which is no longer part of the recipe"
    assert fake.run() == ["second", "third"]
    fake.values = {"first": first, **fake.values}
    assert fake.run() == ["second", "third"]
    assert fake.run() == []


def test_a_missing_result_is_rebuilt(fake: FakeRecipe) -> None:
    fake.run()
    (fake.out / "third-folder" / "result").unlink()
    (fake.out / "third-folder").rmdir()
    assert fake.plan()[2].why == "its result is missing"
    assert fake.run() == ["third"]


def test_existing_files_in_an_output_folder_are_kept(fake: FakeRecipe) -> None:
    folder = fake.out / "first-folder"
    folder.mkdir(parents=True)
    (folder / "result").write_text("mine")
    fake.run()
    assert (fake.out / "old" / "first-1" / "result").read_text() == "mine"
    assert result(fake, "first") == "f"


def test_files_of_a_stage_are_moved_with_its_folder(fake: FakeRecipe) -> None:
    fake.values = {"page": {}}
    (fake.out).mkdir()
    (fake.out / "page.html").write_text("old")
    fake.run()
    assert (fake.out / "old" / "page-1" / "page.html").read_text() == "old"
    # The stage did not write its page: it is not whole, and is made again.
    assert fake.run() == ["page"]


def test_until_and_from(fake: FakeRecipe) -> None:
    with pytest.raises(MedarError, match="--from second: first comes before it and has to run"):
        fake.run(first="second")
    assert fake.run(last="second") == ["first", "second"]
    assert fake.actions(last="second") == "first skip, second skip"
    assert fake.run(first="third") == ["third"]
    assert fake.run(first="second", last="second", forced=("second",)) == ["second"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"last": "fourth"}, "--until fourth: unknown stage; known stages: first, second, third"),
        ({"first": "secnd"}, "--from secnd: unknown stage"),
        ({"forced": ("x",)}, "--force x: unknown stage"),
        ({"first": "third", "last": "first"}, "first comes before third"),
        ({"forced": ("third",), "last": "first"}, "--force third: not among the selected stages"),
    ],
)
def test_invalid_stage_selections_are_refused(
    fake: FakeRecipe, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedarError, match=message):
        fake.run(**choice)


def test_a_plan_writes_nothing(fake: FakeRecipe) -> None:
    assert fake.actions() == "first run, second run, third run"
    assert not fake.out.exists()


def test_two_runs_in_one_folder_are_refused(fake: FakeRecipe) -> None:
    with exclusive(fake.out), pytest.raises(MedarError, match="another medar is at work"):
        fake.run()
    assert fake.run() == ALL


def test_an_interruption_prints_how_to_resume(fake: FakeRecipe) -> None:
    fake.fails["first"] = KeyboardInterrupt("whatever")
    with pytest.raises(KeyboardInterrupt, match=r"^run the same command again to continue$"):
        fake.run()
    fake.fails["first"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match="command again without --force to continue"):
        fake.run(forced=("first",))


def test_sigterm_acts_like_ctrl_c(fake: FakeRecipe) -> None:
    before = signal.getsignal(signal.SIGTERM)
    fake.acts["first"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="run the same command again to continue"):
        fake.run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_in_place_of_the_folder_is_refused(fake: FakeRecipe, tmp_path: Path) -> None:
    fake.out.write_text("")
    with pytest.raises(MedarError, match="is a file; --out names a folder"):
        fake.plan()


def test_a_damaged_record_gives_one_line(fake: FakeRecipe) -> None:
    fake.run(last="first")
    (fake.out / "stages" / "first.json").write_text("{")
    with pytest.raises(MedarError, match=r"first\.json: not valid JSON .*; delete it to run"):
        fake.plan()


def test_a_record_of_another_type_gives_one_line(fake: FakeRecipe) -> None:
    fake.run(last="first")
    path = fake.out / "stages" / "first.json"
    values = json.loads(path.read_text())
    values["basis"]["settings"] = "a" * 5000
    path.write_text(json.dumps(values))
    with pytest.raises(MedarError, match=r"first\.json: basis\.settings must be a m") as caught:
        fake.plan()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_state_is_rebuilt(fake: FakeRecipe, text: str) -> None:
    fake.run()
    (fake.out / "recipe.json").write_text(text)
    assert fake.run() == []
    assert json.loads((fake.out / "recipe.json").read_text())["status"] == "done"


def test_a_folder_of_another_run_is_refused(fake: FakeRecipe) -> None:
    fake.out.mkdir()
    (fake.out / "config.yaml").write_text("task: a training")
    for call in (fake.run, fake.plan):
        with pytest.raises(MedarError, match="holds another kind of run"):
            call()
    assert (fake.out / "config.yaml").read_text() == "task: a training"


def test_a_folder_of_another_recipe_is_refused(fake: FakeRecipe) -> None:
    fake.run()
    other = replace(fake.recipe(), name="other")
    with pytest.raises(MedarError, match="holds a run of the recipe fake, not other"):
        other.plan(StageSelection())
    assert fake.run() == []


def test_a_run_killed_at_its_start_is_resumed(
    fake: FakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "write_json", killed)
        fake.run()
    assert (fake.out / "config.yaml").exists()
    assert fake.run() == ALL


def test_entries_survive_a_round_trip(fake: FakeRecipe) -> None:
    fake.run()
    records = Records(fake.out)
    kept = records.read("second")
    assert kept is not None
    assert kept.to_dict() == entry(fake, "second")

"""Stages that only write a file: what is run, gone on with, skipped and moved aside."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import Kitchen

from medar.errors import MedarError
from medar.files import exclusive
from medar.recipes import desk
from medar.recipes.planning import Choice
from medar.records import Records

ALL = ["first", "second", "third"]


def entry(kitchen: Kitchen, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((kitchen.out / "stages" / f"{name}.json").read_text())
    return found


def result(kitchen: Kitchen, name: str) -> str:
    return (kitchen.out / f"{name}-folder" / "result").read_text()


def test_a_run_leaves_a_ledger_and_settings(kitchen: Kitchen) -> None:
    assert kitchen.run() == ALL
    assert yaml.safe_load((kitchen.out / "config.yaml").read_text()) == {"word": "hello"}
    assert json.loads((kitchen.out / "environment.json").read_text()) == {"python": "3"}
    assert json.loads((kitchen.out / "recipe.json").read_text())["status"] == "done"
    second = entry(kitchen, "second")
    assert (second["status"], second["attempts"]) == ("done", 1)
    assert second["facts"] == {"letters": 1, "word": "second"}
    assert second["outputs"] == ["second-folder"]
    assert second["needs"] == {"first": entry(kitchen, "first")["id"]}
    assert second["seconds"] >= 0
    assert second["started"] <= second["ended"]


def test_nothing_is_done_twice(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.run()
    before = {name: entry(kitchen, name) for name in ALL}
    monkeypatch.setattr(desk, "environment", lambda: {"python": "4"})
    assert kitchen.run() == []
    assert json.loads((kitchen.out / "environment.json").read_text()) == {"python": "3"}
    assert {name: entry(kitchen, name) for name in ALL} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MedarError("bad"), ValueError("worse")])
def test_what_was_interrupted_goes_on(kitchen: Kitchen, error: BaseException) -> None:
    kitchen.fails["second"] = error
    with pytest.raises(type(error)):
        kitchen.run()
    status = "running" if isinstance(error, KeyboardInterrupt) else "failed"
    assert entry(kitchen, "second")["status"] == status
    assert kitchen.actions() == "first skip, second resume, third run"
    number = entry(kitchen, "second")["id"]
    assert kitchen.run() == ["second", "third"]
    assert result(kitchen, "second") == "ss"  # in the folder as it was left
    assert (entry(kitchen, "second")["attempts"], entry(kitchen, "second")["id"]) == (2, number)


def test_a_killed_stage_goes_on(kitchen: Kitchen) -> None:
    kitchen.run(last="first")
    records = Records(kitchen.out)
    left = records.read("first")
    assert left is not None
    left.status, left.ended = "running", None
    records.write(left)
    assert kitchen.run() == ALL
    assert result(kitchen, "first") == "ff"


def test_a_changed_setting_moves_the_old_result_aside(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.values["second"] = {"size": 2}
    steps = kitchen.plan()
    assert [step.why for step in steps] == [
        "done, nothing has changed",
        "size was 1, now 2",
        "done; runs anew if second gives another result",
    ]
    assert kitchen.run() == ["second", "third"]
    for name in ("second", "third"):
        old = kitchen.out / "old" / f"{name}-1"
        assert (old / "result").read_text() == name[0]
        assert json.loads((old / "stage.json").read_text())["attempts"] == 1
    assert result(kitchen, "second") == "s"
    kitchen.values["second"] = {"size": 3}
    kitchen.run()
    assert sorted(p.name for p in (kitchen.out / "old").iterdir()) == [
        "second-1", "second-2", "third-1", "third-2",
    ]  # fmt: skip


def test_moving_aside_is_said(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.run()
    capsys.readouterr()
    kitchen.run(forced=("third",))
    said = capsys.readouterr().err.splitlines()
    assert f"third: what was there before is now in {kitchen.out / 'old' / 'third-1'}" in said


def test_changed_data_change_all(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.digests = {"the content of files": "abd"}
    assert kitchen.plan()[0].why == "the content of files has changed"
    assert kitchen.run() == ALL


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the code of all rooms another one."""
    return lambda: monkeypatch.setattr("medar.recipes.planning.code_digest", lambda room: "other")


def test_changed_code_redoes_what_is_no_training(
    kitchen: Kitchen, other_code: Callable[[], None]
) -> None:
    kitchen.content = True
    kitchen.run()
    other_code()
    assert kitchen.actions() == "first run, second depends, third run"
    assert kitchen.plan()[0].why == "the code of medar.errors has changed since"
    assert kitchen.run() == ["first", "third"]
    kept = kitchen.plan()[1]
    assert kept.action == "skip"
    assert kept.why == (
        "done; the code of medar.errors has changed since, --force second trains anew"
    )
    assert kitchen.run(forced=("second",)) == ["second"]
    assert kitchen.plan()[1].why == "done, nothing has changed"


def test_a_setting_that_came_with_the_code_does_not_train_anew(kitchen: Kitchen) -> None:
    kitchen.values["second"] = {"loss": {"size": 1, "old": 2}}
    kitchen.run()
    kitchen.values["second"] = {"loss": {"size": 1, "new": 3}}
    assert kitchen.run() == []
    assert kitchen.plan()[1].why.startswith("done; loss.new was not set, now 3")
    kitchen.values["second"] = {"loss": {"size": 2, "new": 3}}
    assert kitchen.plan()[1].why == "loss.size was 1, now 2"


def test_an_interrupted_training_goes_on_with_other_code(
    kitchen: Kitchen, other_code: Callable[[], None]
) -> None:
    kitchen.content = True
    kitchen.fails["second"] = ValueError("bad")
    with pytest.raises(ValueError, match="bad"):
        kitchen.run()
    other_code()
    assert kitchen.actions() == "first run, second depends, third run"
    assert kitchen.run() == ["first", "second", "third"]
    assert (result(kitchen, "first"), result(kitchen, "second")) == ("f", "ss")


def test_the_same_result_changes_nothing_after_it(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.content = True
    kitchen.run()
    kitchen.digests = {"the content of files": "abd"}
    assert [(step.action, step.why) for step in kitchen.plan()] == [
        ("run", "the content of files has changed"),
        ("depends", "done; runs anew if first gives another result"),
        ("depends", "done; runs anew if first gives another result"),
    ]
    assert kitchen.run() == ["first"]
    assert "third: skip (done, nothing has changed)" in capsys.readouterr().err.splitlines()
    assert kitchen.actions() == "first skip, second skip, third skip"


def test_another_result_changes_what_needs_it(kitchen: Kitchen) -> None:
    kitchen.content = True
    kitchen.run()
    file = kitchen.out / "first-folder" / "result"

    def act() -> None:
        file.write_text("other")

    kitchen.acts["first"] = act
    kitchen.digests = {"the content of files": "abd"}
    kitchen.fails["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.run()
    assert kitchen.actions() == "first skip, second resume, third run"
    assert kitchen.run() == ["second", "third"]


def test_who_tells_how_it_was_made_tells_it_again(kitchen: Kitchen) -> None:
    kitchen.content, kitchen.retelling = True, "third"
    kitchen.run()
    assert kitchen.run(forced=("first",)) == ["first", "third"]
    assert kitchen.run() == []


def test_a_ledger_without_digests_is_gone_on_with(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.content = True
    for name in ALL:
        said = entry(kitchen, name)
        del said["result"]
        said["basis"]["needs"] = {"first": "a hash"}
        (kitchen.out / "stages" / f"{name}.json").write_text(json.dumps(said))
    assert kitchen.run() == []


def test_force_redoes_a_stage_and_those_that_need_it(kitchen: Kitchen) -> None:
    kitchen.run()
    assert kitchen.run(forced=("second",)) == ["second", "third"]
    assert kitchen.run() == []


def test_a_stage_knows_that_what_it_needs_was_made_anew(kitchen: Kitchen) -> None:
    kitchen.run()
    assert kitchen.run(forced=("first",), last="first") == ["first"]
    assert kitchen.plan()[1].why == "first has given another result since"
    assert kitchen.run() == ["second", "third"]


def test_a_stage_that_is_left_out_changes_what_was_made_from_it(kitchen: Kitchen) -> None:
    kitchen.content = True
    kitchen.run()
    first = kitchen.values.pop("first")
    assert kitchen.plan()[0].why == "it was made from first, which is left out now"
    assert kitchen.run() == ["second", "third"]
    kitchen.values = {"first": first, **kitchen.values}
    assert kitchen.run() == ["second", "third"]
    assert kitchen.run() == []


def test_a_result_that_is_gone_is_made_again(kitchen: Kitchen) -> None:
    kitchen.run()
    (kitchen.out / "third-folder" / "result").unlink()
    (kitchen.out / "third-folder").rmdir()
    assert kitchen.plan()[2].why == "its result is gone"
    assert kitchen.run() == ["third"]


def test_what_lies_where_a_stage_writes_is_kept(kitchen: Kitchen) -> None:
    folder = kitchen.out / "first-folder"
    folder.mkdir(parents=True)
    (folder / "result").write_text("mine")
    kitchen.run()
    assert (kitchen.out / "old" / "first-1" / "result").read_text() == "mine"
    assert result(kitchen, "first") == "f"


def test_files_of_a_stage_are_moved_with_its_folder(kitchen: Kitchen) -> None:
    kitchen.values = {"page": {}}
    (kitchen.out).mkdir()
    (kitchen.out / "page.html").write_text("old")
    kitchen.run()
    assert (kitchen.out / "old" / "page-1" / "page.html").read_text() == "old"
    # The stage did not write its page: it is not whole, and is made again.
    assert kitchen.run() == ["page"]


def test_until_and_from(kitchen: Kitchen) -> None:
    with pytest.raises(MedarError, match="--from second: first comes before it and is to run"):
        kitchen.run(first="second")
    assert kitchen.run(last="second") == ["first", "second"]
    assert kitchen.actions(last="second") == "first skip, second skip"
    assert kitchen.run(first="third") == ["third"]
    assert kitchen.run(first="second", last="second", forced=("second",)) == ["second"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"last": "fourth"}, "--until fourth: no such stage; there are: first, second, third"),
        ({"first": "secnd"}, "--from secnd: no such stage"),
        ({"forced": ("x",)}, "--force x: no such stage"),
        ({"first": "third", "last": "first"}, "--from third --until first: nothing lies between"),
        ({"forced": ("third",), "last": "first"}, "--force third: is not among the stages"),
    ],
)
def test_choices_that_cannot_be(kitchen: Kitchen, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        kitchen.run(**choice)


def test_a_plan_writes_nothing(kitchen: Kitchen) -> None:
    assert kitchen.actions() == "first run, second run, third run"
    assert not kitchen.out.exists()


def test_two_runs_in_one_folder_are_refused(kitchen: Kitchen) -> None:
    with exclusive(kitchen.out), pytest.raises(MedarError, match="another medar is at work"):
        kitchen.run()
    assert kitchen.run() == ALL


def test_interruptions_say_how_to_go_on(kitchen: Kitchen) -> None:
    kitchen.fails["first"] = KeyboardInterrupt("whatever")
    with pytest.raises(KeyboardInterrupt, match=r"^the same command goes on from here$"):
        kitchen.run()
    kitchen.fails["first"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match="the same command without --force goes on"):
        kitchen.run(forced=("first",))


def test_sigterm_ends_as_ctrl_c_does(kitchen: Kitchen) -> None:
    before = signal.getsignal(signal.SIGTERM)
    kitchen.acts["first"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="goes on from here"):
        kitchen.run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_where_the_folder_should_be(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.out.write_text("")
    with pytest.raises(MedarError, match="is a file; --out names a folder"):
        kitchen.plan()


def test_a_damaged_ledger_is_one_line(kitchen: Kitchen) -> None:
    kitchen.run(last="first")
    (kitchen.out / "stages" / "first.json").write_text("{")
    with pytest.raises(MedarError, match=r"first\.json: not valid JSON .*; delete it to run"):
        kitchen.plan()


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_state_is_written_anew(kitchen: Kitchen, text: str) -> None:
    kitchen.run()
    (kitchen.out / "recipe.json").write_text(text)
    assert kitchen.run() == []
    assert json.loads((kitchen.out / "recipe.json").read_text())["status"] == "done"


def test_a_folder_of_another_run_is_refused(kitchen: Kitchen) -> None:
    kitchen.out.mkdir()
    (kitchen.out / "config.yaml").write_text("task: a training")
    for call in (kitchen.run, kitchen.plan):
        with pytest.raises(MedarError, match="holds a run of something else"):
            call()
    assert (kitchen.out / "config.yaml").read_text() == "task: a training"


def test_a_folder_of_another_recipe_is_refused(kitchen: Kitchen) -> None:
    kitchen.run()
    other = replace(kitchen.recipe(), name="other")
    with pytest.raises(MedarError, match="holds a run of the recipe fake, not other"):
        other.plan(Choice())
    assert kitchen.run() == []


def test_a_run_that_was_killed_at_its_very_beginning_is_no_other(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(desk, "write_json", killed)
        kitchen.run()
    assert (kitchen.out / "config.yaml").exists()
    assert kitchen.run() == ALL


def test_entries_survive_a_round_trip(kitchen: Kitchen) -> None:
    kitchen.run()
    records = Records(kitchen.out)
    kept = records.read("second")
    assert kept is not None
    assert kept.to_dict() == entry(kitchen, "second")

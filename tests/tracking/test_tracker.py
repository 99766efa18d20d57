"""`MlflowTracker`: resumed runs and unreachable servers."""

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medar.environment import git_state
from medar.errors import MedarError
from medar.tracking import MlflowTracker
from medar.tracking import tracker as tracking
from medar.tracking.client import RunClient
from medar.tracking.names import public
from medar.training import fit, loop
from medar.training.distributed import Forward, Ranks
from medar.training.tracker import JsonlTracker, Trackers

from ..training.toy import Toy, settings

Make = Callable[..., MlflowTracker]


@pytest.fixture(scope="session")
def client(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of one database for all tests."""
    from mlflow import MlflowClient

    copy = shutil.copy(mlflow_database, tmp_path_factory.mktemp("store"))
    return MlflowClient(tracking_uri=f"sqlite:///{copy}")


@pytest.fixture
def make(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Create trackers of a run in `tmp_path`, without collecting versions and hardware."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    monkeypatch.setattr(tracking, "environment", lambda: {"python": "3"})
    return lambda **options: MlflowTracker(tmp_path, **{"name": "test", "system": False, **options})


def steps(client: Any, run_id: str, name: str = "loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, name)]


@pytest.fixture
def nowhere() -> str:
    """The address of an unreachable server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_training_is_logged(client: Any, make: Make, tmp_path: Path) -> None:
    with make(tags={"who": "me"}, parent="0123") as tracker:
        fit(Toy(), settings(), tmp_path, tracker)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test"
    assert run.data.params["training.learning_rate"] == "0.02"
    assert run.data.params["task.widths"] == "[3, 8, 1]"
    assert run.data.tags["who"] == "me"
    assert run.data.tags["mlflow.parentRunId"] == "0123"
    assert run.data.tags["folder"] == str(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "validation/error", "learning_rate"):
        printed = {line["step"]: line[name] for line in lines if name in line}
        got = {m.step: m.value for m in client.get_metric_history(tracker.run_id, name)}
        assert got == printed
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["config.yaml"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")],
)
def test_a_run_has_a_final_status_and_is_resumed(
    error: type[BaseException], status: str, client: Any, make: Make, tmp_path: Path
) -> None:
    def end(step: int) -> None:
        if step == 12:
            raise error

    task = Toy()
    task.after_step = end  # type: ignore[method-assign]
    first = make()
    with pytest.raises(error), first:
        fit(task, settings(log_every=1), tmp_path, first)
    assert client.get_run(first.run_id).info.status == status
    with make() as second:
        fit(Toy(), settings(log_every=1), tmp_path, second)
    assert second.run_id == first.run_id
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert set(steps(client, second.run_id, "train/loss")) == set(range(1, 31))


def test_an_exception_outside_a_training_is_not_recorded_as_its_own(
    client: Any, make: Make
) -> None:
    try:
        raise ValueError
    except ValueError:
        tracker = make()
        tracker.log_parameters({})
        tracker.close()
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_unsent_records_of_a_killed_process_are_sent_later(
    client: Any, make: Make, tmp_path: Path
) -> None:
    first = make(clock=lambda: 0.0)
    own = JsonlTracker(tmp_path / "metrics.jsonl")
    both = Trackers([own, first])
    both.log_parameters({})
    for step in range(1, 8):
        both.log_metrics({"loss": 1.0, "bad": float("nan")}, step)
    own.close()
    assert steps(client, first.run_id) == []
    second = make()
    both = Trackers([JsonlTracker(tmp_path / "metrics.jsonl", step=5), second])
    both.log_parameters({})
    both.log_metrics({"loss": 1.0}, 6)
    both.close()
    assert second.run_id == first.run_id
    assert steps(client, second.run_id) == [1, 2, 3, 4, 5, 6]
    assert "bad" not in client.get_run(second.run_id).data.metrics
    again = make()
    again.log_parameters({})
    again.close()
    assert steps(client, second.run_id) == [1, 2, 3, 4, 5, 6]


def test_changed_parameters_become_tags(client: Any, make: Make) -> None:
    for rate, more in ((1, {}), (2, {"new": {"deep": [1, 2]}}), (1, {})):
        tracker = make()
        tracker.log_parameters({"rate": rate, "long": "x" * 7000, "a:b/../*": None, **more})
        tracker.close()
        run = client.get_run(tracker.run_id)
        assert run.data.params["rate"] == "1"
        assert run.data.tags.get("resumed.rate", "1") == str(rate)
        assert [name for name in run.data.tags if name.startswith("resumed.")] in (
            [], ["resumed.rate"],
        )  # fmt: skip
    assert run.data.params["long"] == "x" * 6000
    assert run.data.params["new.deep"] == "[1, 2]"
    assert len(run.data.params) == 4


def test_names_are_converted_for_mlflow(client: Any, make: Make) -> None:
    names = ["", "..", "/a", "a//b", "../c", "a/./d", "é*:?", "x" * 300, "train/loss", "a.b-c 1"]
    tracker = make()
    tracker.log_parameters(dict.fromkeys(names, 1))
    tracker.log_metrics(dict.fromkeys(names, 1.0), 1)
    tracker.close()
    run = client.get_run(tracker.run_id)
    assert set(run.data.params) == set(run.data.metrics)
    assert set(run.data.params) == {
        "_", "a", "a/b", "c", "a/d", "é___", "x" * 250, "train/loss", "a.b-c 1",
    }  # fmt: skip


def test_thousands_of_metrics_arrive(client: Any, make: Make) -> None:
    tracker = make(clock=lambda: 0.0)
    tracker.log_parameters({})
    for step in range(1, 1301):
        tracker.log_metrics({"loss": 1 / step, "rate": step}, step)
    tracker.close()
    assert steps(client, tracker.run_id) == list(range(1, 1301))


def test_an_unreachable_server_does_not_stop_or_delay_training(
    make: Make, nowhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with make(uri=nowhere) as tracker:
        outcome = fit(Toy(), settings(log_every=1), tmp_path, tracker)
    assert time.monotonic() - began < 5  # MLflow's own patience is minutes
    assert outcome.step == 30
    printed = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(printed) == 2
    assert "is not reached" in printed[0]
    assert "did not reach MLflow; metrics are in" in printed[1]
    assert not (tmp_path / "mlflow.json").exists()
    assert not tracker.complete


def test_all_metrics_are_sent_when_the_server_is_reachable(
    client: Any, make: Make, nowhere: str, tmp_path: Path
) -> None:
    with make(uri=nowhere) as tracker:
        fit(Toy(), settings(steps=6, log_every=1), tmp_path, tracker)
    middle = tmp_path / "checkpoints" / "step-00000006.pt"
    with make() as tracker:
        fit(Toy(), settings(steps=9, log_every=1), tmp_path, tracker, resume=middle)
    assert tracker.complete
    assert steps(client, tracker.run_id, "train/loss") == list(range(1, 10))


def test_failed_deliveries_are_retried_with_growing_waits(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, tries = 0.0, []
    tracker = make(clock=lambda: now)
    tracker.log_parameters({})
    send = RunClient.metrics

    def away(self: Any, points: Any) -> None:
        tries.append(now)
        if now < 100:
            raise ConnectionError("gone\naway")
        send(self, points)

    monkeypatch.setattr(RunClient, "metrics", away)
    for step in range(1, 181):
        now = float(step)
        tracker.log_metrics({"loss": 1.0}, step)
    assert tries[:6] == [5, 10, 20, 40, 80, 160]
    assert steps(client, tracker.run_id) == list(range(1, 161 + 5 * ((180 - 160) // 5)))
    tracker.close()
    assert steps(client, tracker.run_id) == list(range(1, 181))
    printed = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("MLflow at")
    ]
    assert len(printed) == 2
    assert "is not reached" in printed[0]
    assert "has received the stored entries" in printed[1]


def test_refused_parameters_do_not_hold_metrics_back(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Any, values: Any) -> None:
        raise ValueError("no such value")

    monkeypatch.setattr(RunClient, "parameters", refuse)
    tracker = make(clock=lambda: 0.0)
    tracker.log_parameters({"rate": 1})
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close()
    assert steps(client, tracker.run_id) == [1]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    printed = capsys.readouterr().err
    assert "(no such value)" in printed
    assert "1 parameter did not reach MLflow" in printed


def test_only_rank_0_logs_to_mlflow(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "current_ranks", lambda: Ranks(rank=1, world_size=2, local_rank=1))
    monkeypatch.setattr(loop, "process_group", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(loop, "data_parallel", lambda task, *_: Forward(task))
    with make() as tracker:
        fit(Toy(), settings(steps=2), tmp_path, tracker)
    assert tracker.run_id is None
    assert not (tmp_path / "mlflow.json").exists()


def test_pending_metrics_are_kept_in_the_file_and_counted(
    make: Make, nowhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = make(uri=nowhere)
    both = Trackers([JsonlTracker(tmp_path / "metrics.jsonl"), tracker])
    both.log_parameters({})
    for step in range(25):
        both.log_metrics({"loss": 1.0, "bad": float("nan")}, step)
    tracker.log_metrics({"other": 2.0}, 24)
    assert [point.key for point in tracker._others] == ["other"]
    both.close()
    assert "26 metrics did not reach MLflow" in capsys.readouterr().err


def test_repeated_steps_of_a_resumed_run_are_sent_again(
    client: Any, make: Make, tmp_path: Path
) -> None:
    for value, kept in ((1.0, 0), (2.0, 2)):
        tracker = make()
        both = Trackers([JsonlTracker(tmp_path / "metrics.jsonl", step=kept), tracker])
        with contextlib.closing(both):
            both.log_parameters({"value": value})
            for step in range(kept + 1, 5):
                both.log_metrics({"loss": value}, step)
    history = client.get_metric_history(tracker.run_id, "loss")
    points = sorted((metric.step, metric.value) for metric in history)
    assert points == [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (4, 2)]


def test_a_deleted_run_is_created_again(client: Any, make: Make, tmp_path: Path) -> None:
    own = JsonlTracker(tmp_path / "metrics.jsonl")
    first = make()
    for tracker in (first, make()):
        both = Trackers([own, tracker])
        both.log_parameters({"rate": 1})
        both.log_metrics({"loss": 1.0}, 1 if tracker is first else 2)
        tracker.close()
        if tracker is first:
            client.delete_run(first.run_id)
    own.close()
    assert tracker.run_id != first.run_id
    assert sorted(steps(client, tracker.run_id)) == [1, 2]


def test_a_run_whose_id_was_not_written_is_resumed(client: Any, make: Make, tmp_path: Path) -> None:
    first, second, third = make(parent="0123"), make(parent="4567"), make()
    first.log_parameters({})
    (tmp_path / "mlflow.json").unlink()  # killed in between
    second.log_parameters({"rate": 1})
    assert second.run_id == first.run_id
    assert client.get_run(second.run_id).data.tags["mlflow.parentRunId"] == "4567"
    (tmp_path / "mlflow.json").unlink()  # with the whole folder, for another training
    third.log_parameters({"rate": 2})
    assert third.run_id != first.run_id
    assert client.get_run(third.run_id).data.params == {"rate": "2"}
    second.close()
    third.close()


def test_another_store_gets_another_run(make: Make, nowhere: str) -> None:
    tracker = make()
    tracker.log_parameters({})
    tracker.close()
    assert make().run_id == tracker.run_id
    assert make(uri=nowhere).run_id is None


def test_only_small_readable_files_are_sent(client: Any, make: Make, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "pictures").mkdir(parents=True)
    for name in ("settings.yaml", "pictures/montage.png", "model.safetensors", "last.pt"):
        (model / name).write_bytes(b"0")
    with (model / "large.json").open("wb") as file:
        file.truncate(tracking.SMALL + 1)
    tracker = make()
    tracker.log_artifact(model)
    tracker.log_parameters({})
    tracker.close()
    listed = [
        client.list_artifacts(tracker.run_id, folder) for folder in ("model", "model/pictures")
    ]
    names = [file.path for files in listed for file in files if not file.is_dir]
    assert names == ["model/settings.yaml", "model/pictures/montage.png"]


def test_data_sets_are_inputs(client: Any, make: Make) -> None:
    tracker = make()
    tracker.log_data("phantoms", "0" * 32, source="prepared")
    tracker.log_parameters({})
    tracker.close()
    [found] = client.get_run(tracker.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("phantoms", "0" * 32)
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "training"}


def test_the_default_store_is_a_database_beside_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert MlflowTracker(tmp_path / "run", name="a").uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_passwords_are_not_printed(
    make: Make, nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_password = nowhere.replace("//", "//me:secret@")
    tracker = make(uri=with_password)
    tracker.log_parameters({})
    tracker.close()
    printed = capsys.readouterr().err
    assert nowhere in printed
    assert "secret" not in printed
    assert public("sqlite:////a@b/x.db") == "sqlite:////a@b/x.db"


SENT = '{"uri": "a", "run_id": "b", "sent": %s}'


@pytest.mark.parametrize("content", ["[]", "{}", SENT % '"x"', SENT % "Infinity", "{"])
def test_a_damaged_mlflow_json_is_reported(content: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text(content)
    with pytest.raises(MedarError, match=r"mlflow\.json: damaged.*delete it") as error:
        make()
    assert "\n" not in str(error.value)


def test_the_git_state_outside_a_checkout_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) == {}
    (tmp_path / ".git").mkdir()
    assert git_state(tmp_path) == {}  # git refuses
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {}

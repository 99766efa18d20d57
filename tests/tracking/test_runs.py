"""Runs read back with an MLflow client: data sets, system metrics, stages, and failures."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medar.cli.training import evaluation_at
from medar.errors import MedarError
from medar.tracking import MlflowTracker
from medar.tracking import tracker as tracking
from medar.tracking.client import RunClient
from medar.tracking.data import data_set
from medar.tracking.models import log_model
from medar.tracking.names import public
from medar.training import fit
from medar.training.tracker import JsonlTracker, Trackers, read_metrics

from ..training.toy import Toy, settings

Make = Callable[..., MlflowTracker]

NOWHERE = "http://127.0.0.1:9"


def trained(tracker: MlflowTracker, *steps: int) -> None:
    """A training of some steps, logged to metrics.jsonl and to a tracker."""
    own = JsonlTracker(tracker.out / "metrics.jsonl", step=steps[0] - 1)
    both = Trackers([own, tracker])
    both.log_parameters({"rate": 1})
    for step in steps:
        both.log_metrics({"loss": 1.0}, step)
    both.close()


def steps_of(client: Any, tracker: MlflowTracker) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(tracker.run_id, "loss"))


def test_system_metrics_are_sent_only_to_mlflow(client: Any, make: Make, tmp_path: Path) -> None:
    tracker = make()
    both = Trackers([JsonlTracker(tmp_path / "run" / "metrics.jsonl"), tracker])
    both.log_parameters({})
    both.log_metrics({"loss": 1.0}, 3)
    both.log_metrics({"loss": 0.5}, 4)
    both.close()
    metrics = client.get_run(tracker.run_id).data.metrics
    assert {
        "loss",
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/disk_available_megabytes",
        "system/network_receive_megabytes",
    } <= set(metrics)
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    (first,) = client.get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")
    assert first.step == 4
    assert "system" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_missing_monitors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.sys.modules, "psutil", None)
    for name in ("cpu", "disk", "network"):
        monkeypatch.delitem(
            tracking.sys.modules, f"mlflow.system_metrics.metrics.{name}_monitor", raising=False
        )
    looks = tracking.SystemMetrics()
    assert looks.read() == {}
    assert not [name for name in looks.read() if "gpu" not in name]


def test_torch_reports_the_memory_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda index: ((3_000_000, 4_000_000), (0, 2_000_000))[index],
    )
    monkeypatch.setitem(tracking.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(tracking, "MONITORS", {})
    looks = tracking.SystemMetrics()
    assert looks.read() == {}
    assert looks.read() == {
        "system/gpu_0_memory_usage_megabytes": 1.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_1_memory_usage_megabytes": 2.0,
        "system/gpu_1_memory_usage_percentage": 100.0,
    }


def test_stages_are_child_runs_with_dataset_inputs(client: Any, make: Make, tmp_path: Path) -> None:
    parent = make(name="synthesis")
    parent.log_parameters({"seed": 0})
    for _ in range(2):  # the second time it is resumed
        child = MlflowTracker(
            tmp_path / "run" / "tokenizer", name="tokenizer", uri=parent.uri, parent=parent.run_id
        )
        child.log_data("phantoms", "0" * 32, source="/data/prepared")
        child.log_parameters({"depth": 2})
        child.log_metrics({"loss": 1.0}, 1)
        child.close()
    parent.close()
    experiment = client.get_run(parent.run_id).info.experiment_id
    (found,) = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert (found.info.run_name, found.info.status) == ("tokenizer", "FINISHED")
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("phantoms", "0" * 32)
    assert json.loads(dataset.dataset.source) == {"uri": "/data/prepared"}


def test_an_mlflow_project_run_is_the_parent(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    for parent, expected in ((None, "0123"), ("4567", "4567")):
        tracker = make(parent=parent)
        tracker.log_parameters({})
        tracker.close()
        assert client.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == expected


def test_a_folder_without_a_data_set_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="neither prepared cases nor tokens"):
        make().log_folder(tmp_path)
    with pytest.raises(MedarError, match="neither prepared cases nor tokens"):
        data_set(tmp_path / "nowhere")


def test_a_database_that_cannot_be_opened_is_reported_at_once(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    tracker = make(uri=f"sqlite:///{tmp_path}")  # a folder
    tracker.log_parameters({"rate": 1})
    tracker.close()
    assert time.monotonic() - began < 5
    first, last = capfd.readouterr().err.splitlines()
    assert "refuses ((sqlite3.OperationalError) unable to open database file)" in first
    assert "1 parameter did not reach MLflow" in last


def test_the_first_cause_is_reported(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ValueError("of a training, at whose end the run is closed")
    except ValueError:
        make(uri=NOWHERE).log_parameters({})
    printed = capsys.readouterr().err
    assert re.search(r"is not reached \(\[Errno \d+\] Connection refused\)", printed)
    (tmp_path / "text.db").write_text("no database" * 100)
    make(uri=f"sqlite:///{tmp_path}/text.db").log_parameters({})
    assert "refuses ((sqlite3.DatabaseError) file is not a database)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:se/kr@et@host:5000/x", "http://host:5000/x"),
        ("https://token@host", "https://host"),
        ("mysql+pymysql://me:pw@host/db?ssl=1&password=pw&a=b",
         "mysql+pymysql://host/db?ssl=1&password=...&a=b"),
        ("http://host:5000/x", "http://host:5000/x"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
    ],
)  # fmt: skip
def test_secrets_of_addresses_are_not_shown(address: str, shown: str) -> None:
    assert public(address) == shown
    assert public(f"({address} failed)") == f"({shown} failed)"


def test_a_finished_training_is_sent_when_the_server_is_back(
    client: Any, make: Make, tokenizer: Path, tmp_path: Path
) -> None:
    with make(uri=NOWHERE) as tracker:
        fit(Toy(), settings(), tmp_path / "run", tracker)
    with MlflowTracker(tmp_path / "reference", name="reference") as reference:
        fit(Toy(), settings(), tmp_path / "reference", reference)
    with make() as tracker:
        fit(Toy(), settings(), tmp_path / "run", tracker)  # has finished: nothing is trained
        log_model(tracker, tokenizer, kind="tokenizer", metrics={})
    run, same = client.get_run(tracker.run_id), client.get_run(reference.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == same.data.params
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["config.yaml"]
    with make() as again:
        fit(Toy(), settings(), tmp_path / "run", again)
    assert not [tag for tag in client.get_run(again.run_id).data.tags if tag.startswith("resumed.")]


def test_logging_a_model_sends_the_rest_of_a_killed_run(
    client: Any, make: Make, tokenizer: Path
) -> None:
    first = make()
    with pytest.raises(KeyboardInterrupt):
        try:
            first.log_parameters({})
            raise KeyboardInterrupt
        finally:
            first.close()
    assert client.get_run(first.run_id).info.status == "KILLED"
    trained(make(uri=NOWHERE), 1, 2)
    with make() as last:
        log_model(last, tokenizer, kind="tokenizer", metrics={})
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert steps_of(client, first) == [1, 2]


def test_a_run_that_was_killed_before_its_id_was_written_is_resumed(
    client: Any, make: Make, tmp_path: Path
) -> None:
    make().log_parameters({})
    (tmp_path / "run" / "mlflow.json").unlink()
    again = make()
    again.log_parameters({"a": 1})
    again.log_metrics({"loss": 1.0}, 0)
    again.close()
    (only,) = client.search_runs(["1"])
    assert (only.info.run_id, only.info.status) == (again.run_id, "FINISHED")
    # Runs that have ended, are not empty or have another name are not resumed.
    for name in ("test", "test", "other"):
        (tmp_path / "run" / "mlflow.json").unlink()
        make(name=name).log_parameters({"a": 1})
    assert len(client.search_runs(["1"])) == 4


@pytest.mark.parametrize("how", ["deleted", "unknown", "impossible"])
def test_a_model_with_a_deleted_run_gets_a_new_one(
    how: str, client: Any, make: Make, tokenizer: Path, tmp_path: Path
) -> None:
    first = make()
    trained(first, 1, 2)
    path = tmp_path / "run" / "mlflow.json"
    kept = json.loads(path.read_text())
    if how == "deleted":
        client.delete_run(first.run_id)
    else:
        kept["run_id"] = "0" * 32 if how == "unknown" else "../../x"
        path.write_text(json.dumps(kept))
    with make() as second:
        log_model(second, tokenizer, kind="tokenizer", metrics={})
    assert second.run_id not in (first.run_id, kept["run_id"])
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert steps_of(client, second) == [1, 2]


def test_a_complete_run_is_not_changed(client: Any, make: Make, tokenizer: Path) -> None:
    first = make()
    trained(first, 1)
    before = client.get_run(first.run_id).info
    with make() as second:
        second.log_data("phantoms", "0")  # as the training commands do, whether they train or not
        log_model(second, tokenizer, kind="tokenizer", metrics={})
    after = client.get_run(first.run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)


def test_a_recreated_run_continues_at_the_newest_step(
    client: Any, make: Make, tmp_path: Path
) -> None:
    first = make(clock=lambda: 0.0)
    own = JsonlTracker(tmp_path / "run" / "metrics.jsonl")
    both = Trackers([own, first])
    both.log_parameters({})
    for step in (1, 2, 3):
        both.log_metrics({"loss": 1.0}, step)
        if step == 1:
            first._send()
    own.close()  # killed
    client.delete_run(first.run_id)
    with make() as second:
        second.catch_up()
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text())["sent"] == 3
    assert steps_of(client, second) == [1, 2, 3]


def test_a_parameter_that_changes_within_a_process_becomes_a_tag(client: Any, make: Make) -> None:
    tracker = make()
    tracker.log_parameters({"rate": 1})
    tracker.log_parameters({"rate": 2, "depth": 3, "x" * 250: 1})
    tracker.log_parameters({"x" * 250: 2})
    tracker.log_parameters({"depth": 4})
    tracker.log_parameters({"depth": 3})
    tracker.close()
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"rate": "1", "depth": "3", "x" * 250: "1"}
    assert (run.data.tags["resumed.rate"], run.data.tags["resumed.depth"]) == ("2", "3")
    assert run.data.tags[f"resumed.{'x' * 242}"] == "2"


def test_a_model_has_the_parameters_of_the_last_resumption(
    client: Any, make: Make, tokenizer: Path
) -> None:
    make().log_parameters({"rate": 1, "depth": 3})
    tracker = make()
    tracker.log_parameters({"rate": 2})
    uri = log_model(tracker, tokenizer, kind="tokenizer", metrics={})
    model = client.get_logged_model(uri.removeprefix("models:/"))
    assert model.params == {"rate": "2", "depth": "3"}


def test_failed_deliveries_create_no_duplicates(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(make(uri=NOWHERE), 1, 2)
    tracker = make()
    with monkeypatch.context() as patch:
        patch.setattr(RunClient, "metrics", lambda *_: 1 / 0)
        tracker.log_parameters({})
        tracker.log_parameters({})
    tracker.close()
    assert steps_of(client, tracker) == [1, 2]


def test_tags_are_converted_for_mlflow(client: Any, make: Make) -> None:
    for step in (1, 2):
        tracker = make(tags={"wh:y*\n": "x" * 9000, "n": 3})
        trained(tracker, step)
    tags = client.get_run(tracker.run_id).data.tags
    assert (tags["wh_y__"], tags["n"]) == ("x" * 6000, "3")
    assert steps_of(client, tracker) == [1, 2]


@pytest.mark.parametrize(
    ("name", "digest", "message"),
    [("a", "0" * 64, "digest '000"), ("a", "", "digest ''"), ("", "0", "name ''")],
)
def test_invalid_data_sets_are_refused_before_mlflow_does(
    name: str, digest: str, message: str, make: Make
) -> None:
    with pytest.raises(MedarError, match=message):
        make().log_data(name, digest)


def test_nonfinite_metrics_of_a_model_are_left_out(
    client: Any, make: Make, tokenizer: Path
) -> None:
    metrics: Any = {"a": 1.0, "b": math.inf, "c": None}
    uri = log_model(make(), tokenizer, kind="tokenizer", metrics=metrics)
    found = client.get_logged_model(uri.removeprefix("models:/")).metrics
    assert [(metric.key, metric.value) for metric in found] == [("a", 1.0)]


def test_a_model_of_another_kind_is_refused(make: Make, generator: Path, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="holds a generator, not a tokenizer"):
        log_model(make(), generator, kind="tokenizer", metrics={})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MedarError, match=r"config\.json: names no class"):
        log_model(make(), tmp_path, kind="generator", metrics={})


def test_damaged_lines_of_metrics_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [
        b'{"step": 1, "validation/psnr": 2}',
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"step": 2}',
        b'{"s',
    ]
    path.write_bytes(b"\n".join(lines))
    assert [values["step"] for values in read_metrics(path)] == [1, 2]
    assert evaluation_at(tmp_path, 1) == {"psnr": 2}

"""Finished runs, read back through MLflow's own client: data sets, system metrics, stages."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medar.errors import MedarError
from medar.tracking import MlflowTracker
from medar.tracking import tracker as tracking
from medar.tracking.data import data_set
from medar.training.tracker import JsonlTracker, Trackers

Make = Callable[..., MlflowTracker]


def test_system_metrics_go_to_mlflow_alone(client: Any, make: Make, tmp_path: Path) -> None:
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
    (one,) = client.get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")
    assert one.step == 4
    assert "system" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_what_the_machine_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.sys.modules, "psutil", None)
    for name in ("cpu", "disk", "network"):
        monkeypatch.delitem(
            tracking.sys.modules, f"mlflow.system_metrics.metrics.{name}_monitor", raising=False
        )
    looks = tracking.SystemMetrics()
    assert looks.read() == {}
    assert not [name for name in looks.read() if "gpu" not in name]


def test_torch_tells_the_memory_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_stages_are_children_that_read_data(client: Any, make: Make, tmp_path: Path) -> None:
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
    place = client.get_run(parent.run_id).info.experiment_id
    (found,) = client.search_runs([place], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert (found.info.run_name, found.info.status) == ("tokenizer", "FINISHED")
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("phantoms", "0" * 32)
    assert json.loads(given.dataset.source) == {"uri": "/data/prepared"}


def test_a_project_that_mlflow_runs_is_the_parent(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    for parent, expected in ((None, "0123"), ("4567", "4567")):
        tracker = make(parent=parent)
        tracker.log_parameters({})
        tracker.close()
        assert client.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == expected


def test_a_folder_that_holds_no_data_set_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="neither prepared cases nor tokens"):
        make().log_folder(tmp_path)
    with pytest.raises(MedarError, match="neither prepared cases nor tokens"):
        data_set(tmp_path / "nowhere")

"""MLflow as a user starts it: a restarted server, a served model, a project run."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from medar.data.phantoms import write_phantoms
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer
from medar.tracking import MlflowTracker
from medar.tracking.models import log_model
from medar.training import fit

from ..training.toy import Toy, settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0

Make = Callable[..., MlflowTracker]


@pytest.fixture
def environment(store: str) -> dict[str, str]:
    """Environment of the processes started here: this medar and its commands, loopback only."""
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": found,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # processes without use here
        "NO_PROXY": "*",
    }


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@contextmanager
def running(words: list[str], health: str, environment: dict[str, str], log: Path) -> Iterator[Any]:
    """Start a server, wait until it answers, and kill its process group at the end."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=environment, stdout=output, stderr=output, cwd=log.parent, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not answers(health):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def kill(process: Any) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_restarted_server_receives_the_rest(
    environment: dict[str, str],
    store: str,
    port: int,
    client: Any,
    generator: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, out = f"http://127.0.0.1:{port}", tmp_path / "run"
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "files")]
    seconds = count(step=10)  # so that each step is a delivery

    def tracker() -> MlflowTracker:
        return MlflowTracker(out, name="toy", uri=address, clock=lambda: float(next(seconds)))

    task = Toy()
    with running(words, f"{address}/health", environment, tmp_path / "first.log") as server:

        def die(step: int) -> None:
            if step == 12:
                kill(server)
                while answers(f"{address}/health"):  # a worker may outlive its parent for a moment
                    time.sleep(0.05)

        task.after_step = die  # type: ignore[method-assign]
        with tracker() as first:
            outcome = fit(task, settings(log_every=1), out, first)
    assert outcome.step == 30
    lines = [line for line in capsys.readouterr().err.splitlines() if "is not reached" in line]
    assert len(lines) == 1
    run = client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    before = [metric.step for metric in client.get_metric_history(first.run_id, "train/loss")]
    assert before == list(range(1, 12))
    log = tmp_path / "second.log"
    with running(words, f"{address}/health", environment, log), tracker() as second:
        fit(Toy(), settings(log_every=1), out, second)  # has finished: nothing is trained
        uri = log_model(second, generator, kind="generator", metrics={"a": 1.0}, register="tiny")
    run = client.get_run(first.run_id)
    assert (second.run_id, run.info.status) == (first.run_id, "FINISHED")
    found = [metric.step for metric in client.get_metric_history(first.run_id, "train/loss")]
    assert found == list(range(1, 31))
    (version,) = client.search_model_versions("name = 'tiny'")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (version.source, model.status) == (uri, "READY")
    kept = {path.name: path for path in (tmp_path / "files").rglob("*") if path.is_file()}
    assert {"config.yaml", "MLmodel", "pyfunc.py"} <= set(kept)
    assert not [name for name in kept if name.endswith((".pkl", ".pickle", ".pt"))]
    weights = (generator / "model.safetensors").read_bytes()
    folder = kept["MLmodel"].parent / "artifacts" / "generator"
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_served_model_returns_volumes(
    make: Make, generator: Path, environment: dict[str, str], port: int, tmp_path: Path
) -> None:
    log_model(make(), generator, kind="generator", metrics={}, register="tiny", alias="champion")
    address = f"http://127.0.0.1:{port}"
    words = ["mlflow", "models", "serve", "--model-uri", "models:/tiny@champion"]
    words += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    payload = {"dataframe_records": [{"seed": 5, "attributes": {"organ": "liver", "age": 60}}]}
    with running(words, f"{address}/ping", environment, tmp_path / "serve.log"):
        request = urllib.request.Request(
            f"{address}/invocations",
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            (row,) = json.load(answer)["predictions"]
        request.data = json.dumps({"dataframe_records": [{"seed": 5, "class": "lung"}]}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE)
        assert refused.value.code == 400
        assert "class 'lung': this model knows organ" in refused.value.read().decode()
    synthesizer = Synthesizer.from_pretrained(generator, "cpu")
    job = synthesizer.job(Request(attributes={"organ": "liver", "age": 60}))
    (image,), _ = write_samples(tmp_path / "samples", synthesizer, job, [5])
    assert base64.b64decode(row["image"]) == image.read_bytes()
    assert row["seed"] == 5


@pytest.mark.slow
def test_mlflow_runs_a_stage_of_the_project(
    environment: dict[str, str], client: Any, tmp_path: Path
) -> None:
    write_phantoms(tmp_path / "phantoms", n=4, spacing=14.0)
    out = tmp_path / "prepared"
    done = subprocess.run(
        [
            sys.executable, "-m", "mlflow", "run", str(ROOT / "mlflow"), "-e", "prepare",
            "-P", f"data={tmp_path / 'phantoms'}", "-P", f"out={out}", "--env-manager=local",
        ],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "cases.jsonl").exists()
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["out"] == str(out)


def test_the_project_has_an_entry_point_for_each_stage() -> None:
    project = yaml.safe_load((ROOT / "mlflow" / "MLproject").read_text())
    recipes = ["synthesis", "segmentation"]
    stages = ["prepare", "tokenizer", "tokens", "generator", "pretrain", "train"]
    last = ["synthesize", "evaluate"]
    assert list(project["entry_points"]) == [*recipes, *stages, *last]
    for entry in project["entry_points"].values():
        assert entry["command"].startswith("cd .. && python ")
        named = {word.split("}")[0] for word in entry["command"].split("{")[1:]}
        assert named == set(entry["parameters"])


def test_the_teams_server_is_pinned_checked_and_has_no_secret() -> None:
    text = (ROOT / "mlflow" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        assert "latest" not in service["image"]
        assert ":" in service["image"]
        assert "healthcheck" in service
        for name, value in service["environment"].items():
            if name.endswith(("PASSWORD", "KEY", "KEY_ID")):
                assert value.startswith("${")
                assert ":?" in value


def has_engine() -> bool:
    """Whether a Docker engine with compose runs here."""
    for words in (["info"], ["compose", "version"]):
        try:
            subprocess.run(["docker", *words], capture_output=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


@pytest.mark.slow
def test_the_teams_server_keeps_runs_and_files(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_engine():
        pytest.skip("no Docker engine with compose")
    import mlflow

    secrets = {"POSTGRES_PASSWORD": "abc123", "MINIO_ROOT_USER": "minio",
               "MINIO_ROOT_PASSWORD": "abcdef123"}  # fmt: skip
    compose = ["docker", "compose", "--file", str(ROOT / "mlflow" / "compose.yaml"),
               "--project-name", f"medar-test-{port}"]  # fmt: skip
    there = {**os.environ, **secrets, "MLFLOW_PORT": str(port)}
    (tmp_path / "note.txt").write_text("kept")
    try:
        subprocess.run(
            [*compose, "up", "--build", "--detach", "--wait", "mlflow"], env=there, check=True
        )
        monkeypatch.setenv("NO_PROXY", "*")
        client = mlflow.MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("first")).info.run_id
        client.log_metric(run, "loss", 0.5)
        client.log_artifact(run, str(tmp_path / "note.txt"))
        subprocess.run([*compose, "restart", "mlflow"], env=there, check=True)
        subprocess.run([*compose, "up", "--detach", "--wait", "mlflow"], env=there, check=True)
        assert client.get_run(run).data.metrics == {"loss": 0.5}
        (tmp_path / "back").mkdir()
        back = client.download_artifacts(run, "note.txt", str(tmp_path / "back"))
        assert Path(back).read_text() == "kept"
    finally:
        subprocess.run([*compose, "down", "--volumes"], env=there, check=False)

"""`medar run synthesis` on tiny data: complete, killed three times, in two processes."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from commands import ROOT, Run, run_script, runner
from forking import run_scripts

from medar.cli.main import main
from medar.data.phantoms import write_phantoms

torch.set_num_threads(1)  # the networks here are too small for two

HERE = Path(__file__).parent
NAMES = [
    "prepare", "tokenizer", "detail", "tokens", "generator", "synthesize", "evaluate", "report",
]  # fmt: skip

TRAINING = {
    "steps": 4, "ema_decay": 0.9, "evaluate_every": 2, "save_every": 1, "log_every": 1,
    "precision": "fp32", "device": "cpu",
}  # fmt: skip
TINY: dict[str, Any] = {
    "data": {"workers": 1},
    "plan": {
        "spacing": [24, 24, 24], "mode": "volume", "size": [16, 16, 16], "downsampling": [8, 8, 8],
    },
    "tokenizer": "tokenizer.yaml",
    "detail": {"model": {"widths": [4, 6]}, "data": {"batch_size": 2}, "training": TRAINING},
    "generator": {
        "model": {"depth": 1, "head_width": 8},
        "tokens": {"variants": 1},
        "data": {"batch_size": 2, "previews": 1},
        "training": TRAINING,
    },
    "samples": {"n": 4, "batch_size": 2, "previews": 1},
}  # fmt: skip
TOKENIZER: dict[str, Any] = {
    "model": {
        "width": 8, "width_multipliers": [1, 1], "grids": [[1, 1, 1], [2, 2, 2]],
        "codebook": {"kind": "fsq", "size": 16, "width": 4},
    },
    "data": {"batch_size": 2},
    "training": TRAINING,
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight coarse phantoms, and the YAML of a tiny recipe in two files."""
    folder = tmp_path_factory.mktemp("recipe")
    write_phantoms(folder / "phantoms", n=8, spacing=20.0)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(TOKENIZER))
    return folder


@pytest.fixture
def run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the recipe in this process; exit code, standard output and error."""
    return runner("synthesis", workspace, capsys)


def samples(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "samples").glob("sample_*"))}


def stage_records(out: Path, names: list[str] = NAMES) -> dict[str, dict[str, Any]]:
    return {name: json.loads((out / "stages" / f"{name}.json").read_text()) for name in names}


class Whole(NamedTuple):
    """A complete run, as it was when it ended."""

    out: Path
    answer: dict[str, Any]
    samples: dict[str, bytes]
    records: dict[str, dict[str, Any]]


TURING = "evaluation.turing=true"


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Whole:
    out, printed = workspace / "whole" / "out", io.StringIO()
    words = ("run", "synthesis", workspace / "tiny.yaml", "--data", workspace / "phantoms")
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr("medar.evaluation.generation.discriminator.STEPS", 2)
        main([*map(str, words), "--out", str(out), "--untracked", "--json", TURING])
    assert ended.value.code == 0
    return Whole(out, json.loads(printed.getvalue()), samples(out), stage_records(out))


@pytest.mark.slow
def test_from_volumes_to_a_report(
    run: Run, workspace: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medar.evaluation.generation.discriminator.STEPS", 2)
    out, answer, _, before = whole
    assert list(answer["stages"]) == NAMES
    assert answer["report"] == str(out / "report.html")
    for name in (
        "config.yaml", "environment.json", "prepared/cases.jsonl", "tokenizer/model/config.json",
        "tokenizer/evaluation/montage.png", "tokens/tokens.json", "generator/model/config.json",
        "samples/sample_0003.nii.gz", "samples/contact_sheet.png", "samples/preview.png",
        "evaluation/report.json", "evaluation/contact_sheet.png", "report.html", "report.md",
        "evaluation/turing.csv", "evaluation/readers/sheet.png", "evaluation/readers_key.csv",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    assert "Turing test" in (out / "report.md").read_text()
    facts = {name: entry["facts"] for name, entry in stage_records(out).items()}
    assert (facts["prepare"]["cases"], facts["prepare"]["voxels"]) == (8, "16x16x16")
    assert (facts["tokenizer"]["step"], facts["generator"]["step"]) == (4, 4)
    assert facts["tokens"]["tokens_per_volume"] == 9
    assert facts["evaluate"]["frechet/radiomics-v2"] > 0
    number = facts["evaluate"]["frechet_samples/radiomics-v2"]
    assert facts["tokenizer"]["frechet_samples"] == facts["detail"]["frechet_samples"] == number
    judged = json.loads((out / "tokenizer" / "evaluation" / "report.json").read_text())
    assert judged["split"] == "held-out"
    assert 0 <= facts["evaluate"]["turing_auc"] <= 1

    # The stored settings are a configuration themselves, and nothing runs a second time.
    code, _, printed = run("--out", out, "--untracked", config="whole/out/config.yaml")
    assert code == 0
    assert printed.count("skip (done, nothing has changed)") == 8
    assert stage_records(out) == before

    code, printed, _ = run("--out", out, "--dry-run", "--json", TURING, "samples.n=5")
    plan = {step["stage"]: step for step in json.loads(printed)["stages"]}
    assert [step["action"] for step in plan.values()] == [
        *["skip"] * 5, "run", "depends", "depends",
    ]  # fmt: skip
    assert plan["synthesize"]["why"] == "n was 4, now 5"
    assert plan["synthesize"]["time"].endswith("(measured before)")
    code, printed, _ = run("--out", out, "--untracked", "--json", "--until", "prepare")
    assert json.loads(printed)["report"] is None  # the page is of another call
    # A result that comes out the same changes nothing after it, except the report.
    words = ("--out", out, "--untracked", TURING, "--force", "prepare", "--force", "synthesize")
    code, _, printed = run(*words)
    assert code == 0
    kept = ("tokenizer", "detail", "tokens", "generator", "evaluate")
    assert all(f"{name}: skip (done, nothing has changed)" in printed for name in kept)
    after = stage_records(out)
    assert [name for name in NAMES if after[name]["id"] != before[name]["id"]] == [
        "prepare", "synthesize", "report",
    ]  # fmt: skip
    # How often a training logs, and how data are loaded, changes nothing.
    free = ("tokenizer.training.log_every=2", "generator.data.workers=2", "data.workers=2", TURING)
    _, printed, _ = run("--out", out, "--dry-run", "--json", *free)
    assert {step["action"] for step in json.loads(printed)["stages"]} == {"skip"}


@pytest.mark.slow
def test_kill_9_at_three_moments_changes_nothing(
    workspace: Path, whole: Whole, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace / "kills"
    folder.mkdir()
    shutil.copy(mlflow_database, folder)
    seconds = {name: record["seconds"] for name, record in whole.records.items()}
    (folder / "seconds.json").write_text(json.dumps(seconds))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = (HERE / "killed.py", workspace / "tiny.yaml", workspace / "phantoms", folder)
    (done,) = run_scripts(words, timeout=600)
    assert done.returncode == 0, done.printed
    assert json.loads((folder / "outcome.json").read_text()) == {"kills": 3, "code": 0}
    killed = folder / "killed"
    assert samples(killed) == whole.samples
    assert len(samples(killed)) == 8
    entries = stage_records(killed)
    assert {entry["status"] for entry in entries.values()} == {"done"}
    # Each kill costs one attempt at most; what was done stayed done (killed.py looks).
    assert sum(entry["attempts"] for entry in entries.values()) <= len(NAMES) + 3
    assert not (killed / "old").exists()
    client, runs = runs_in(folder / "mlflow.db")
    assert [run.info.status for run in runs] == ["FINISHED"] * 9
    parent = json.loads((killed / "mlflow.json").read_text())["run_id"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted(run.info.run_name for run in children) == sorted(NAMES)
    tokenizer = next(run for run in children if run.info.run_name == "tokenizer")
    assert tokenizer.data.params["training.steps"] == "4"
    assert tokenizer.data.metrics["psnr"] == entries["tokenizer"]["facts"]["psnr"]
    assert [dataset.dataset.name for dataset in tokenizer.inputs.dataset_inputs] == ["prepared"]
    champion = client.get_model_version_by_alias("tiny", "champion")
    generator = next(run for run in children if run.info.run_name == "generator")
    assert champion.source == entries["generator"]["facts"]["model"]
    assert champion.run_id == generator.info.run_id


def runs_in(database: Path) -> tuple[Any, list[Any]]:
    """An MLflow client of a database, and all runs in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    return client, list(
        client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    )


@pytest.mark.slow
def test_two_processes_train_together(
    workspace: Path, in_two_processes: Callable[..., list[str]]
) -> None:
    out = workspace / "two" / "out"
    call = ["run", "synthesis", workspace / "tiny.yaml", "--data", workspace / "phantoms"]
    words = ("--out", out, "--untracked", "--until", "synthesize")
    in_two_processes(ROOT / "medar" / "__main__.py", *call, *words)
    entries = stage_records(out, NAMES[:-2])
    assert {entry["status"] for entry in entries.values()} == {"done"}
    assert {entry["attempts"] for entry in entries.values()} == {1}
    for name in ("tokenizer", "generator"):
        assert yaml.safe_load((out / name / "config.yaml").read_text())["processes"] == 2
    assert len(samples(out)) == 8


@pytest.mark.slow
def test_the_script_takes_the_same_steps(workspace: Path, own_mlflow: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--config", workspace / "tiny.yaml", "--data", workspace / "phantoms", "--out", out)
    run_script("synthesis", *words)
    assert len(list((out / "samples").glob("sample_*.nii.gz"))) == 4
    _, runs = runs_in(Path(own_mlflow.removeprefix("sqlite:///")))
    assert sorted(run.info.run_name for run in runs) == ["generator", "out", "tokenizer"]
    (whole,) = [run for run in runs if run.info.run_name == "out"]
    assert {"psnr", "ssim", "frechet_radiomics-v2"} <= whole.data.metrics.keys()


def test_invalid_arguments_give_one_line(run: Run, workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, message in (
        (("--out", out, "samples.m=3"), "unknown key 'samples.m'"),
        (("--out", out, "--until", "token"), "--until token: unknown stage"),
        (("--out", out, "--data", tmp_path / "no"), "no such file or folder"),
        (("--out", out, "--data", workspace / "tiny.yaml"), "no volume found"),
        (("--out", workspace / "phantoms" / "runs"), "is inside the data set"),
        (("--out", out, "max_minutes=0"), "max_minutes must be greater than 0, got 0"),
        (("--out", out, "samples.n=1"), "samples: n must be at least 2, got 1"),
        (("--out", out, "budget_weights.report=0"), "budget_weights.report must be greater than 0"),
    ):
        code, printed, error = run(*words, "--dry-run")
        assert (code, printed) == (2, ""), words
        assert message in error
        assert error.startswith("medar: ")
        assert error.count("\n") == 1
    assert not out.exists()


def test_a_plan_that_will_be_recomputed_is_accepted(run: Run, tmp_path: Path) -> None:
    stored = {"spacing": [24, 24, 24], "mode": "volume", "size": [16, 16, 16]}
    text = yaml.safe_dump({**stored, "downsampling": [8, 8, 8], "intensity": {}, "labels": {}})
    (tmp_path / "out" / "prepared").mkdir(parents=True)
    (tmp_path / "out" / "prepared" / "plan.yaml").write_text(text)
    words = ("plan={}", "plan.downsampling=[3, 3, 3]", "--dry-run", "--json")
    code, printed, error = run("--out", tmp_path / "out", *words)
    assert (code, error) == (0, "")
    assert json.loads(printed)["stages"][1]["action"] == "run"


def test_too_few_cases_are_refused_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "two", n=2, spacing=20.0)
    words = ("--data", tmp_path / "two", "--out", tmp_path / "out", "--untracked")
    code, _, error = run(*words)
    assert code == 2
    assert "two: 1 of 2 cases in the split 'train', at least 2" in error.splitlines()[-1]
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_the_budget_is_passed_to_the_trainings(run: Run, tmp_path: Path) -> None:
    _, printed, _ = run("--out", tmp_path / "out", "--dry-run", "--json", "--max-minutes", "10")
    plan = {step["stage"]: step for step in json.loads(printed)["stages"]}
    # A tenth of a minute may have passed before the rest is divided.
    assert plan["tokenizer"]["time"] in ("3.2 min (from the budget)", "3.3 min (from the budget)")
    assert plan["generator"]["time"] in ("3.7 min (from the budget)", "3.8 min (from the budget)")
    assert plan["prepare"]["time"] == "unknown"


def test_too_few_prepared_cases_are_refused(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "four", n=4, spacing=20.0)
    words = ("--data", tmp_path / "four", "--out", tmp_path / "out", "--untracked")
    assert run(*words, "--until", "prepare")[0] == 0
    manifest = (tmp_path / "out" / "prepared" / "manifest.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in manifest[1:]]
    _, *damaged = [case for case in cases if case["split"] == "train"]
    for case in damaged:
        (tmp_path / "four" / case["images"][0]).write_bytes(b"damaged")
    code, _, error = run(*words)
    assert code == 2
    assert "prepared: 1 of" in error.splitlines()[-1]
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_volumes_without_a_modality(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", n=4, spacing=20.0)
    data = tmp_path / "data" / "imagesTr"  # plain NIfTI files, of which nothing is known
    rule = "{kind: window, low: -1000, high: 1000}"
    both = f"plan.intensity={{CT: {rule}, MR: {rule}}}"
    words = ("--data", data, "--out", tmp_path / "out", "--untracked", "--until", "prepare")
    for dry in ([], ["--dry-run"]):
        code, _, error = run(*words, both, *dry)
        assert code == 2
        assert "state the modality with --modality" in error
        assert error.count("\n") == 1
    assert run(*words, both, "--modality", "CT")[0] == 0
    # With one rule there is only one answer, which is printed.
    code, _, error = run(*words, f"plan.intensity={{CT: {rule}}}", "--force", "prepare")
    assert code == 0
    assert "volumes do not state their modality; taken as CT" in error.splitlines()[0]
    stored = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert stored["data"]["modality"] == "CT"
    code, _, error = run(*words, f"plan.intensity={{CT: {rule}}}")
    assert "prepare: skip (done, nothing has changed)" in error

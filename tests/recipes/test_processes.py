"""Several processes: what rank 0 sends to the others, and the examples for clusters."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from medar.errors import MedarError
from medar.recipes.configs import find_config
from medar.recipes.processes import RecipeProcesses
from medar.recipes.settings import SynthesisSettings, load_recipe
from medar.training import distributed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "many-gpus.md").read_text()


def fence(kind: str, mark: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return next(body for body in found if mark in body)


def test_the_slurm_script_parses(tmp_path: Path) -> None:
    script = fence("sh", "#SBATCH")
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    words = shlex.split(script.replace("\\\n", " ").splitlines()[-1])
    check_call(words[words.index("-m") :])


def check_call(words: list[str]) -> dict[str, str]:
    """Check the arguments of a `medar run` call and return its options."""
    assert words[:4] == ["-m", "medar", "run", "synthesis"]
    assert find_config(words[4], "recipes").is_file()
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert list(options) == ["--data", "--out"]
    return options


def test_the_train_job_names_existing_recipes() -> None:
    job: dict[str, Any] = yaml.safe_load(fence("yaml", "TrainJob"))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    launcher, *words = job["spec"]["trainer"]["command"]
    assert launcher == "torchrun"
    options = check_call(words)
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    pod = patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounted = pod["containers"][0]["volumeMounts"][0]
    assert mounted["name"] == pod["volumes"][0]["name"]
    assert all(path.startswith(mounted["mountPath"]) for path in options.values())


@pytest.mark.parametrize("name", ["demo", "hippocampus_mr", "headneck_ct"])
def test_every_recipe_supports_two_processes(name: str) -> None:
    settings = load_recipe(SynthesisSettings, find_config(name))
    assert settings.tokenizer.data.batch_size % 2 == 0
    assert settings.generator.data.batch_size % 2 == 0


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The messages that rank 0 sent to the other ranks."""
    sent: list[Any] = []

    def all_gather_object(value: Any) -> list[Any]:
        if value is not None:
            sent.append(value)
        return [sent[-1]]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)
    return sent


def test_all_ranks_get_the_result_of_rank_zero(messages: list[Any]) -> None:
    assert RecipeProcesses(is_rank_zero=True).run_on_rank_zero(lambda: 3) == 3
    assert RecipeProcesses(is_rank_zero=False).run_on_rank_zero(lambda: 4) == 3


@pytest.mark.parametrize(
    ("error", "code"), [(MedarError("x"), 2), (ValueError("x"), 1), (KeyboardInterrupt(), 130)]
)
def test_other_ranks_end_with_rank_zero(
    messages: list[Any], error: BaseException, code: int
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        RecipeProcesses(is_rank_zero=True).run_on_rank_zero(fail)
    with pytest.raises(SystemExit) as left:
        RecipeProcesses(is_rank_zero=False).run_on_rank_zero(fail)
    assert left.value.code == code


def test_errors_are_not_hidden_by_ended_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(_: Any) -> list[Any]:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)

    def fail() -> None:
        raise MedarError("mine")

    with pytest.raises(MedarError, match="mine"):
        RecipeProcesses(is_rank_zero=True).run_on_rank_zero(fail)

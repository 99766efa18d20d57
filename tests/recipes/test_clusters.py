"""The examples for clusters are whole: they parse, and call the recipe as it can be called."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "many-gpus.md").read_text()
OPTIONS = ["--config", "--data", "--out"]


def fence(kind: str, mark: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return next(body for body in found if mark in body)


def test_the_slurm_script_parses(tmp_path: Path) -> None:
    script = fence("sh", "#SBATCH")
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    words = shlex.split(script.replace("\\\n", " ").splitlines()[-1])
    assert (ROOT / words[words.index("--config") + 1]).is_file()
    given = words[words.index("pipelines/synthesis.py") :]
    assert [word for word in given if word.startswith("--")] == OPTIONS


def test_the_train_job_names_what_there_is() -> None:
    job: dict[str, Any] = yaml.safe_load(fence("yaml", "TrainJob"))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    launcher, script, *options = job["spec"]["trainer"]["command"]
    assert launcher == "torchrun"
    assert (ROOT / script.removeprefix("/medar/")).is_file()
    values = dict(option.split("=") for option in options)
    assert list(values) == OPTIONS
    assert (ROOT / values["--config"].removeprefix("/medar/")).is_file()
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    pod = patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounted = pod["containers"][0]["volumeMounts"][0]
    assert mounted["name"] == pod["volumes"][0]["name"]
    for path in ("--data", "--out"):
        assert values[path].startswith(mounted["mountPath"])


@pytest.mark.parametrize("name", ["demo", "hippocampus_mr", "headneck_ct"])
def test_every_recipe_divides_its_batches_among_two(name: str) -> None:
    from medar.recipes.settings import load_recipe
    from medar.recipes.synthesis import SynthesisSettings

    settings = load_recipe(SynthesisSettings, ROOT / "configs" / f"{name}.yaml")
    assert settings.tokenizer.data.batch_size % 2 == 0
    assert settings.generator.data.batch_size % 2 == 0

"""`medar tokenizer`: train a tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, Parameter

from medar.cli.options import DataSet, worker_count
from medar.cli.training import TRAINING, Overrides, Training, assignments, report
from medar.errors import MedarError

app = App(
    name="tokenizer",
    help="Train tokenizers.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

if TYPE_CHECKING:
    from medar.tokenizer.settings import TokenizerSettings

DATASET = DataSet()


@app.command
def train(
    config: Path,
    /,
    *overrides: Overrides,
    data: Path,
    out: Path,
    workers: int | None = None,
    training: Training = TRAINING,
    dataset: DataSet = DATASET,
) -> int:
    """Train a tokenizer; OUT/model is what the other commands take.

    Leaves OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. Interrupted, the same
    command goes on. Under torchrun it trains on all processes; DATA must be prepared then.

    Parameters
    ----------
    config
        YAML, such as configs/tokenizer/hippocampus_mr.yaml (docs/reference/tokenizer.md).
    overrides
        Values that replace the YAML's: training.steps=100, or --training.steps 100.
    data
        A folder that `medar data prepare` filled, or any data set, which is prepared in
        OUT/prepared by the YAML's plan.
    out
        Folder of the run.
    workers
        Processes that prepare a data set; default one a processor.
    """
    from medar.settings import load_yaml
    from medar.tokenizer.settings import TokenizerSettings
    from medar.tokenizer.training import train_tokenizer

    settings = load_yaml(TokenizerSettings, config, assignments(overrides))
    settings = settings.within(training.max_minutes)
    folder = _prepared(settings, data, out, dataset, workers)
    outcome = train_tokenizer(settings, folder, out, training.tracker(out), resume=training.resume)
    return report(out, outcome, json=training.json)


def _prepared(
    settings: "TokenizerSettings", data: Path, out: Path, dataset: DataSet, workers: int | None
) -> Path:
    """The folder of prepared cases: DATA itself, or one that is made from it now."""
    from medar.data.layout import CASES_FILE, MANIFEST_FILE
    from medar.data.manifest import Manifest
    from medar.tokenizer.training import prepared_data
    from medar.training.distributed import ranks

    if (data / CASES_FILE).exists():
        return data
    if ranks().world > 1:
        raise MedarError(
            f"{data}: is not prepared; with several processes, run `medar data prepare` first and "
            "name its folder"
        )
    stored = out / "prepared" / MANIFEST_FILE
    manifest = dataset.read(data, Manifest.load(stored) if stored.exists() else None)
    return prepared_data(manifest, settings, out / "prepared", workers=worker_count(workers))

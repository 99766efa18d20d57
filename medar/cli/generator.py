"""`medar generator`: train generators of token pyramids."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, Parameter

from medar.cli.training import TRAINING, Overrides, Training, load_config, report
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.generator.settings import GeneratorSettings

app = App(
    name="generator",
    help="Train generators.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)


@app.command
def train(
    config: Path,
    /,
    *overrides: Overrides,
    data: Path,
    out: Path,
    tokenizer: Path | None = None,
    source: Path | None = None,
    training: Training = TRAINING,
) -> int:
    """Train a generator; `medar synthesize` reads OUT/model.

    Writes OUT/model, OUT/config.yaml, OUT/metrics.jsonl, OUT/checkpoints, and OUT/samples with a
    picture of samples per evaluation. After an interruption the same command resumes. Under
    torchrun it trains on all processes; DATA must hold tokens then.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under generator/, such as
        hippocampus_mr (docs/reference/generator.md).
    overrides
        Values that replace the YAML's: training.steps=100, or --training.steps 100.
    data
        A folder of tokens that `medar tokenizer encode` filled; or, with TOKENIZER, a data set,
        prepared or not, which is encoded into OUT/tokens according to `tokens` in the YAML.
    out
        Folder of the run.
    tokenizer
        Folder of the tokenizer, or of its training run, if DATA holds no tokens yet.
    source
        With TOKENIZER and condition.map=source: a data set of source volumes, one of the same id
        for each case of DATA (docs/how-to/translate.md).
    """
    from medar.generator.settings import GeneratorSettings
    from medar.generator.training import train_generator
    from medar.report.artifacts import training_preview

    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    settings = load_config(GeneratorSettings, config, "generator", overrides)
    settings = settings.within(training.max_minutes)
    with training.tracker(out, "generator") as tracker:
        tokens = _tokens(settings, data, out, tokenizer, source)
        if tracker is not None:
            tracker.log_folder(tokens)
        preview = training_preview(tokens, out)
        outcome = train_generator(
            settings, tokens, out, tracker, resume=training.resume, preview=preview
        )
        code = training.log_model(tracker, out, "generator", outcome)
    report(out, outcome, json=training.json)
    return code


def _tokens(
    settings: "GeneratorSettings",
    data: Path,
    out: Path,
    tokenizer: Path | None,
    source: Path | None,
) -> Path:
    """The folder of tokens: DATA itself, or one encoded from it now."""
    from medar.tokenizer.encoding import encode_data_set
    from medar.tokenizer.tokens import INDEX
    from medar.training.distributed import current_ranks

    if source is not None and settings.condition.map != "source":
        raise MedarError(
            f"--source {source}: condition.map is {settings.condition.map!r}; set it to 'source'"
        )
    if (data / INDEX).exists():
        if tokenizer is not None:
            raise MedarError(
                f"--tokenizer {tokenizer}: {data} already holds tokens and their tokenizer; leave "
                "it out, or give the data set that they were encoded from"
            )
        if source is not None:
            raise MedarError(
                f"--source {source}: {data} already holds tokens; give the source to `medar "
                "tokenizer encode`, or the data set that they were encoded from"
            )
        return data
    if tokenizer is None:
        raise MedarError(
            f"{data}: holds no tokens (no {INDEX}); give the tokenizer with --tokenizer, or run "
            "`medar tokenizer encode` first"
        )
    if current_ranks().world_size > 1:
        raise MedarError(
            f"{data}: holds no tokens; with several processes, run `medar tokenizer encode` first "
            "and give its folder"
        )
    lacks = source is None and settings.tokens.degradation is None
    if settings.condition.map == "source" and lacks:
        raise MedarError(
            "condition.map is 'source', but there is no source: give a data set with --source, or "
            "set tokens.degradation"
        )
    encoding = settings.encoding()
    try:
        done = encode_data_set(data, out / "tokens", tokenizer, source=source, **encoding)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue") from None
    for case, reason in done.failed.items():
        warnings.warn(f"{case} is skipped: {reason}", stacklevel=2)
    return done.folder

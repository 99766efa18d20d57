"""`medar segmentation`: pretrain backbones, train segmentation networks."""

from pathlib import Path

from cyclopts import App, Parameter

from medar.cli.options import DataSet, worker_count
from medar.cli.training import (
    TRAINING,
    Overrides,
    Training,
    load_config,
    prepared_folder,
    report,
)
from medar.errors import MedarError

app = App(
    name="segmentation",
    help="Pretrain backbones; train segmentation networks.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

DATASET = DataSet()


@app.command
def pretrain(
    config: Path,
    /,
    *overrides: Overrides,
    data: Path,
    out: Path,
    tokenizer: str | None = None,
    workers: int | None = None,
    training: Training = TRAINING,
    dataset: DataSet = DATASET,
) -> int:
    """Pretrain a backbone without labels; `medar segmentation train --pretrained OUT` starts there.

    Leaves OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. Interrupted, the same
    command goes on. Under torchrun it trains on all processes; DATA must be prepared then.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under segmentation/, such as
        pretrain_hippocampus_mr (docs/reference/segmentation.md).
    overrides
        Values that replace the YAML's: pretext.kind=masked, or --pretext.kind masked.
    data
        A folder that `medar data prepare` filled, or any data set, which is prepared in
        OUT/prepared by the YAML's plan. Only volumes of the split train are learnt from.
    out
        Folder of the run.
    tokenizer
        Folder of a trained tokenizer, or of the run that left it, which every pretext.kind but
        "masked" needs; default the YAML's.
    workers
        Processes that prepare a data set; default: one per CPU core.
    """
    from medar.segmentation.pretext.settings import PretrainSettings
    from medar.segmentation.pretext.training import pretrain_backbone

    settings = load_config(PretrainSettings, config, "segmentation", overrides)
    settings = settings.within(training.max_minutes).with_tokenizer(tokenizer)
    if training.register is not None:
        raise MedarError(
            f"--register {training.register}: a backbone answers nothing by itself; register the "
            "segmentation network that starts from it"
        )
    if tokenizer is not None and not settings.pretext.needs_tokenizer:
        raise MedarError(
            f"--tokenizer {tokenizer}: pretext.kind {settings.pretext.kind} needs none; leave "
            "it out, or choose another kind"
        )
    with training.tracker(out, "backbone") as tracker:
        folder = prepared_folder(settings.plan, data, out, dataset, workers)
        if tracker is not None:
            tracker.log_folder(folder)
        outcome = pretrain_backbone(settings, folder, out, tracker, resume=training.resume)
    report(out, outcome, json=training.json)
    return 0


@app.command
def train(
    config: Path,
    /,
    *overrides: Overrides,
    data: Path,
    out: Path,
    pretrained: str = "none",
    labels: str | None = None,
    workers: int | None = None,
    training: Training = TRAINING,
    dataset: DataSet = DATASET,
) -> int:
    """Train a segmentation network; OUT/model is what `medar segment` takes.

    Leaves OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. Interrupted, the same
    command goes on. Under torchrun it trains on all processes; DATA must be prepared then.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under segmentation/, such as
        hippocampus_mr (docs/reference/segmentation.md).
    overrides
        Values that replace the YAML's: training.steps=100, or --training.steps 100.
    data
        A folder that `medar data prepare` filled, or any data set with labels, which is prepared
        in OUT/prepared by the YAML's plan.
    out
        Folder of the run.
    pretrained
        "none", or a folder to start from: a segmentation network or a pretrained backbone of the
        same settings, or the run that left it.
    labels
        Share of the training subjects whose labels are used, such as 10%; default the YAML's. A
        smaller share is a part of a larger one.
    workers
        Processes that prepare data sets; default: one per CPU core.
    """
    from medar.segmentation.settings import SegmentationSettings, parse_fraction
    from medar.segmentation.training import train_segmenter

    share = None if labels is None else parse_fraction(labels)
    settings = load_config(SegmentationSettings, config, "segmentation", overrides)
    settings = settings.within(training.max_minutes).with_label_fraction(share)
    with training.tracker(out, "segmenter") as tracker:
        folder = prepared_folder(settings.plan, data, out, dataset, workers)
        if tracker is not None:
            tracker.log_folder(folder)
        outcome = train_segmenter(
            settings,
            folder,
            out,
            tracker,
            pretrained=None if pretrained == "none" else pretrained,
            resume=training.resume,
            workers=None if workers is None else worker_count(workers),
        )
        code = training.log_model(tracker, out, "segmenter", outcome)
    report(out, outcome, json=training.json)
    return code

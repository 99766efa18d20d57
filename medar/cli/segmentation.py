"""`medar segmentation pretrain` and `train`, and `medar segment`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from medar.cli.options import THIS_MACHINE, Cluster, DataSet, Reading, worker_count
from medar.cli.output import note, print_json
from medar.cli.training import (
    TRAINING,
    Overrides,
    Training,
    load_config,
    prepared_folder,
    report,
)
from medar.devices import InferencePrecision
from medar.errors import MedarError

app = App(
    name="segmentation",
    help="Pretrain backbones; train segmentation networks.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

DATASET = DataSet()
READING = Reading()


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
    """Pretrain a backbone without labels, for `medar segmentation train --pretrained OUT`.

    Writes OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. The same command
    resumes an interrupted run. Under torchrun it trains on all processes; DATA must then be
    prepared.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under segmentation/, such as
        pretrain_hippocampus_mr (docs/reference/segmentation.md).
    overrides
        Values that override the YAML: pretext.kind=masked, or --pretext.kind masked.
    data
        A prepared data set, or any data set, which is then prepared in OUT/prepared with the
        YAML's plan. Volumes of the split train are used for training.
    out
        Folder of the run.
    tokenizer
        Folder of a trained tokenizer or of its run, which every pretext.kind except "masked" needs;
        default: the YAML's.
    workers
        Processes that prepare a data set; default: one per CPU core.
    """
    from medar.segmentation.pretext.settings import PretrainSettings
    from medar.segmentation.pretext.training import pretrain_backbone

    settings = load_config(PretrainSettings, config, "segmentation", overrides)
    settings = settings.within(training.max_minutes).with_tokenizer(tokenizer)
    if training.register is not None:
        raise MedarError(
            f"--register {training.register}: a backbone cannot be served by itself; register the "
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
    """Train a segmentation network for `medar segment`.

    Writes OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. The same command
    resumes an interrupted run. Under torchrun it trains on all processes; DATA must then be
    prepared.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under segmentation/, such as
        hippocampus_mr (docs/reference/segmentation.md).
    overrides
        Values that override the YAML: training.steps=100, or --training.steps 100.
    data
        A prepared data set, or any data set with labels, which is then prepared in OUT/prepared
        with the YAML's plan.
    out
        Folder of the run.
    pretrained
        "none", or a folder to start from: a segmentation network or a pretrained backbone with the
        same settings, or its run.
    labels
        Fraction of the training subjects whose labels are used, such as 10%; default: the YAML's.
        The subjects of a smaller fraction are among those of a larger one.
    workers
        Processes that prepare data sets; default: one per CPU core.
    """
    from medar.segmentation.settings import SegmentationSettings, parse_fraction
    from medar.segmentation.training import train_segmenter

    fraction = None if labels is None else parse_fraction(labels)
    settings = load_config(SegmentationSettings, config, "segmentation", overrides)
    settings = settings.within(training.max_minutes).with_label_fraction(fraction)
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


def segment(
    *paths: Annotated[Path, Parameter(name="MODEL... IN OUT")],
    mirrors: str | None = None,
    overlap: float = 0.5,
    format: Literal["nii.gz", "nii", "nrrd", "mha", "seg"] | None = None,
    probabilities: bool = False,
    modality: Literal["CT", "MR"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: InferencePrecision = "auto",
    json: bool = False,
    cluster: Cluster = THIS_MACHINE,
    reading: Reading = READING,
) -> int:
    """Segment volumes; the description is in `medar.cli.main`.

    Parameters
    ----------
    paths
        MODEL: folder of a segmentation network or of its run, or a name of `medar models`; the
        probabilities of several are averaged. IN: a volume file, the folder of a DICOM series, or
        a folder of these at any depth; several channels as x_0000, x_0001, ... as in nnU-Net, or
        as one 4D file. OUT: the label map, .nii.gz, .nii, .nrrd, .mha or, of a DICOM series, .dcm
        (DICOM SEG); for a folder of volumes, a folder.
    mirrors
        Axes whose mirror images are averaged over: "none", or some of xyz; default: those of
        training.
    overlap
        Fraction of a window that overlaps with its neighbour.
    format
        Format of the label maps in a folder; default: nii.gz; "seg": DICOM SEG, .dcm. A
        file's ending states its own.
    probabilities
        Write the probabilities of all classes too, background first: x_probabilities.nii.gz beside
        x.nii.gz.
    modality
        Modality of the volumes, if the files do not state it and the plan has rules for several.
    device
        "auto": CUDA if available.
    precision
        What the networks compute in; "auto": bf16 where the device has instructions for it, else
        fp32.
    json
        Print one JSON object: out, labels (files written), failed (reasons by path).
    """
    from medar.segmentation.files import segment_files
    from medar.segmentation.segmenter import Segmenter
    from medar.segmentation.sliding_window import PredictionSettings
    from medar.segmentation.targets import check_output

    settings = PredictionSettings.from_options(mirrors, overlap, precision)
    if len(paths) < 3:
        arguments = " ".join(map(str, paths)) or "nothing"
        raise MedarError(
            f"medar segment: got {arguments}; give one or more networks, the input and the output: "
            "MODEL... IN OUT"
        )
    *models, volume, out = paths
    check_output(volume, out, format)
    networks = [Segmenter.from_pretrained(model, device) for model in models]
    written: list[Path] = []
    failed: dict[str, str] = {}
    with cluster.use(volume, *models, out=out):
        for source, result in segment_files(
            networks,
            volume,
            out,
            settings,
            options=reading.options(),
            modality=modality,
            probabilities=probabilities,
            format=format,
        ):
            if isinstance(result, MedarError):
                failed[source] = str(result)
                note(f"{source}: not segmented: {result}")
                continue
            written.append(result)
            if not json:
                print(f"{result}: labels of {source}")
    if json:
        print_json({"out": out, "labels": written, "failed": failed})
    return 1 if failed else 0

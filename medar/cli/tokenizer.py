"""`medar tokenizer`: train a tokenizer; encode and decode volumes."""

from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter

from medar.cli.options import THIS_MACHINE, Cluster, DataSet, Reading, parse_detail
from medar.cli.output import note, print_json, print_table
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
from medar.words import format_count

app = App(
    name="tokenizer",
    help="Train tokenizers; encode volumes as tokens and decode them.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

READING = Reading()
DATASET = DataSet()

Device = Literal["auto", "cpu", "cuda"]


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
    """Train a tokenizer; OUT/model is the input of the other commands.

    Writes OUT/model, OUT/config.yaml, OUT/metrics.jsonl and OUT/checkpoints. After an interruption,
    the same command resumes. Under torchrun all processes train; DATA must be prepared then.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under tokenizer/, such as
        hippocampus_mr (docs/reference/tokenizer.md).
    overrides
        Values that replace the YAML's: training.steps=100, or --training.steps 100.
    data
        A folder that `medar data prepare` filled, or any data set, which is then prepared into
        OUT/prepared by the YAML's plan.
    out
        Folder of the run.
    workers
        Processes that prepare a data set; default: one per CPU core.
    """
    from medar.tokenizer.settings import TokenizerSettings
    from medar.tokenizer.training import train_tokenizer

    settings = load_config(TokenizerSettings, config, "tokenizer", overrides)
    settings = settings.within(training.max_minutes)
    with training.tracker(out, "tokenizer") as tracker:
        folder = prepared_folder(settings.plan, data, out, dataset, workers)
        if tracker is not None:
            tracker.log_folder(folder)
        outcome = train_tokenizer(settings, folder, out, tracker, resume=training.resume)
        code = training.log_model(tracker, out, "tokenizer", outcome)
    report(out, outcome, json=training.json)
    return code


@app.command
def detail(
    config: Path,
    /,
    *overrides: Overrides,
    tokenizer: Path,
    data: Path,
    out: Path,
    training: Training = TRAINING,
) -> int:
    """Train a detail decoder for a tokenizer; OUT/model is the tokenizer with it.

    Codes stay what they are: tokens and generators made with the tokenizer remain valid. After an
    interruption, the same command resumes.

    Parameters
    ----------
    config
        A YAML file, or a name that `medar configs` lists under detail/, such as hippocampus_mr
        (docs/reference/tokenizer.md).
    overrides
        Values that replace the YAML's: training.steps=100, or --training.steps 100.
    tokenizer
        Folder of the tokenizer, or of its training run.
    data
        A folder that `medar data prepare` filled by the tokenizer's plan.
    out
        Folder of the run.
    """
    from medar.tokenizer.detail_training import train_detail
    from medar.tokenizer.settings import DetailSettings

    settings = load_config(DetailSettings, config, "detail", overrides)
    settings = settings.within(training.max_minutes)
    with training.tracker(out, "detail") as tracker:
        if tracker is not None:
            tracker.log_folder(data)
        outcome = train_detail(settings, tokenizer, data, out, tracker, resume=training.resume)
        code = training.log_model(tracker, out, "tokenizer", outcome)
    report(out, outcome, json=training.json)
    return code


@app.command
def encode(
    data: Path,
    out: Path,
    /,
    *,
    model: Path,
    split: Literal["train", "val", "test"] | None = None,
    variants: int = 0,
    augmentation: Path | None = None,
    maps: bool = False,
    source: Path | None = None,
    degradation: Path | None = None,
    seed: int = 0,
    batch_size: int = 8,
    workers: int = 0,
    device: Device = "auto",
    json: bool = False,
    cluster: Cluster = THIS_MACHINE,
) -> int:
    """Encode every case of a data set into a folder of tokens.

    A second run does nothing, a run with changed settings encodes everything again, and after an
    interruption the same command resumes. The exit code is 1 if cases could not be prepared.

    Parameters
    ----------
    data
        A folder that `medar data prepare` filled by the model's plan, or a data set, which is then
        prepared into OUT/prepared.
    out
        Folder to fill (docs/reference/tokens.md).
    model
        Folder of the tokenizer, or of its training run; or a name of `medar models`. It is copied
        into OUT.
    split
        Encode the cases of one split only.
    variants
        Augmented variants of each case, in addition to the volume itself.
    augmentation
        YAML with the keys of `Augmentation`; default: its default values.
    maps
        Store the label maps too, for generators that are conditioned on them.
    source
        A data set of source volumes, for generators that translate them: for each case of DATA one
        of the same id, registered to it (docs/how-to/translate.md).
    degradation
        YAML with the keys of `Degradation`: the source of each volume is that volume, degraded.
    seed
        Seed of the variants.
    batch_size
        Volumes of a case per pass through the network.
    workers
        Loading processes; 0 loads in this one.
    device
        "auto": CUDA if available.
    json
        Print one JSON object: folder, made, kept, failed.
    """
    from medar.data.augmentation import Augmentation
    from medar.data.source import Degradation
    from medar.settings import load_yaml
    from medar.tokenizer.encoding import encode_data_set
    from medar.tokenizer.tokens import TokenIndex

    if augmentation is not None and not variants:
        raise MedarError("--augmentation needs --variants, the number of variants")
    if workers and cluster.address is not None:
        raise MedarError(f"--workers {workers}: a cluster has its own workers; omit it")
    settings = load_yaml(Augmentation, augmentation) if augmentation is not None else None
    low = load_yaml(Degradation, degradation) if degradation is not None else None
    try:
        with cluster.use(data, model, out=out):
            done = encode_data_set(
                data,
                out,
                model,
                device=device,
                split=split,
                variants=variants,
                augmentation=settings,
                maps=maps,
                source=source,
                degradation=low,
                seed=seed,
                batch_size=batch_size,
                workers=workers,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue") from None
    about = TokenIndex.load(out).source
    if about is not None:
        note(f"sources: {about}")
    if json:
        print_json(vars(done))
        return 1 if done.failed else 0
    if done.failed:
        rows = ((case, "skipped", reason) for case, reason in done.failed.items())
        print_table(("case", "", "message"), rows)
    made = format_count(done.made, "case")
    print(f"{out}: {made} encoded, {done.kept} kept, {len(done.failed)} skipped")
    return 1 if done.failed else 0


@app.command
def decode(
    pyramid: Path,
    out: Path,
    /,
    *,
    model: Path | None = None,
    upto: int | None = None,
    variant: int = 0,
    grid: Literal["prepared", "source"] | None = None,
    labels: Path | None = None,
    modality: Literal["CT", "MR"] | None = None,
    detail: str = "auto",
    seed: int = 0,
    device: Device = "auto",
    precision: InferencePrecision = "auto",
) -> None:
    """Decode a token pyramid into a volume.

    Parameters
    ----------
    pyramid
        A file in the folder `cases` that `encode` wrote, or any token pyramid, with MODEL.
    out
        Output volume, .nii, .nii.gz, .nrrd or .mha.
    model
        Folder of the tokenizer; default: the one beside the tokens.
    upto
        Use the coarsest UPTO scales only.
    variant
        Which variant, if the file holds several; 0 is the volume without augmentation.
    grid
        "source": grid and orientation of the case's own file, the default if they are known;
        "prepared": those of the plan.
    labels
        Write the label map too, for tokenizers with a label head.
    modality
        Modality whose intensities are restored, if the tokens do not state it and the plan has
        several.
    detail
        Steps of the detail decoder; "none": without it; "auto": its own number of steps, or none
        if the tokenizer has no detail decoder.
    seed
        Seed of the detail.
    device
        "auto": CUDA if available.
    precision
        What decoder and detail decoder compute in; "auto": bf16 where the device has instructions
        for it, else fp32.
    """
    from medar.tokenizer.decoding import decode_file

    _check_outputs(out, labels)
    decoded = decode_file(
        pyramid,
        model=model,
        upto=upto,
        variant=variant,
        grid=grid,
        modality=modality,
        detail=parse_detail(detail),
        seed=seed,
        device=device,
        precision=precision,
    )
    _write(out, decoded.image, labels, decoded.label, source=decoded.grid == "source")
    note(*decoded.notes)
    whose = "its own" if decoded.grid == "source" else "the plan's"
    print(f"{out}: {_sides(decoded.image)} voxels on {whose} grid")


@app.command
def reconstruct(
    model: Path,
    volume: Path,
    out: Path,
    /,
    *,
    upto: int | None = None,
    labels: Path | None = None,
    modality: Literal["CT", "MR"] | None = None,
    detail: str = "auto",
    seed: int = 0,
    device: Device = "auto",
    precision: InferencePrecision = "auto",
    json: bool = False,
    reading: Reading = READING,
) -> None:
    """Encode a volume and decode it onto its own grid and intensities.

    Parameters
    ----------
    model
        Folder of the tokenizer, or of its training run; or a name of `medar models`.
    volume
        A volume file or DICOM folder.
    out
        Output volume, .nii, .nii.gz, .nrrd or .mha.
    upto
        Use the coarsest UPTO scales only.
    labels
        Write the label map too, for tokenizers with a label head.
    modality
        Modality of the volume, if its file does not state it and the plan has several.
    detail
        Steps of the detail decoder, for a realistic volume; "none": without it, closest to the
        original in every voxel; "auto": its own number of steps, or none if the tokenizer has no
        detail decoder.
    seed
        Seed of the detail.
    device
        "auto": CUDA if available.
    precision
        What decoder and detail decoder compute in; "auto": bf16 where the device has instructions
        for it, else fp32. The encoder computes in fp32.
    json
        Print one JSON object: `out`, `labels`, `psnr` (dB within the plan's field of view; null
        if nothing differs), `outside` (fraction of voxels outside that field of view).
    """
    from math import isfinite

    from medar.data.reading import read_for_plan
    from medar.tokenizer.tokenizer import Tokenizer

    _check_outputs(out, labels)
    steps = parse_detail(detail)
    tokenizer = Tokenizer.from_pretrained(model, device)
    plan = tokenizer.require_plan()
    original = read_for_plan(plan, volume, reading.options(), modality)
    made = tokenizer.reconstruct(original, upto, detail=steps, seed=seed, precision=precision)
    _write(out, made.image, labels, made.label, source=True)
    if json:
        psnr = made.psnr if isfinite(made.psnr) else None
        print_json({"out": out, "labels": labels, "psnr": psnr, "outside": made.outside})
        return
    message = f"{out}: PSNR {made.psnr:.2f} dB"
    if made.outside:
        message += (
            f" within the model's field of view; the {made.outside:.1%} of voxels outside it have "
            "the lowest intensity"
        )
    print(message)


def _check_outputs(out: Path, labels: Path | None) -> None:
    """Check the names of the outputs before any work is done."""
    from medar.volume import check_written_ending

    check_written_ending(out, labels)
    if labels is not None and labels.resolve() == out.resolve():
        raise MedarError(f"{labels}: image and label map need separate files")


def _write(out: Path, image: Any, labels: Path | None, label: Any, source: bool) -> None:
    """Write image and label map; neither if a label map is requested and there is none."""
    from medar.volume import write_volume
    from medar.volume.marks import RECONSTRUCTED

    if labels is not None and label is None:
        raise MedarError(f"--labels {labels}: this tokenizer has no label head; omit --labels")
    grid: Literal["own", "source"] = "source" if source else "own"
    write_volume(out, image, grid=grid, description=RECONSTRUCTED)
    if labels is not None:
        write_volume(labels, label, grid=grid, description=RECONSTRUCTED)


def _sides(volume: Any) -> str:
    return "x".join(map(str, volume.shape))

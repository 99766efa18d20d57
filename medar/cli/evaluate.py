"""`medar evaluate`: how good trained models are; `tokenizer` and `segmentation` here."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App, Parameter

from medar.cli.evaluate_generator import conditions, editing, generation
from medar.cli.evaluate_panel import measure_panel, print_panel
from medar.cli.evaluate_turing import readers
from medar.cli.options import THIS_MACHINE, Cluster, DataSet, Reading, parse_detail, worker_count
from medar.cli.output import (
    check_folder,
    decimal,
    interval,
    largest,
    note,
    periods,
    print_json,
    print_pairs,
    print_table,
    thirds,
)
from medar.devices import DeviceName
from medar.errors import MedarError
from medar.words import format_count

if TYPE_CHECKING:
    from medar.data.resolve import PreparedFolder
    from medar.evaluation.reconstruction import ReconstructionReport
    from medar.evaluation.segmentation.predictors import Predictor
    from medar.evaluation.segmentation.report import Comparison, ModelReport, SegmentationReport
    from medar.tokenizer.tokenizer import Tokenizer

app = App(
    name="evaluate",
    help="Evaluate trained models, generated volumes and label maps.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

app.command(generation)
app.command(readers)
app.command(editing)
app.command(conditions)

DATASET = DataSet()
READING = Reading()


@app.command
def tokenizer(
    model: Path,
    data: Path,
    /,
    *,
    split: Literal["train", "val", "test", "held-out"] = "test",
    panel: bool = False,
    segmenter: Path | None = None,
    contrast: list[float] | None = None,
    json: bool = False,
    out: Path | None = None,
    limit: int | None = None,
    frechet_samples: int | None = None,
    batch: int = 4,
    detail: str = "auto",
    device: DeviceName = "auto",
    prepared: Path | None = None,
    workers: int | None = None,
    cluster: Cluster = THIS_MACHINE,
    dataset: DataSet = DATASET,
) -> int:
    """Reconstruct the cases of a split and measure the loss of quality, by prefix of scales.

    Exit code 1 if some cases of a data set could not be prepared: the report covers the others.

    Parameters
    ----------
    model
        Folder of a trained tokenizer, or of its training run; or a name of `medar models`.
    data
        A folder that `medar data prepare` filled with the model's plan, or a data set, which is
        prepared with it first.
    split
        The cases to reconstruct; held-out: all but the train split.
    panel
        Measure instead what is lost of medical detail: intensities and borders of organs, and the
        contrast of inserted lesions and thin structures by size.
    segmenter
        With --panel: folder of a segmentation network for the labels of DATA; its Dice on
        reconstructions is compared with that on originals.
    contrast
        With --panel: contrast of the inserted structures in HU, or as a fraction of the intensity
        window where it differs between volumes; negative: darker. May be repeated; default: -200,
        -50, 50 and 200 HU, or -0.3, -0.1, 0.1 and 0.3 of the window.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    out
        Folder for report.json and montage.png; with --panel for panel.json, report.html,
        report.md, organs.csv and structures.csv.
    limit
        Maximum number of cases to reconstruct, evenly spaced over the split.
    frechet_samples
        Maximum number of volumes behind the Frechet distance and its floor, to compare it with a
        distance of as many; default: all.
    batch
        Volumes per batch.
    detail
        Steps of the detail decoder, for Frechet distance, power ratio and grid artifact; PSNR, SSIM
        and errors are measured without it. With --panel, both decoders are measured. "none":
        nowhere; "auto": its own number of steps, or none if the tokenizer has no detail decoder.
    device
        "auto": CUDA if available.
    prepared
        Folder for the prepared data set; default: a temporary one.
    workers
        Processes that prepare a data set; default: one per CPU core.
    """
    from medar.evaluation.reconstruction import evaluate_tokenizer
    from medar.report.artifacts import write_reconstruction
    from medar.tokenizer.tokenizer import Tokenizer

    check_folder(out)
    if not panel and (segmenter is not None or contrast is not None):
        raise MedarError("--segmenter and --contrast need --panel")
    if panel and split == "held-out":
        raise MedarError("--panel: split must be train, val or test, got held-out")
    if panel and frechet_samples is not None:
        raise MedarError("--frechet-samples: the panel has no Frechet distance; omit it")
    trained = Tokenizer.from_pretrained(model, device)
    count = worker_count(workers, cluster)
    if cluster.address is not None and prepared is None:
        raise MedarError(
            f"--cluster {cluster.address}: prepares DATA; name a folder for it with --prepared"
        )
    with (
        cluster.use(data, out=prepared),
        _prepared(trained, data, prepared, count, dataset, panel) as cases,
    ):
        if panel and split != "held-out":
            measured = measure_panel(
                trained,
                cases.folder,
                split,
                detail=parse_detail(detail),
                segmenter=segmenter,
                contrasts=contrast,
                out=out,
                limit=limit,
                batch=batch,
                device=device,
            )
        else:
            report = evaluate_tokenizer(
                trained,
                cases.folder,
                split,
                limit=limit,
                batch_size=batch,
                detail=parse_detail(detail),
                frechet_samples=frechet_samples,
            )
            if out is not None:
                write_reconstruction(report, trained, cases.folder, out)
    if prepared is None and cases.folder != data:
        note(f"{data} was prepared into a temporary folder; --prepared keeps it")
    note(*(f"{case} was set aside: {reason}" for case, reason in cases.failed.items()))
    if json:
        print_json((measured if panel else report).to_dict())
    elif panel:
        print_panel(measured, str(model))
    else:
        _print_reconstruction(report, str(model))
    return 1 if cases.failed else 0


@app.command
def segmentation(
    *folders: Path,
    predictions: list[Path] | None = None,
    split: Literal["train", "val", "test"] = "test",
    json: bool = False,
    out: Path | None = None,
    tolerance: float | None = None,
    limit: int | None = None,
    mirrors: str | None = None,
    overlap: float = 0.5,
    device: DeviceName = "auto",
    cluster: Cluster = THIS_MACHINE,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Compare label maps with the truth: Dice, HD95, NSD, volumes, calibration.

    Parameters
    ----------
    folders
        MODEL [MODEL2 ...] DATA. Models are folders of segmentation networks, or of their training
        runs; further ones are compared with the first. DATA, the last, is a data set with labels,
        or a folder that `medar data prepare` filled.
    predictions
        Folder of finished label maps from any source, one file CASE.nii.gz per case; compared
        after the models, or alone. May be repeated.
    split
        The split to evaluate.
    json
        Print the report as one JSON object (docs/reference/segmentation-evaluation.md).
    out
        Folder for report.html, report.md, report.json and cases.csv.
    tolerance
        Tolerance of the NSD in mm; default: the largest side of the cases' median voxel.
    limit
        Maximum number of cases, evenly spaced over the split.
    mirrors
        As in `medar segment`: "none", or some of xyz; default those that a network was trained
        with.
    overlap
        Fraction of a window that overlaps its neighbour.
    device
        "auto": CUDA if available.
    """
    from medar.evaluation.segmentation import evaluate_segmentation
    from medar.evaluation.segmentation.predictors import FilesPredictor, NetworkPredictor
    from medar.evaluation.segmentation.worst import WorstCases
    from medar.report.artifacts import write_segmentation
    from medar.segmentation.segmenter import Segmenter
    from medar.segmentation.sliding_window import PredictionSettings

    if not folders:
        raise MedarError("DATA is missing: medar evaluate segmentation MODEL [MODEL2 ...] DATA")
    check_folder(out)
    *models, data = folders
    settings = PredictionSettings.from_options(mirrors, overlap)
    source = data if _is_prepared(data, dataset) else dataset.read(data)
    predictors: list[Predictor] = [
        NetworkPredictor(Segmenter.from_pretrained(model, device), str(model), settings)
        for model in models
    ]
    predictors += [FilesPredictor(folder) for folder in predictions or []]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fail before the evaluation, not after it
    worst = WorstCases()
    with cluster.use(*folders, *(predictions or ())):
        report = evaluate_segmentation(
            predictors,
            source,
            split,
            tolerance=tolerance,
            limit=limit,
            worst=worst,
            options=reading.options(),
        )
    if out is not None:
        write_segmentation(report, worst, out)
    if json:
        print_json(report.to_dict())
    else:
        _print_segmentation(report)
    return 0


@contextlib.contextmanager
def _prepared(
    trained: "Tokenizer",
    data: Path,
    folder: Path | None,
    workers: int,
    dataset: DataSet,
    labels: bool,
) -> "Iterator[PreparedFolder]":
    """The cases as the model's plan prepares them, in `folder` or a temporary one.

    Label maps are prepared if `labels`, or if the model has a label head.
    """
    from medar.data.resolve import prepare_for_model

    ready = _is_prepared(data, dataset)
    if ready and folder is not None:
        raise MedarError(f"{data} is prepared already: leave out --prepared")
    with contextlib.ExitStack() as stack:
        target = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medar-")))
        yield prepare_for_model(
            data,
            trained.require_plan(),
            target,
            labels=trained.config.network.labels > 0 or (labels and not ready),
            workers=workers,
            read=dataset.read,
        )


def _is_prepared(data: Path, dataset: DataSet) -> bool:
    """Whether DATA is a prepared folder, to which the options of data sets do not apply.

    Raises:
        MedarError: it is a prepared folder, and such options were passed.
    """
    from medar.data.resolve import is_prepared

    prepared = is_prepared(data)
    if prepared and dataset != DATASET:
        raise MedarError(
            f"{data} is prepared already: leave out --attributes, --modality, "
            "--keep-attributes and --seed, which are for data sets"
        )
    return prepared


def _print_reconstruction(report: "ReconstructionReport", model: str) -> None:
    from medar.evaluation.reconstruction.realism import FrechetProtocol

    percent = report.mae_unit.startswith("fraction")
    mae = f"{report.mae:.2%}" if percent else f"{report.mae:.3g}"
    dice = {f"Dice {name}": decimal(value, ".4g") for name, value in (report.dice or {}).items()}
    print_pairs(
        f"{model}: {format_count(report.cases, 'case')} of the split {report.split}",
        {
            "PSNR": f"{report.psnr:.2f} dB",
            "SSIM": decimal(report.ssim, ".4g"),
            "mean absolute error": f"{mae} {report.mae_unit.removeprefix('fraction ')}",
            "high-frequency error": decimal(report.high_frequency_error, ".4g"),
            "power ratio": thirds(report.power_ratio_thirds),
            "grid artifact": f"{periods(report.grid_artifacts)}; 1 for real volumes",
            "Frechet distance": f"{decimal(report.frechet, '.4g')} "
            f"({interval(report.frechet_interval)}), floor "
            f"{decimal(report.frechet_floor, '.4g')}, N = {report.frechet_samples or '-'}",
            "largest contributions": largest(report.frechet_contributions),
            "codebook usage": f"{report.codebook_usage:.1%}",
            "bits per voxel": f"{report.bits_per_voxel:.4g}, compression "
            f"{report.compression:.0f} times",
            **dice,
        },
    )
    prefixes = zip(
        report.psnr_per_scale,
        report.ssim_per_scale,
        report.mae_per_scale,
        report.high_frequency_error_per_scale,
        report.power_ratio_per_scale,
        strict=True,
    )
    print_table(
        ("scales", "PSNR", "SSIM", "error", "high-frequency error", "power ratio"),
        (
            (k, f"{psnr:.2f}", f"{ssim:.3f}", f"{error:.3g}", f"{high:.3f}", f"{ratio:.3f}")
            for k, (psnr, ssim, error, high, ratio) in enumerate(prefixes, 1)
        ),
    )
    scales = zip(
        report.scales,
        report.tokens_per_scale,
        report.usage_per_scale,
        report.perplexity_per_scale,
        report.residual_energy_per_scale,
        strict=True,
    )
    print_table(
        ("scale", "grid", "tokens", "usage", "perplexity", "residual energy"),
        (
            (k, grid, tokens, f"{usage:.1%}", f"{perplexity:.0f}", f"{residual:.3f}")
            for k, (grid, tokens, usage, perplexity, residual) in enumerate(scales)
        ),
    )
    for line in (*report.warnings, *report.notes):
        print(f"note: {line}")
    if report.protocol["frechet"] is not None:
        print(f"Frechet distance: {FrechetProtocol(**report.protocol['frechet'])}")
    print(f"protocol {report.protocol['name']}: docs/reference/evaluation.md")


def _print_segmentation(report: "SegmentationReport") -> None:
    print(
        f"{format_count(report.cases, 'case')} of {format_count(report.subjects, 'subject')}, "
        f"split {report.split}; NSD at {report.tolerance:g} mm"
    )
    for model in report.models:
        _print_model(model)
    for one in report.comparisons:
        _print_comparison(one)
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}: docs/reference/segmentation-evaluation.md")


def _print_model(model: "ModelReport") -> None:
    rows = {
        "Dice": f"{decimal(model.dice_mean, '.3f')} ({interval(model.dice_interval, '.3f')})",
        "HD95": f"{decimal(model.hd95_mean, '.3f')} mm ({interval(model.hd95_interval, '.3f')})",
        "NSD": f"{decimal(model.nsd_mean, '.3f')} ({interval(model.nsd_interval, '.3f')})",
    }
    if model.calibration is not None:
        rows["calibration error"] = decimal(model.calibration.error, ".3f")
    print_pairs(model.name, rows)
    print_table(
        ("label", "Dice", "95 %", "HD95", "NSD", "cases", "missed", "false positive", "bias in ml"),
        (
            (
                name,
                decimal(one.dice, ".3f"),
                interval(one.dice_interval, ".3f"),
                decimal(one.hd95, ".3f"),
                decimal(one.nsd, ".3f"),
                one.cases,
                one.missed,
                one.false_positive,
                "-" if one.volume is None else f"{one.volume.bias:.3g}",
            )
            for name, one in model.labels.items()
        ),
    )


def _print_comparison(comparison: "Comparison") -> None:
    print(f"{comparison.second} less {comparison.first}")
    print_table(
        ("metric", "difference", "95 %", "p", "effect", "subjects"),
        (
            (
                metric,
                f"{paired.difference:.4f}",
                interval(paired.interval, ".4f"),
                f"{paired.p:.2g}",
                f"{paired.effect:.2f}",
                paired.subjects,
            )
            for metric, paired in comparison.overall.items()
            if paired is not None
        ),
    )

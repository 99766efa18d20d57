"""`medar evaluate`: how good a trained model is."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App, Parameter

from medar.cli.editing import conditions, editing
from medar.cli.generation import generation
from medar.cli.judging import segmentation
from medar.cli.options import DataSet, worker_count
from medar.cli.output import print_json, print_pairs, print_table
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.resolve import Resolved
    from medar.evaluation.reconstruction import ReconstructionReport
    from medar.tokenizer.tokenizer import Tokenizer

app = App(
    name="evaluate",
    help="Measure trained models, generated volumes and label maps.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

app.command(generation)
app.command(editing)
app.command(conditions)
app.command(segmentation)

DATASET = DataSet()


@app.command
def tokenizer(
    model: Path,
    data: Path,
    /,
    *,
    split: Literal["train", "val", "test"] = "test",
    json: bool = False,
    out: Path | None = None,
    limit: int | None = None,
    batch: int = 4,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    prepared: Path | None = None,
    workers: int | None = None,
    dataset: DataSet = DATASET,
) -> int:
    """Reconstruct the cases of a split and measure what is lost, by prefix of scales.

    Exit code 1 if cases of a data set could not be prepared: the figures are of the others.

    Parameters
    ----------
    model
        Folder of a trained tokenizer, or of the run that left it.
    data
        A folder that `medar data prepare` filled with the model's plan, or a data set, which is
        prepared with it first.
    split
        The cases to reconstruct.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    out
        Folder for report.json and montage.png.
    limit
        The most cases to reconstruct, spread evenly over the split.
    batch
        Volumes at once.
    device
        CUDA where there is one, or as said.
    prepared
        Folder to prepare a data set into, and to keep; default a temporary one.
    workers
        Processes that prepare; default one a processor.
    """
    from medar.evaluation.reconstruction import evaluate_tokenizer
    from medar.report.artifacts import write_reconstruction
    from medar.tokenizer.tokenizer import Tokenizer

    if out is not None and out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    trained = Tokenizer.from_pretrained(model, device)
    with _prepared(trained, data, prepared, worker_count(workers), dataset) as found:
        report = evaluate_tokenizer(trained, found.folder, split, limit=limit, batch_size=batch)
        if out is not None:
            write_reconstruction(report, trained, found.folder, out)
    if prepared is None and found.folder != data:
        print(
            f"medar: {data} was prepared into a temporary folder; --prepared keeps it",
            file=sys.stderr,
        )
    for case, reason in found.failed.items():
        print(f"medar: {case} was set aside: {reason}", file=sys.stderr)
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report, str(model))
    return 1 if found.failed else 0


@contextlib.contextmanager
def _prepared(
    trained: "Tokenizer", data: Path, folder: Path | None, workers: int, dataset: DataSet
) -> "Iterator[Resolved]":
    """The cases in the model's form, in a folder that is kept if it was named."""
    from medar.data.resolve import is_prepared, prepared_under

    plan = trained.require_plan()
    if is_prepared(data) and (folder is not None or dataset != DATASET):
        raise MedarError(
            f"{data} is prepared already: leave out --prepared, --attributes, --modality and "
            "--seed, which are for data sets"
        )
    with contextlib.ExitStack() as stack:
        target = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medar-")))
        yield prepared_under(
            data,
            plan,
            target,
            labels=trained.config.network.labels > 0,
            workers=workers,
            read=dataset.read,
        )


def _print_report(report: "ReconstructionReport", model: str) -> None:
    from medar.evaluation.reconstruction.realism import FrechetProtocol

    percent = report.mae_unit.startswith("fraction")
    mae = f"{report.mae:.2%}" if percent else f"{report.mae:.3g}"
    dice = {f"Dice {k}": _shown(v) for k, v in (report.dice or {}).items()}
    print_pairs(
        f"{model}: {report.cases} cases of the split {report.split}",
        {
            "PSNR": f"{report.psnr:.2f} dB",
            "SSIM": _shown(report.ssim),
            "mean absolute error": f"{mae} {report.mae_unit.removeprefix('fraction ')}",
            "high-frequency error": _shown(report.high_frequency_error),
            "power ratio": f"{report.power_ratio:.3f} in the highest third of frequencies",
            "Frechet distance": f"{_shown(report.frechet)}, floor {_shown(report.frechet_floor)}",
            "codebook usage": f"{report.codebook_usage:.1%}",
            "bits per voxel": f"{report.bits_per_voxel:.4g}, {report.compression:.0f} times less",
            **dice,
        },
    )
    print_table(
        ("scales", "PSNR", "SSIM", "error", "high-frequency error", "power ratio"),
        (
            (k, f"{p:.2f}", f"{s:.3f}", f"{m:.3g}", f"{h:.3f}", f"{r:.3f}")
            for k, (p, s, m, h, r) in enumerate(
                zip(
                    report.psnr_per_scale,
                    report.ssim_per_scale,
                    report.mae_per_scale,
                    report.high_frequency_error_per_scale,
                    report.power_ratio_per_scale,
                    strict=True,
                ),
                1,
            )
        ),
    )
    print_table(
        ("scale", "grid", "tokens", "usage", "perplexity", "residual energy"),
        (
            (k, grid, tokens, f"{usage:.1%}", f"{perplexity:.0f}", f"{left:.3f}")
            for k, (grid, tokens, usage, perplexity, left) in enumerate(
                zip(
                    report.scales,
                    report.tokens_per_scale,
                    report.usage_per_scale,
                    report.perplexity_per_scale,
                    report.residual_energy_per_scale,
                    strict=True,
                )
            )
        ),
    )
    for line in (*report.warnings, *report.notes):
        print(f"note: {line}")
    if report.protocol["frechet"] is not None:
        print(f"Frechet distance: {FrechetProtocol(**report.protocol['frechet'])}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

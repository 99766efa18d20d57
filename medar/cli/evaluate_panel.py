"""`medar evaluate tokenizer --panel`: what a tokenizer loses of medical detail."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medar.cli.output import decimal, interval, print_table
from medar.words import format_count

if TYPE_CHECKING:
    from medar.devices import DeviceName
    from medar.evaluation.reconstruction.panel_report import MethodReport, PanelReport
    from medar.tokenizer.detail import Detail
    from medar.tokenizer.tokenizer import Tokenizer


def measure_panel(
    tokenizer: "Tokenizer",
    prepared: Path,
    split: Literal["train", "val", "test"],
    *,
    detail: "Detail",
    segmenter: Path | None,
    contrasts: Sequence[float] | None,
    out: Path | None,
    limit: int | None,
    batch: int,
    device: "DeviceName",
) -> "PanelReport":
    """Evaluate a tokenizer's decoders and write the files, if `out` is given."""
    from medar.evaluation.reconstruction.panel import evaluate_panel, methods_of
    from medar.evaluation.reconstruction.structures import StructureSettings
    from medar.report.artifacts import write_panel
    from medar.segmentation.segmenter import Segmenter

    panel = evaluate_panel(
        methods_of(tokenizer, detail),
        prepared,
        split,
        segmenter=Segmenter.from_pretrained(segmenter, device) if segmenter else None,
        structures=StructureSettings(contrasts=tuple(contrasts) if contrasts else None),
        limit=limit,
        batch_size=batch,
    )
    if out is not None:
        write_panel(panel, out)
    return panel.report


def print_panel(report: "PanelReport", model: str) -> None:
    """Print the report for people."""
    print(
        f"{model}: {format_count(report.cases, 'case')} of the split {report.split}, structures "
        f"inserted into {report.structure_cases}; intensities in {report.unit}"
    )
    for name, method in report.methods.items():
        print(f"{name}: {method.summary}")
        _print_method(method)
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}: docs/reference/evaluation.md")


def _print_method(method: "MethodReport") -> None:
    print_table(
        ("structure", "contrast", "voxels", "mm", "recovered", "95 %", "cases lost"),
        (
            (
                one.shape,
                f"{one.contrast:+.3g}",
                f"{one.voxels:g}",
                f"{one.mm:.3g}",
                f"{one.recovered:.2f}",
                interval(one.recovered_interval, ".2f"),
                f"{one.lost:.0%}",
            )
            for one in method.structures
        ),
    )
    if not method.organs:
        return
    print_table(
        ("label", "mean", "bias", "95 %", "deviation", "spread", "ratio", "gradient", "ratio",
         "Dice on originals", "on reconstructions"),
        (
            (
                name,
                f"{one.original:.3g}",
                f"{one.bias:+.3g}",
                interval(one.bias_interval),
                decimal(one.bias_deviation),
                decimal(one.spread),
                decimal(one.spread_ratio, ".2f"),
                decimal(one.gradient),
                decimal(one.gradient_ratio, ".2f"),
                decimal(one.dice_original, ".3f"),
                decimal(one.dice, ".3f"),
            )
            for name, one in method.organs.items()
        ),
    )  # fmt: skip

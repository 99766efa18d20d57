"""The tokenizer: its curves, what it gives back, and which codes each scale uses."""

from collections.abc import Sequence
from typing import Any

from medar.report.blocks import Block, KeyFigure, KeyFigures, LeftOut, Notes, Picture, Table, Text
from medar.report.charts import Bars, Curve, Panel, bar_chart, line_chart
from medar.report.folder import RunFolder
from medar.report.words import SPLITS, amount, counted, fixed, number, percent

RECONSTRUCTION = "tokenizer/evaluation/report.json"
MONTAGE = "tokenizer/evaluation/montage.png"


def training_of_tokenizer(run: RunFolder) -> list[Block]:
    """Its curves."""
    lines = run.lines("tokenizer/metrics.jsonl", "tokenizer")
    usage = points(lines, "validation/codebook_usage")
    panels = [
        Panel("training loss", [Curve("loss", points(lines, "train/loss"))]),
        Panel(
            "PSNR of validation volumes (dB)",
            [Curve("PSNR", points(lines, "validation/psnr"), marked=True)],
        ),
        Panel(
            "codes in use (%)",
            [Curve("usage", [(step, 100 * share) for step, share in usage], marked=True)],
            percent=True,
        ),
    ]
    return [
        Picture(
            "tokenizer-curves.svg",
            drawn(panels),
            "Line charts over training steps: "
            f"{_ends(lines, 'train/loss', 'loss')}; "
            f"{_ends(lines, 'validation/psnr', 'validation PSNR in dB')}; "
            f"{_ends(lines, 'validation/codebook_usage', 'share of codes in use')}.",
            "Training of the tokenizer. The loss is the error of training volumes plus what the "
            "codes lose; PSNR and the share of codes in use are of validation volumes, by averaged "
            "weights. Curves that still climb at the end ask for more time.",
            wide=True,
        )
    ]


def reconstruction(run: RunFolder) -> list[Block]:
    """What real volumes look like after tokens: the most that a generator can reach."""
    report = run.object(RECONSTRUCTION, "tokenizer")
    figures = [
        KeyFigure("PSNR", f"{fixed(report['psnr'], 1)} dB", "higher is nearer"),
        KeyFigure("SSIM", fixed(report["ssim"], 3), "1 is the same"),
        KeyFigure("mean error of a voxel", *amount(report["mae"], report["mae_unit"])),
        KeyFigure("power ratio", fixed(report["power_ratio"], 2), "fine detail; below 1 is blur"),
        KeyFigure("compression", f"{number(report['compression'])} ×", "against 16 bits a voxel"),
    ]
    split = SPLITS.get(report["split"], report["split"])
    blocks: list[Block] = [
        Text(
            f"{counted(report['cases'], 'real volume')} of the {split} split: written as tokens "
            "and read back. What is lost here no generator brings back: its volumes are read from "
            "tokens by the same decoder."
        ),
        KeyFigures(figures),
    ]
    if run.holds(MONTAGE):
        blocks.append(_montage(run))
    if report.get("dice"):
        rows = [(name, fixed(value, 3)) for name, value in report["dice"].items()]
        caption = "Labels given back from the same tokens (Dice; 1 is the same)"
        blocks.append(Table(caption, ("label", "Dice"), rows))
    return [*blocks, *_remarks(report)]


def codebook(run: RunFolder) -> list[Block]:
    """Which codes each scale uses, and what each scale adds."""
    report = run.object(RECONSTRUCTION, "tokenizer")
    scales = report["scales"]
    shares = [100 * one for one in report["usage_per_scale"]]
    prefixes = report["psnr_per_scale"]
    panels = [Bars("codes that the scale uses (%)", scales, shares, across="grid of the scale")]
    said = f"share of codes used from {number(shares[0])} to {number(shares[-1])} %"
    if prefixes:
        said += f"; PSNR from {fixed(prefixes[0], 1)} to {fixed(prefixes[-1], 1)} dB"
        panels.append(
            Bars("PSNR after the scale (dB)", scales, prefixes, across="grid of the scale")
        )
    return [
        Picture(
            "codebook.svg",
            bar_chart(panels),
            f"Bar charts by scale, coarse to fine: {said}.",
            "Left: the share of the codebook that each scale uses; coarse scales have few tokens "
            "and need few codes. Right: how near a volume is that is decoded from this scale and "
            "the coarser ones alone.",
            wide=True,
        ),
        _scales(report),
        Text(
            f"All scales together use {percent(report['codebook_usage'])} of the codes. Perplexity "
            "is the number of equally likely codes of the same entropy; energy left is the share "
            "of the latent volume that the scales so far do not explain."
        ),
        *([Notes(report["warnings"])] if report["warnings"] else []),
    ]


def _scales(report: dict[str, Any]) -> Table:
    """A row a scale."""
    keys = ("tokens_per_scale", "usage_per_scale", "perplexity_per_scale",
            "residual_energy_per_scale", "psnr_per_scale", "ssim_per_scale")  # fmt: skip
    scales = report["scales"]
    columns = [report[key] or [None] * len(scales) for key in keys]
    rows = [
        (f"{place}: {grid}", f"{tokens:,}", percent(usage), number(codes), fixed(left, 3),
         fixed(psnr, 2), fixed(ssim, 3))
        for place, (grid, tokens, usage, codes, left, psnr, ssim) in enumerate(
            zip(scales, *columns, strict=True), 1
        )
    ]  # fmt: skip
    headings = ("scale", "tokens", "codes used", "perplexity (codes)", "energy left",
                "PSNR (dB)", "SSIM")  # fmt: skip
    return Table("Scales, coarse to fine", headings, rows, folded=True)


def points(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """A metric by step, where it is known."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def drawn(panels: Sequence[Panel]) -> bytes:
    """A chart of the panels that have anything to show.

    Raises:
        LeftOut: none has.
    """
    filled = [one for one in panels if any(curve.points for curve in one.curves)]
    if not filled:
        raise LeftOut("training ended before it measured anything")
    return line_chart(filled)


def _ends(lines: list[dict[str, Any]], key: str, name: str) -> str:
    """Where a curve begins and ends."""
    values = [value for _, value in points(lines, key)]
    return f"{name} from {number(values[0])} to {number(values[-1])}" if values else f"no {name}"


def _montage(run: RunFolder) -> Picture:
    return Picture(
        "reconstructions.png",
        run.png(MONTAGE, "tokenizer"),
        "Grid of pictures, a row a real volume: the original, what is decoded from the coarsest "
        "scale, from two, and so on to all scales, and a map of the error.",
        "Real volumes (left) as they come back from the coarsest scale alone, from two, and so on "
        "to all scales; right the error of the last, red too bright and blue too dark. Axial "
        "planes through the middle; all grey pictures of a row share one window.",
        wide=True,
    )


def _remarks(report: dict[str, Any]) -> list[Block]:
    """The Frechet distance of reconstructions, and the report's own notes."""
    said = list(report["notes"])
    if report["frechet"] is not None:
        said.insert(
            0,
            f"Frechet distance of the reconstructions, as a set, {number(report['frechet'])}; of "
            f"the same volumes as they were {number(report['frechet_floor'])}. The rest is blur "
            "and noise that the tokenizer brings.",
        )
    return [Notes(said)] if said else []

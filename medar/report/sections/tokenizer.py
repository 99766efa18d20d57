"""The tokenizer: what its reconstructions look like, and how each scale uses the codebook."""

from medar.evaluation.reconstruction import ReconstructionReport
from medar.report.blocks import Block, Charts, KeyFigure, KeyFigures, Notes, Picture, Table, Text
from medar.report.charts import Bars, bar_chart
from medar.report.distances import grid_figure, largest_contributions
from medar.report.folder import DETAIL_EVALUATION, TOKENIZER_EVALUATION, RunFolder
from medar.report.formatting import (
    SPLIT_NAMES,
    format_count,
    format_difference,
    format_fixed,
    format_measured,
    format_number,
    format_percent,
)

MONTAGE = f"{TOKENIZER_EVALUATION}/montage.png"
DETAIL_MONTAGE = f"{DETAIL_EVALUATION}/montage.png"


def reconstruction(run: RunFolder) -> list[Block]:
    """Real volumes after encoding and decoding: the upper limit for a generator."""
    report = run.reconstruction_report()
    difference, reference = format_difference(report.mae, report.mae_unit)
    figures = [
        KeyFigure("PSNR", f"{format_fixed(report.psnr, 1)} dB", "higher is better"),
        KeyFigure("SSIM", format_fixed(report.ssim, 3), "1 is identical"),
        KeyFigure("mean absolute error", difference, reference),
        KeyFigure(
            "power ratio", format_fixed(report.power_ratio, 2), "fine detail; below 1 is blur"
        ),
        *grid_figure(report.grid_artifact, report.grid_artifact_interval),
        KeyFigure(
            "compression", f"{format_number(report.compression)} ×", "against 16 bits per voxel"
        ),
    ]
    blocks: list[Block] = [
        Text(
            f"{format_count(report.cases, 'real volume')} of the {SPLIT_NAMES[report.split]} "
            "split, encoded as tokens and decoded again. Synthetic volumes come from the same "
            "decoder: detail that is lost here is missing in them too."
        ),
        KeyFigures(figures),
    ]
    detailed = run.detail_report()
    if run.has(DETAIL_MONTAGE if detailed else MONTAGE):
        blocks.append(_montage(run, DETAIL_MONTAGE if detailed else MONTAGE))
    if detailed is not None and detailed.frechet is not None:
        blocks += _detail(report, detailed)
    if report.dice:
        rows = [(name, format_fixed(value, 3)) for name, value in report.dice.items()]
        caption = "Label maps decoded from the same tokens (Dice; 1 is identical)"
        blocks.append(Table(caption, ("label", "Dice"), rows))
    return [*blocks, *_remarks(report)]


def _detail(without: ReconstructionReport, with_detail: ReconstructionReport) -> list[Block]:
    """What the detail decoder changes."""
    rows = [
        (name, format_measured(report.frechet), format_measured(report.frechet_floor),
         str(report.frechet_samples), format_fixed(report.power_ratio, 2),
         format_fixed(report.grid_artifact, 2))
        for name, report in (("without detail", without), ("with detail", with_detail))
    ]  # fmt: skip
    text = (
        "The detail decoder draws texture that tokens do not hold: volumes look more like scans, "
        "and differ more from their own original. The Frechet distance is that of N "
        "reconstructions from real volumes; its floor is that of their originals. The power ratio, "
        "in the highest third of the frequencies, and the grid artifact are 1 for real volumes."
    )
    headings = (
        "reconstructions", "Frechet distance", "floor", "N", "power ratio", "grid artifact",
    )  # fmt: skip
    return [Table("Reconstructions without and with detail", headings, rows), Text(text)]


def _montage(run: RunFolder, montage: str) -> Picture:
    return Picture(
        "reconstructions.png",
        run.png(montage, "tokenizer"),
        "Grid of slices, one row per real volume: the original, reconstructions from the coarsest "
        "scale, from two scales, and so on to all scales, the one with detail if there is a "
        "detail decoder, and a map of the error.",
        "Real volumes (left) and their reconstructions from the coarsest scale, from two scales, "
        "and so on to all scales, then with detail, if there is a detail decoder. Right: the error "
        "of the reconstruction from all scales; red is too bright, blue too dark. Axial slices "
        "through the middle; all grey slices of a row share one window.",
        wide=True,
    )


def _remarks(report: ReconstructionReport) -> list[Block]:
    """The Frechet distance of the reconstructions, and the notes of the evaluation."""
    notes = list(report.notes)
    if report.frechet is not None:
        notes.insert(
            0,
            f"Frechet distance of {report.frechet_samples} reconstructions as a set: "
            f"{format_number(report.frechet)}; of as many originals: "
            f"{format_number(report.frechet_floor)}. The difference is due to blur and artefacts "
            "of the tokenizer. Compare it only with distances of as many volumes. "
            f"{largest_contributions(report.frechet_contributions)}",
        )
    low, middle, high = (format_fixed(ratio, 2) for ratio in report.power_ratio_thirds)
    notes.append(
        f"Spectral power over that of the originals: {low} in the lowest, {middle} in the middle "
        f"and {high} in the highest third of the frequencies."
    )
    return [Notes(notes)] if notes else []


def codebook(run: RunFolder) -> list[Block]:
    """Codebook usage of each scale, and what each scale contributes."""
    report = run.reconstruction_report()
    usage = [100 * fraction for fraction in report.usage_per_scale]
    psnr = report.psnr_per_scale
    panels = [Bars("codes used (%)", report.scales, usage, x_label="grid of the scale")]
    alt = f"codes used from {format_number(usage[0])} to {format_number(usage[-1])} %"
    if psnr:
        panels.append(
            Bars("PSNR up to the scale (dB)", report.scales, psnr, x_label="grid of the scale")
        )
        alt += f"; PSNR from {format_fixed(psnr[0], 1)} to {format_fixed(psnr[-1], 1)} dB"
    return [
        Charts(
            "codebook",
            bar_chart(panels),
            f"Bar charts by scale, coarse to fine: {alt}.",
            "Codes used: percentage of the codebook; coarse scales have few tokens and need few "
            "codes. PSNR: of volumes decoded from this scale and all coarser ones.",
        ),
        _scales(report),
        Text(
            f"All scales together use {format_percent(report.codebook_usage)} of the codes. "
            "Perplexity is the number of equally likely codes with the same entropy. Residual "
            "energy is the fraction of the latent volume that the scales so far do not explain."
        ),
        *([Notes(report.warnings)] if report.warnings else []),
    ]


def _scales(report: ReconstructionReport) -> Table:
    """One row per scale."""
    count = len(report.scales)
    missing: list[float | None] = [None] * count
    rows = [
        (f"{scale}: {grid}", f"{tokens:,}", format_percent(usage), format_number(perplexity),
         format_fixed(energy, 3), format_fixed(psnr, 2), format_fixed(ssim, 3))
        for scale, grid, tokens, usage, perplexity, energy, psnr, ssim in zip(
            range(1, count + 1), report.scales, report.tokens_per_scale, report.usage_per_scale,
            report.perplexity_per_scale, report.residual_energy_per_scale,
            report.psnr_per_scale or missing, report.ssim_per_scale or missing,
            strict=True,
        )
    ]  # fmt: skip
    headings = ("scale", "tokens", "codes used", "perplexity (codes)", "residual energy",
                "PSNR (dB)", "SSIM")  # fmt: skip
    return Table("Scales, coarse to fine", headings, rows, folded=True)

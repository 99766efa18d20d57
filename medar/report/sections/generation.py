"""Quality of the synthetic volumes as a set: distances, diversity, and suspected copies."""

from dataclasses import dataclass

from medar.evaluation.distances import SetDistance
from medar.evaluation.generation import GenerationReport
from medar.report.blocks import Block, KeyFigure, KeyFigures, Notes, Picture, Table, Text
from medar.report.charts import Distance, distance_chart
from medar.report.distances import largest_contributions
from medar.report.folder import RunFolder
from medar.report.formatting import (
    format_count,
    format_difference,
    format_fixed,
    format_measured,
    format_number,
    format_percent,
    format_range,
)
from medar.report.sections.turing import turing_blocks

MAX_COPIES = 20
"""Suspected copies listed by name."""
TOO_CLOSE = 0.5
"""Fraction of the floor below which a set is suspiciously close to the training volumes."""


@dataclass(frozen=True, kw_only=True)
class SuspectedCopy:
    """A synthetic volume that may be a copy of a training volume."""

    index: int
    """Of the synthetic volume, from 0."""
    case: str
    space: str
    distance: float


def distances(run: RunFolder) -> list[Block]:
    """Distance of the synthetic volumes from the training volumes, beside that of real ones."""
    report = run.generation_report()
    blocks: list[Block] = [
        Text(
            f"{format_count(report.volumes, 'synthetic volume')} compared with "
            f"{format_count(report.reference, 'real volume')} of the training split. The floor is "
            f"the distance of {format_count(report.held_out, 'held-out real volume')} from the "
            "same reference at the same sample size, N. Two finite sets of real volumes never have "
            "distance 0, so no generator can be expected to fall below the floor."
        ),
        Notes(
            [
                f"{name}: {_sentence(one)} {largest_contributions(one.contributions)}".strip()
                for name, one in report.distances.items()
            ]
        ),
    ]
    drawn = [
        Distance(name, one.frechet, one.frechet_interval, one.frechet_floor)
        for name, one in report.distances.items()
        if one.frechet > 0 and (one.frechet_floor is None or one.frechet_floor > 0)
    ]
    if drawn:
        blocks.append(_chart(drawn))
    intensities, floor = (
        " ".join(format_difference(value, report.intensity_unit)).strip()
        for value in (report.intensity_distance, report.intensity_floor)
    )
    return [
        *blocks,
        _table(report),
        Text(
            "Intervals (95 %, bootstrap over the synthetic volumes) show the uncertainty due to "
            "the choice of synthetic volumes, not due to the choice of real ones."
        ),
        Text(
            "Voxel intensities: the Wasserstein distance of the synthetic volumes from the "
            f"training volumes is {intensities}, that of held-out real volumes {floor}."
        ),
        *_spectra(report),
        *([Notes(report.notes)] if report.notes else []),
        *(turing_blocks(report.turing) if report.turing else []),
    ]


def _spectra(report: GenerationReport) -> list[Block]:
    """Spectral power in each third of the frequencies, and the grid artifact."""
    names = ("low", "middle", "high")
    pairs = zip(report.power_ratio_thirds, report.power_ratio_thirds_floor, names, strict=True)
    rows = [
        (f"power in the {name} third of frequencies", format_fixed(made, 3), format_fixed(real, 3))
        for made, real, name in pairs
    ]
    if report.grid_artifact is not None:
        rows.append(
            (
                f"grid artifact (95 % interval {format_range(report.grid_artifact_interval)})",
                format_fixed(report.grid_artifact, 3),
                format_fixed(report.grid_artifact_floor, 3),
            )
        )
    caption = "Spectra relative to those of the training volumes, for which each value is 1"
    return [Table(caption, ("", "synthetic", "held-out real"), rows)]


def _table(report: GenerationReport) -> Table:
    """One row per feature extractor."""
    rows = [
        (f"{name} ({one.features})", format_measured(one.frechet),
         format_range(one.frechet_interval), format_measured(one.frechet_floor),
         str(one.frechet_samples),
         format_measured(one.kernel), format_range(one.kernel_interval),
         format_measured(one.kernel_floor))
        for name, one in report.distances.items()
    ]  # fmt: skip
    headings = (
        "features (number)", "Frechet distance", "95 % interval", "floor", "N",
        "kernel distance", "95 % interval", "floor",
    )  # fmt: skip
    return Table("Distances from the training volumes; smaller is closer", headings, rows)


def _chart(drawn: list[Distance]) -> Picture:
    values = "; ".join(
        f"{one.name} {format_number(one.value)}"
        + (f", floor {format_number(one.floor)}" if one.floor is not None else "")
        for one in drawn
    )
    return Picture(
        "distances.svg",
        distance_chart(drawn, "Frechet distance from the training volumes (log scale)"),
        f"Chart of Frechet distances on a logarithmic axis: {values}.",
        "Frechet distance of the synthetic volumes (circle, with its 95 % interval) and of "
        "held-out real volumes (diamond, the floor). The grey line is the gap between them.",
    )


def compare_with_floor(one: SetDistance) -> str:
    """A Frechet distance in relation to its floor, in a few words."""
    floor, interval = one.frechet_floor, one.frechet_interval
    if not floor:
        return "no floor available"
    if one.frechet < TOO_CLOSE * floor:
        return "closer than real volumes"
    if interval and interval[0] <= floor <= interval[1]:
        return "indistinguishable"
    return f"{format_number(one.frechet / floor, 2)} × the floor"


def _sentence(one: SetDistance) -> str:
    words = compare_with_floor(one)
    return {
        "no floor available": "no floor available.",
        "closer than real volumes": "synthetic volumes are much closer to the training volumes "
        "than new real ones are; see the search for copies.",
        "indistinguishable": "at this sample size, synthetic and held-out real volumes are "
        "indistinguishable.",
    }.get(words, f"synthetic volumes are at {words}, the distance of held-out real ones.")


def diversity(run: RunFolder) -> list[Block]:
    """Similarity between synthetic volumes, beside that between real ones."""
    report = run.generation_report()
    synthetic, real = format_fixed(report.ms_ssim, 3), format_fixed(report.ms_ssim_real, 3)
    if synthetic == real:
        comparison = "as similar to each other as"
    elif report.ms_ssim > report.ms_ssim_real:
        comparison = "more similar to each other than"
    else:
        comparison = "less similar to each other than"
    return [
        KeyFigures(
            [
                KeyFigure("MS-SSIM of synthetic pairs", synthetic),
                KeyFigure("MS-SSIM of real pairs", real, "training volumes"),
            ]
        ),
        Text(
            "Mean similarity of random pairs (1 is identical). Synthetic volumes are "
            f"{comparison} real ones. A value far above that of real volumes means that the "
            "generator repeats itself; a value far below it means that the volumes share no "
            "anatomy."
        ),
    ]


def copies(run: RunFolder) -> list[Block]:
    """Whether the generator reproduces training volumes."""
    report = run.generation_report()
    suspects = suspected_copies(report)
    rows = [
        (space, format_measured(audit.median), format_measured(audit.median_held_out),
         format_measured(audit.ratio), format_percent(audit.fraction_nearer),
         str(len(audit.suspects)))
        for space, audit in report.memorisation.items()
    ]  # fmt: skip
    headings = ("distance in", "median", "median of held-out real volumes", "ratio", "closer",
                "suspected copies")  # fmt: skip
    verdict = "No synthetic volume is a suspected copy of a training volume."
    if suspects:
        verdict = (
            f"{format_count(len(suspects), 'synthetic volume')} may be copied: compare each with "
            "its training case before you share any."
        )
    blocks: list[Block] = [
        Text(
            f"{verdict} The distance of each synthetic volume to its nearest training volume is "
            "compared with the same distance of held-out real volumes."
        ),
        Table("Distance to the nearest training volume", headings, rows),
    ]
    if suspects:
        blocks.append(_copies_table(suspects))
    return [
        *blocks,
        Text(
            "A ratio near 1 means that synthetic volumes are as new as real ones. “Closer” is the "
            "percentage of synthetic volumes below the first percentile of held-out distances; "
            "suspects are below half of that percentile. Features miss noisy copies, voxels miss "
            "shifted ones, and neither detects copied regions."
        ),
    ]


def _copies_table(suspects: list[SuspectedCopy]) -> Table:
    some = f"; the first {MAX_COPIES} of {len(suspects)}" if len(suspects) > MAX_COPIES else ""
    return Table(
        f"Suspected copies, closest first for each kind of distance{some}",
        ("volume, from 0", "training case", "distance in", "distance"),
        [
            (str(one.index), one.case, one.space, format_measured(one.distance))
            for one in suspects[:MAX_COPIES]
        ],
        words=True,
    )


def suspected_copies(report: GenerationReport) -> list[SuspectedCopy]:
    """The suspected copies, each synthetic volume once."""
    suspects: dict[int, SuspectedCopy] = {}
    for space, audit in report.memorisation.items():
        for one in audit.suspects:
            suspect = SuspectedCopy(
                index=one.index, case=one.case, space=space, distance=one.distance
            )
            suspects.setdefault(one.index, suspect)
    return list(suspects.values())

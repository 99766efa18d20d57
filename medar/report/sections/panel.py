"""The page about a panel for medical detail: organs, segmenter, inserted structures."""

from collections.abc import Callable, Sequence

from medar.errors import MedarError
from medar.evaluation.reconstruction.panel_report import (
    NOUNS,
    MethodReport,
    PanelReport,
    StructureReport,
    contrast_names,
)
from medar.evaluation.reconstruction.structures import SHAPES
from medar.evaluation.segmentation.statistics import Interval
from medar.report.blocks import (
    Block,
    Cell,
    Charts,
    Notes,
    Picture,
    Report,
    Table,
    Text,
    make_sections,
)
from medar.report.charts import BLUE, GRID, INK, MUTED, ORANGE, Curve, Panel, line_chart
from medar.report.formatting import (
    MISSING,
    SPLIT_NAMES,
    format_count,
    format_fixed,
    format_number,
    format_percent,
)

COLOURS = (BLUE, ORANGE, INK, MUTED)
"""Of methods; further ones start again."""


def panel_page(report: PanelReport, spheres: bytes | None) -> Report:
    """The page about a panel.

    Args:
        report: what `evaluate_panel` returned.
        spheres: PNG of inserted spheres; None if there are none.
    """
    parts: list[tuple[str, str, Callable[[], list[Block]]]] = [
        ("summary", "Summary", lambda: _summary(report)),
        ("structures", "Lesions and thin structures", lambda: _structures(report, spheres)),
        ("organs", "Organs", lambda: _organs(report)),
        ("segmenter", "Segmentation of reconstructions", lambda: _segmented(report)),
        ("protocol", "Protocol", lambda: [_protocol(report)]),
    ]
    sections, missing = make_sections(parts)
    return Report(
        title="What reconstructions lose",
        subtitle=f"{format_count(report.cases, 'case')}, {SPLIT_NAMES[report.split]} split; "
        f"structures in {format_count(report.structure_cases, 'case')}",
        warnings=[],
        sections=sections,
        missing=missing,
    )


def _summary(report: PanelReport) -> list[Block]:
    rows = [
        (name, f"{format_fixed(one.fidelity.psnr, 2)} dB", format_fixed(one.fidelity.ssim, 3),
         format_fixed(one.fidelity.power_ratio, 2), _worst_bias(one, report.unit),
         _mean_ratio([organ.spread_ratio for organ in one.organs.values()]),
         _mean_ratio([organ.gradient_ratio for organ in one.organs.values()]))
        for name, one in report.methods.items()
    ]  # fmt: skip
    headings = ("method", "PSNR", "SSIM", "power ratio", "largest bias", "spread", "sharpness")
    return [
        *(Text(f"{name}: {one.summary}") for name, one in report.methods.items()),
        Table("Methods side by side", headings, rows),
        Text(
            "A structure is lost if less than half of its contrast is recovered. Largest bias: of "
            "the labels' mean intensities. Spread and sharpness: standard deviation within labels "
            "and gradient across their borders, as a fraction of the originals'; means over labels."
        ),
        *([Notes(report.notes)] if report.notes else []),
    ]


def _worst_bias(one: MethodReport, unit: str) -> str:
    if not one.organs:
        return MISSING
    name, organ = max(one.organs.items(), key=lambda pair: abs(pair[1].bias))
    return f"{_intensity(organ.bias, unit)} ({name})"


def _mean_ratio(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return format_percent(sum(known) / len(known)) if known else MISSING


def _intensity(value: float | None, unit: str) -> str:
    """In percent of the window, or in HU or the volume's units."""
    if value is None or unit.startswith("fraction"):
        return MISSING if value is None else f"{format_fixed(100 * value, 1)} %"
    return format_number(value)


def _unit(unit: str) -> str:
    return unit.replace("fraction ", "% ")


def _structures(report: PanelReport, spheres: bytes | None) -> list[Block]:
    if not any(one.structures for one in report.methods.values()):
        raise MedarError("no structure fits into these volumes")
    blocks: list[Block] = [
        Charts(
            "structures",
            line_chart(_charts(report)),
            "Recovered contrast against size, one panel per shape and one curve per method.",
            "Contrast recovered, in percent, by diameter of spheres and tubes and thickness of "
            "plates; mean of brighter and darker structures. Solid: the strongest contrast; dashed:"
            " the faintest.",
        ),
        _limits(report),
    ]
    if spheres is not None:
        blocks.append(
            Picture(
                "spheres.png",
                spheres,
                "Axial slices through spheres of growing diameter, inserted into one case: the "
                "original, then each method's reconstruction.",
                "Spheres of the strongest positive contrast in the first case, by diameter. First "
                "row: the original with the sphere, then the reconstructions by each method.",
                wide=True,
            )
        )
    headings = ("structure", "voxels", "mm", "recovered", "95 %", "cases lost", "cases")
    blocks += [
        Table(f"{name}: contrast recovered", headings,
              [_structure(row, report.unit) for row in one.structures], folded=True)
        for name, one in report.methods.items()
    ]  # fmt: skip
    return blocks


def _charts(report: PanelReport) -> list[Panel]:
    """One panel per shape: recovered percent by size, for each method's ends of contrast."""
    panels = []
    for shape in SHAPES:
        curves = []
        sizes = [0.0]
        for number, (name, one) in enumerate(report.methods.items()):
            rows = [row for row in one.structures if row.shape == shape]
            sizes += [row.voxels for row in rows]
            contrasts = sorted({abs(row.contrast) for row in rows})
            for contrast in dict.fromkeys((*contrasts[-1:], *contrasts[:1])):
                points: dict[float, list[float]] = {}
                for row in rows:
                    if abs(row.contrast) == contrast:
                        points.setdefault(row.voxels, []).append(100 * row.recovered)
                curves.append(
                    Curve(
                        name if contrast == contrasts[-1] else "",
                        [(size, sum(found) / len(found)) for size, found in points.items()],
                        colour=COLOURS[number % len(COLOURS)],
                        dashed=contrast != contrasts[-1],
                        marked=True,
                    )
                )
        if curves:
            half = Curve("half", ((0, 50), (max(sizes), 50)), colour=GRID, dashed=True)
            panels.append(Panel(NOUNS[shape][0], [*curves, half], x_label="voxels"))
    return panels


def _limits(report: PanelReport) -> Table:
    """Smallest detected size: one row per shape and method, one column per contrast."""
    cells: dict[tuple[str, str], dict[float, str]] = {}
    for name, method in report.methods.items():
        for one in method.limits:
            size = f"> {format_number(one.largest)}"
            if one.voxels is not None:
                size = f"{format_number(one.voxels)} ({format_number(one.mm)} mm)"
            cells.setdefault((one.shape, name), {})[one.contrast] = size
    contrasts = sorted({contrast for row in cells.values() for contrast in row})
    rows = [
        (shape, name, *(cells[shape, name].get(contrast, MISSING) for contrast in contrasts))
        for shape in SHAPES
        for name in report.methods
        if (shape, name) in cells
    ]
    return Table(
        "Detection limit: smallest size in voxels from which on half of the contrast is recovered",
        ("structure", "method", *(contrast_names([one], report.unit) for one in contrasts)),
        rows,
    )


def _structure(one: StructureReport, unit: str) -> tuple[str, ...]:
    return (
        f"{one.shape}, {contrast_names([one.contrast], unit)}",
        format_number(one.voxels),
        format_number(one.mm),
        format_fixed(one.recovered, 2),
        _interval(one.recovered_interval, lambda value: format_fixed(value, 2)),
        format_percent(one.lost),
        format_number(one.cases),
    )


def _interval(pair: Interval | None, text: Callable[[float], str]) -> str:
    return MISSING if pair is None else f"[{text(pair[0])}, {text(pair[1])}]"


def _organs(report: PanelReport) -> list[Block]:
    if not any(one.organs for one in report.methods.values()):
        raise MedarError("no case has a label")
    headings = ("label", "original", "bias, 95 %", "deviation of the bias", "spread",
                "spread ratio", "gradient per mm", "gradient ratio", "cases")  # fmt: skip
    return [
        Table(
            f"{name}, in {_unit(report.unit)}",
            headings,
            [
                (
                    label,
                    _intensity(organ.original, report.unit),
                    Cell(
                        _intensity(organ.bias, report.unit),
                        note=_interval(organ.bias_interval, lambda v: _intensity(v, report.unit)),
                    ),
                    _intensity(organ.bias_deviation, report.unit),
                    _intensity(organ.spread, report.unit),
                    format_fixed(organ.spread_ratio, 2),
                    _intensity(organ.gradient, report.unit),
                    format_fixed(organ.gradient_ratio, 2),
                    format_number(organ.cases),
                )
                for label, organ in one.organs.items()
            ],
        )
        for name, one in report.methods.items()
    ]


def _segmented(report: PanelReport) -> list[Block]:
    if report.protocol["segmenter"] is None:
        raise MedarError("no segmentation network was given (--segmenter)")
    rows = [
        (label, name, format_fixed(organ.dice_original, 3), format_fixed(organ.dice, 3),
         _interval(organ.dice_change, lambda value: format_fixed(value, 3)))
        for name, one in report.methods.items()
        for label, organ in one.organs.items()
    ]  # fmt: skip
    headings = ("label", "method", "Dice on originals", "on reconstructions", "change, 95 %")
    return [Table("Dice of the segmentation network with the true labels", headings, rows)]


def _protocol(report: PanelReport) -> Table:
    rows = [(key, str(value)) for key, value in report.protocol.items()]
    return Table("How each value is computed", (), rows, words=True)

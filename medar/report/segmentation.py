"""The page about an evaluation of label maps."""

from collections.abc import Callable, Sequence

from medar.errors import MedarError
from medar.evaluation.segmentation.metrics import HELD, MIN_PROBABILITY, Calibration
from medar.evaluation.segmentation.report import Comparison, ModelReport, SegmentationReport
from medar.evaluation.segmentation.statistics import Interval, Paired
from medar.report.blocks import (
    Block,
    KeyFigure,
    KeyFigures,
    LeftOut,
    Notes,
    Picture,
    Report,
    Section,
    Table,
    Text,
)
from medar.report.charts import (
    GRID,
    Agreement,
    Curve,
    Panel,
    agreement_chart,
    line_chart,
    spread_chart,
)
from medar.report.words import NONE, SPLITS, counted, fixed, number, percent

METRICS = {"dice": "Dice", "hd95": "HD95 (mm)", "nsd": "NSD"}
WORST = 20
"""Rows of the table of cases."""


def segmentation_page(report: SegmentationReport, worst: bytes | None) -> Report:
    """Everything that the page says.

    Args:
        report: what `evaluate_segmentation` found.
        worst: the first model's worst cases as PNG.
    """
    sections, absent = [], []
    parts: list[tuple[str, str, Callable[[], list[Block]]]] = [
        ("short", "In short", lambda: in_short(report)),
        ("labels", "By label", lambda: [by_label(one) for one in report.models]),
        ("comparison", "Comparison", lambda: comparisons(report.comparisons)),
        ("cases", "By case", lambda: by_case(report)),
        ("worst", "Worst cases", lambda: worst_cases(report, worst)),
        ("volume", "Volumes", lambda: volume_agreement(report)),
        ("calibration", "Calibration", lambda: calibration(report)),
        ("protocol", "Protocol", lambda: [_protocol(report)]),
    ]
    for key, title, make in parts:
        try:
            sections.append(Section(key, title, make()))
        except (LeftOut, MedarError) as reason:
            absent.append((title, str(reason)))
    return Report(
        title="Evaluation of label maps",
        subtitle=f"{counted(report.cases, 'case')} of {counted(report.subjects, 'subject')}, "
        f"{SPLITS[report.split]} split",
        troubles=[],
        sections=sections,
        absent=absent,
    )


def in_short(report: SegmentationReport) -> list[Block]:
    """The means."""
    first, several = report.models[0], len(report.models) > 1
    nsd = f"NSD at {number(report.tolerance)} mm"
    figures = [
        KeyFigure("Dice", fixed(first.dice_mean, 3), _interval(first.dice_interval)),
        KeyFigure("HD95", f"{fixed(first.hd95_mean, 2)} mm", _interval(first.hd95_interval, 2)),
        KeyFigure(nsd, fixed(first.nsd_mean, 3), _interval(first.nsd_interval)),
    ]
    whose = "Of the first model: means" if several else "Means"
    said = f"{whose} over cases for each label, then over labels; in brackets the 95 % interval."
    blocks: list[Block] = [KeyFigures(figures), Text(said)]
    rows = [
        (
            str(place),
            one.name,
            f"{fixed(one.dice_mean, 3)} {_interval(one.dice_interval)}",
            f"{fixed(one.hd95_mean, 2)} {_interval(one.hd95_interval, 2)}",
            f"{fixed(one.nsd_mean, 3)} {_interval(one.nsd_interval)}",
        )
        for place, one in enumerate(report.models, 1)
    ]
    if several:
        blocks.append(Table("Models", ("", "model", "Dice", "HD95 (mm)", nsd), rows))
    return [*blocks, *([Notes(report.notes)] if report.notes else [])]


def _interval(pair: Interval | None, places: int = 3) -> str:
    return NONE if pair is None else f"[{fixed(pair[0], places)}, {fixed(pair[1], places)}]"


def by_label(model: ModelReport) -> Table:
    """A row a label."""
    return Table(
        model.name,
        ("label", "Dice", "95 %", "HD95 (mm)", "95 %", "NSD", "95 %", "cases", "missed",
         "invented"),
        [
            (
                name,
                fixed(one.dice, 3),
                _interval(one.dice_interval),
                fixed(one.hd95, 2),
                _interval(one.hd95_interval, 2),
                fixed(one.nsd, 3),
                _interval(one.nsd_interval),
                number(one.cases),
                number(one.missed),
                number(one.invented),
            )
            for name, one in model.labels.items()
        ],
    )  # fmt: skip


def comparisons(found: Sequence[Comparison]) -> list[Block]:
    """Each further model less the first."""
    if not found:
        raise LeftOut("one model alone")
    said = (
        "Differences over the same cases; p of a two-sided Wilcoxon signed-rank test over "
        "subjects, not corrected for the number of tests; effect: rank-biserial correlation."
    )
    tables = [
        Table(
            f"{one.second} less {one.first}",
            ("", "metric", "difference", "95 %", "p", "effect", "subjects"),
            [
                _difference(name, metric, paired)
                for name, row in {"all labels": one.overall, **one.labels}.items()
                for metric, paired in row.items()
            ],
        )
        for one in found
    ]
    return [Text(said), *tables]


def _difference(name: str, metric: str, one: Paired | None) -> tuple[str, ...]:
    if one is None:
        return (name, METRICS[metric], *[NONE] * 5)
    return (
        name,
        METRICS[metric],
        fixed(one.difference, 4),
        _interval(one.interval, 4),
        number(one.p, 2),
        fixed(one.effect, 2),
        number(one.subjects),
    )


def by_case(report: SegmentationReport) -> list[Block]:
    """Points for all cases, and the lowest by name."""
    names = list(report.models[0].labels)
    rows = [
        (
            label if len(report.models) == 1 else f"{label}, {place}",
            [one.dice for one in model.cases if one.name == label and one.dice is not None],
        )
        for label in names
        for place, model in enumerate(report.models, 1)
    ]
    dice_by_case: dict[str, dict[str, float | None]] = {}
    for one in report.models[0].cases:
        dice_by_case.setdefault(one.case, {})[one.name] = one.dice
    ordered = sorted(dice_by_case.items(), key=lambda item: _mean(item[1]))[:WORST]
    return [
        Picture(
            "dice.svg",
            spread_chart(rows, "Dice"),
            "Dice of each case, a row of points for each label",
            "Dice of each case; the upright mark is the mean."
            + (" Models by their numbers." if len(report.models) > 1 else ""),
        ),
        Table(
            f"Dice of the {len(ordered)} lowest cases of {report.models[0].name}; cases.csv has "
            "all of them, and the other scores",
            ("case", *names),
            [(case, *(fixed(dice[name], 3) for name in names)) for case, dice in ordered],
            folded=True,
        ),
    ]


def _mean(dice: dict[str, float | None]) -> float:
    known = [one for one in dice.values() if one is not None]
    return sum(known) / len(known) if known else 1.0


def worst_cases(report: SegmentationReport, worst: bytes | None) -> list[Block]:
    """The picture of the worst cases."""
    if worst is None:
        raise LeftOut("no case has a Dice")
    return [
        Picture(
            "worst.png",
            worst,
            "Outlines of truth and prediction over three slices of each case",
            f"Cases of the lowest mean Dice of {report.models[0].name}, the slice of each plane "
            "with most wrong voxels, 10 mm around what is labelled.",
            wide=True,
        )
    ]


def volume_agreement(report: SegmentationReport) -> list[Block]:
    """Bland-Altman plots."""
    first = report.models[0]
    panels = [
        Agreement(name, _differences(first, name), one.bias, one.limits)
        for name, label in first.labels.items()
        if (one := label.volume) is not None
    ]
    if not panels:
        raise LeftOut("no case holds any label")
    rows = [
        (name, model.name, number(one.bias), _interval(one.limits), number(one.cases))
        for model in report.models
        for name, label in model.labels.items()
        if (one := label.volume) is not None
    ]
    return [
        Picture(
            "volumes.svg",
            agreement_chart(panels, "mean of both (ml)", "prediction less truth (ml)"),
            "Difference of volumes against their mean, a panel for each label",
            f"Bland-Altman plots of {first.name}: bias, and dashed the limits of agreement.",
            wide=True,
        ),
        Table(
            "Volume, prediction less truth, in ml",
            ("label", "model", "bias", "limits of agreement", "cases"),
            rows,
        ),
    ]


def _differences(model: ModelReport, name: str) -> list[tuple[float, float]]:
    """Mean of the true and the predicted volume, and their difference, in ml, case by case."""
    return [
        ((one.truth_ml + one.predicted_ml) / 2, one.predicted_ml - one.truth_ml)
        for one in model.cases
        if one.name == name and one.state in HELD
        if one.truth_ml is not None and one.predicted_ml is not None
    ]


def calibration(report: SegmentationReport) -> list[Block]:
    """Reliability by chance."""
    several = len(report.models) > 1
    panels, rows = [], []
    for place, model in enumerate(report.models, 1):
        if (one := model.calibration) is None:
            continue
        panels.append(_reliability(f"model {place}" if several else "", one))
        rows.append((model.name, fixed(one.error, 3), number(one.voxels), percent(one.overlooked)))
    if not rows:
        raise LeftOut("finished label maps have no chances, or no case is annotated for all labels")
    return [
        Picture(
            "calibration.svg",
            line_chart(panels),
            "Share of right voxels against their chance",
            "Share of right voxels, in %, by the chance of their likeliest class: below the "
            "diagonal a network is too sure.",
            wide=True,
        ),
        Table(
            f"Voxels where all labels together have a chance of {percent(MIN_PROBABILITY)} or more",
            ("model", "expected calibration error", "voxels", "labelled voxels below"),
            rows,
        ),
    ]


def _reliability(title: str, one: Calibration) -> Panel:
    """Accuracy over confidence, bin by bin, beside the diagonal."""
    pairs = zip(one.confidence, one.accuracy, strict=True)
    curves = (
        Curve("as it should be", ((0, 0), (100, 100)), colour=GRID, dashed=True),
        Curve("found", [(100 * a, 100 * b) for a, b in pairs], marked=True),
    )
    return Panel(title, curves, across="chance of the likeliest class, %", percent=True)


def _protocol(report: SegmentationReport) -> Table:
    rows = []
    for key, value in report.protocol.items():
        if key == "models":
            rows += [(f"model {name}", str(about["digest"])) for name, about in value.items()]
        elif key == "labels":
            rows.append((key, ", ".join(f"{v} {n}" for v, n in value.items())))
        else:
            rows.append((key, str(value)))
    return Table("How each figure is taken", (), rows, words=True)

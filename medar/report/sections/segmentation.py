"""Evaluation of label maps: its own page, and its sections in the report about a run."""

from collections.abc import Callable, Sequence

from medar.errors import MedarError
from medar.evaluation.segmentation.metrics import HELD, MIN_PROBABILITY, Calibration
from medar.evaluation.segmentation.report import Comparison, ModelReport, SegmentationReport
from medar.evaluation.segmentation.statistics import Interval, Paired
from medar.records import EVALUATION
from medar.report.blocks import (
    Block,
    Cell,
    Charts,
    KeyFigure,
    KeyFigures,
    Notes,
    Picture,
    Report,
    Table,
    Text,
    make_sections,
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
from medar.report.folder import RunFolder
from medar.report.formatting import (
    MISSING,
    SPLIT_NAMES,
    format_count,
    format_fixed,
    format_number,
    format_percent,
)

METRICS = {"dice": "Dice", "hd95": "HD95 (mm)", "nsd": "NSD"}
MAX_CASES = 20
"""Rows of the table of cases."""
MAX_COLUMNS = 6
"""Labels with a column each in the table of cases."""
LOWEST = 3
"""Labels named per case where there are more."""
WORST_CASES = f"{EVALUATION}/report/worst.png"


def segmentation_page(report: SegmentationReport, worst: bytes | None) -> Report:
    """The page about an evaluation of label maps.

    Args:
        report: what `evaluate_segmentation` returned.
        worst: PNG of the first model's worst cases; None if there is none.
    """
    parts: list[tuple[str, str, Callable[[], list[Block]]]] = [
        ("summary", "Summary", lambda: means(report)),
        ("labels", "By label", lambda: [by_label(one) for one in report.models]),
        ("comparison", "Comparison", lambda: comparisons(report.comparisons)),
        ("cases", "By case", lambda: by_case(report)),
        ("worst", "Worst cases", lambda: worst_cases(report, worst)),
        ("volume", "Volumes", lambda: volume_agreement(report)),
        ("calibration", "Calibration", lambda: calibration(report)),
        ("protocol", "Protocol", lambda: [_protocol(report)]),
    ]
    sections, missing = make_sections(parts)
    return Report(
        title="Evaluation of label maps",
        subtitle=f"{format_count(report.cases, 'case')} of "
        f"{format_count(report.subjects, 'subject')}, {SPLIT_NAMES[report.split]} split",
        warnings=[],
        sections=sections,
        missing=missing,
    )


def run_scores(run: RunFolder) -> list[Block]:
    """Scores of the label maps of a run: means, by label and by case."""
    report = run.segmentation_report()
    return [*means(report), *map(by_label, report.models), *by_case(report)]


def run_worst_cases(run: RunFolder) -> list[Block]:
    """Worst cases of a run."""
    return worst_cases(run.segmentation_report(), run.png(WORST_CASES, "evaluate"))


def run_volumes(run: RunFolder) -> list[Block]:
    """Predicted and true volumes of a run's labels."""
    return volume_agreement(run.segmentation_report())


def run_calibration(run: RunFolder) -> list[Block]:
    """Calibration of a run's segmentation network."""
    return calibration(run.segmentation_report())


def means(report: SegmentationReport) -> list[Block]:
    """Mean scores of each model."""
    first, several = report.models[0], len(report.models) > 1
    nsd = f"NSD at {format_number(report.tolerance)} mm"
    figures = [
        KeyFigure("Dice", format_fixed(first.dice_mean, 3), _interval(first.dice_interval)),
        KeyFigure(
            "HD95", f"{format_fixed(first.hd95_mean, 2)} mm", _interval(first.hd95_interval, 2)
        ),
        KeyFigure(nsd, format_fixed(first.nsd_mean, 3), _interval(first.nsd_interval)),
    ]
    suffix = " of the first model" if several else ""
    text = (
        f"Scores{suffix}, averaged over cases for each label, then over labels; 95 % intervals in "
        "brackets."
    )
    blocks: list[Block] = [KeyFigures(figures), Text(text)]
    rows = [
        (
            str(number),
            one.name,
            f"{format_fixed(one.dice_mean, 3)} {_interval(one.dice_interval)}",
            f"{format_fixed(one.hd95_mean, 2)} {_interval(one.hd95_interval, 2)}",
            f"{format_fixed(one.nsd_mean, 3)} {_interval(one.nsd_interval)}",
        )
        for number, one in enumerate(report.models, 1)
    ]
    if several:
        blocks.append(Table("Models", ("", "model", "Dice", "HD95 (mm)", nsd), rows))
    return [*blocks, *([Notes(report.notes)] if report.notes else [])]


def _interval(pair: Interval | None, decimals: int = 3) -> str:
    return (
        MISSING
        if pair is None
        else f"[{format_fixed(pair[0], decimals)}, {format_fixed(pair[1], decimals)}]"
    )


def by_label(model: ModelReport) -> Table:
    """Scores of one model, one row per label."""
    return Table(
        f"{model.name}; 95 % intervals below the scores",
        ("label", "Dice", "HD95 (mm)", "NSD", "cases", "missed", "false positive"),
        [
            (
                name,
                _score(one.dice, one.dice_interval),
                _score(one.hd95, one.hd95_interval, 2),
                _score(one.nsd, one.nsd_interval),
                *(
                    Cell(format_number(count), count)
                    for count in (one.cases, one.missed, one.false_positive)
                ),
            )
            for name, one in model.labels.items()
        ],
        sortable=True,
    )


def _score(value: float | None, interval: Interval | None, decimals: int = 3) -> str | Cell:
    if value is None:
        return MISSING
    return Cell(format_fixed(value, decimals), value, _interval(interval, decimals))


def comparisons(compared: Sequence[Comparison]) -> list[Block]:
    """Differences between each further model and the first."""
    if not compared:
        raise MedarError("only one model was evaluated")
    text = (
        "Differences on the same cases. p: two-sided Wilcoxon signed-rank test over subjects, not "
        "corrected for multiple testing. Effect: rank-biserial correlation."
    )
    tables = [
        Table(
            f"{one.second} minus {one.first}",
            ("", "metric", "difference", "95 %", "p", "effect", "subjects"),
            [
                _difference(name, metric, paired)
                for name, row in {"all labels": one.overall, **one.labels}.items()
                for metric, paired in row.items()
            ],
        )
        for one in compared
    ]
    return [Text(text), *tables]


def _difference(name: str, metric: str, one: Paired | None) -> tuple[str, ...]:
    if one is None:
        return (name, METRICS[metric], *[MISSING] * 5)
    return (
        name,
        METRICS[metric],
        format_fixed(one.difference, 4),
        _interval(one.interval, 4),
        format_number(one.p, 2),
        format_fixed(one.effect, 2),
        format_number(one.subjects),
    )


def by_case(report: SegmentationReport) -> list[Block]:
    """Dice of all cases, and the lowest ones by name."""
    names = list(report.models[0].labels)
    rows = [
        (
            label if len(report.models) == 1 else f"{label}, {number}",
            [one.dice for one in model.cases if one.name == label and one.dice is not None],
        )
        for label in names
        for number, model in enumerate(report.models, 1)
    ]
    dice_by_case: dict[str, dict[str, float | None]] = {}
    for one in report.models[0].cases:
        dice_by_case.setdefault(one.case, {})[one.name] = one.dice
    ordered = sorted(dice_by_case.items(), key=lambda item: _mean(item[1]))[:MAX_CASES]
    return [
        Picture(
            "dice.svg",
            spread_chart(rows, "Dice"),
            "Dice of each case, one row of points per label.",
            "Dice of each case. The vertical line is the mean."
            + (" Numbers refer to the models." if len(report.models) > 1 else ""),
        ),
        _lowest_cases(report.models[0].name, names, ordered),
    ]


def _lowest_cases(
    model: str, names: Sequence[str], ordered: Sequence[tuple[str, dict[str, float | None]]]
) -> Table:
    """Cases of lowest Dice: one column per label, or the lowest of many labels."""
    headings: tuple[str, ...] = ("case", *names)
    rows = [(case, *(format_fixed(dice[name], 3) for name in names)) for case, dice in ordered]
    if len(names) > MAX_COLUMNS:
        headings = ("case", "mean Dice", f"lowest of {len(names)} labels")
        rows = [
            (case, format_fixed(_mean(dice), 3), _lowest_labels(dice)) for case, dice in ordered
        ]
    return Table(
        f"The {len(ordered)} cases of lowest Dice of {model}; cases.csv lists all cases and scores",
        headings,
        rows,
        folded=True,
        words=len(names) > MAX_COLUMNS,
    )


def _lowest_labels(dice: dict[str, float | None]) -> str:
    known = sorted((value, name) for name, value in dice.items() if value is not None)
    return ", ".join(f"{name} {format_fixed(value, 3)}" for value, name in known[:LOWEST])


def _mean(dice: dict[str, float | None]) -> float:
    values = [one for one in dice.values() if one is not None]
    return sum(values) / len(values) if values else 1.0


def worst_cases(report: SegmentationReport, worst: bytes | None) -> list[Block]:
    """The picture of the worst cases."""
    if worst is None:
        raise MedarError("no case has a Dice score")
    return [
        Picture(
            "worst.png",
            worst,
            "Outlines of the true label and the prediction on three slices of each case.",
            f"Cases of lowest mean Dice of {report.models[0].name}. For each plane, the slice with "
            "the most wrong voxels, cropped to 10 mm around the labels. Solid: true label; "
            "dashed: prediction.",
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
        raise MedarError("no case contains any label")
    rows = [
        (name, model.name, format_number(one.bias), _interval(one.limits), format_number(one.cases))
        for model in report.models
        for name, label in model.labels.items()
        if (one := label.volume) is not None
    ]
    return [
        Charts(
            "volumes",
            agreement_chart(panels, "mean of both volumes (ml)", "prediction minus truth (ml)"),
            "Difference of volumes against their mean, one panel per label.",
            f"Bland-Altman plots of {first.name}. Solid: bias; dashed: limits of agreement.",
        ),
        Table(
            "Difference in volume, prediction minus truth, in ml",
            ("label", "model", "bias", "limits of agreement", "cases"),
            rows,
        ),
    ]


def _differences(model: ModelReport, name: str) -> list[tuple[float, float]]:
    """Mean and difference of the predicted and the true volume in ml, for each case."""
    return [
        ((one.truth_ml + one.predicted_ml) / 2, one.predicted_ml - one.truth_ml)
        for one in model.cases
        if one.name == name and one.state in HELD
        if one.truth_ml is not None and one.predicted_ml is not None
    ]


def calibration(report: SegmentationReport) -> list[Block]:
    """Reliability diagrams."""
    several = len(report.models) > 1
    panels, rows = [], []
    for number, model in enumerate(report.models, 1):
        if (one := model.calibration) is None:
            continue
        panels.append(_reliability(f"model {number}" if several else "", one))
        rows.append(
            (
                model.name,
                format_fixed(one.error, 3),
                format_number(one.voxels),
                format_percent(one.overlooked),
            )
        )
    if not rows:
        raise MedarError(
            "no probabilities: label maps were evaluated, or no case is annotated for all labels"
        )
    return [
        Charts(
            "calibration",
            line_chart(panels),
            "Accuracy of voxels against the predicted probability.",
            "Accuracy by the probability of the predicted class. Below the diagonal, the network "
            "is overconfident.",
        ),
        Table(
            "Voxels where the labels have a total probability of at least "
            f"{format_percent(MIN_PROBABILITY)}",
            ("model", "expected calibration error", "voxels", "labelled voxels excluded"),
            rows,
        ),
    ]


def _reliability(title: str, one: Calibration) -> Panel:
    """Accuracy against confidence in bins, with the diagonal."""
    pairs = zip(one.confidence, one.accuracy, strict=True)
    curves = (
        Curve("perfect calibration", ((0, 0), (100, 100)), colour=GRID, dashed=True),
        Curve("network", [(100 * a, 100 * b) for a, b in pairs], marked=True),
    )
    return Panel(title, curves, x_label="probability of the predicted class (%)", percent=True)


def _protocol(report: SegmentationReport) -> Table:
    rows = []
    for key, value in report.protocol.items():
        if key == "models":
            rows += [(f"model {name}", str(about["digest"])) for name, about in value.items()]
        elif key == "labels":
            rows.append((key, ", ".join(f"{v} {n}" for v, n in value.items())))
        else:
            rows.append((key, str(value)))
    return Table("How each value is computed", (), rows, words=True)

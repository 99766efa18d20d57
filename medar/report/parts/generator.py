"""The generator: how well it learnt to predict tokens, and what it can be asked for."""

from typing import Any

from medar.report.blocks import Block, LeftOut, Picture, Table, Text
from medar.report.charts import MUTED, ORANGE, Bars, Curve, Panel, bar_chart
from medar.report.folder import RunFolder
from medar.report.parts.tokenizer import drawn, points
from medar.report.words import counted, listed, number

SAMPLES = 12
"""Samples whose conditions are told one by one."""


def training_of_generator(run: RunFolder) -> list[Block]:
    """Its curves, and the last evaluation by scale."""
    lines = run.lines("generator/metrics.jsonl", "generator")
    known = points(lines, "validation/cross_entropy")
    marginal = points(lines, "validation/marginal")
    curves = [
        Curve("training", points(lines, "train/loss"), colour=MUTED),
        Curve("validation", known, marked=True),
        Curve("frequencies of codes alone", marginal, colour=ORANGE, dashed=True),
    ]
    panels = [
        Panel("cross-entropy (nats a token)", [one for one in curves if one.points]),
        Panel(
            "validation tokens predicted (%)",
            [Curve("share", [(s, 100 * v) for s, v in points(lines, "validation/accuracy")],
                   marked=True)],
        ),
    ]  # fmt: skip
    ends = [number(known[place][1]) for place in (0, -1)] if known else []
    blocks: list[Block] = [
        Picture(
            "generator-curves.svg",
            drawn(panels),
            f"Line charts over training steps: cross-entropy in nats a token, of validation "
            f"{' to '.join(ends) or 'not known'}; and the "
            "share of validation tokens that the generator holds likeliest.",
            "Training of the generator. Dashed: what a model would reach that knows how often each "
            "code occurs, and nothing else. Validation that rises while training falls means that "
            "cases are learnt by heart; the weights of the best evaluation are the ones kept.",
            wide=True,
        )
    ]
    evaluated = [line for line in lines if line.get("validation/cross_entropy/scale_0") is not None]
    return [*blocks, _by_scale(evaluated[-1])] if evaluated else blocks


def _by_scale(line: dict[str, Any]) -> Picture:
    """The last evaluation, scale by scale."""
    names = [name for name in line if name.startswith("validation/cross_entropy/scale_")]
    values = [line[name] for name in names]
    marks = [line.get(name.replace("cross_entropy", "marginal")) for name in names]
    whole = [one for one in marks if one is not None]
    bars = Bars(
        "cross-entropy by scale (nats a token)",
        [str(place) for place in range(1, len(names) + 1)],
        values,
        marks=whole if len(whole) == len(values) else (),
        legend=("generator", "frequencies of codes alone"),
        across="scale, coarse to fine",
    )
    return Picture(
        "generator-scales.svg",
        bar_chart([bars]),
        "Bar chart by scale, coarse to fine: cross-entropy "
        f"{listed([number(value) for value in values])} nats a token.",
        "The last evaluation, scale by scale. The gap between a bar and its mark is what the "
        "generator has learnt beyond how often each code occurs.",
    )


def conditions(run: RunFolder) -> list[Block]:
    """What the generator can be asked for, and what the samples were asked for."""
    condition = run.settings("generator/config.yaml", "generator")["task"]["model"]["condition"]
    attributes = condition["attributes"]
    has_map = condition["map"] != "none"
    if not attributes and not has_map:
        raise LeftOut("the generator was trained without conditions")
    rows = [(str(one["name"]), _values(one)) for one in attributes]
    if has_map:
        rows.append(("map", f"a {condition['map']} map that the volume follows"))
    asked = [
        (path.stem, _said(run.object(f"samples/{path.name}", "synthesize")["attributes"]))
        for path in sorted((run.path / "samples").glob("sample_*.json"))[:SAMPLES]
    ]
    blocks: list[Block] = [
        Text(
            f"The generator takes {counted(len(rows), 'condition')}. What a sample was asked for "
            "is in the JSON file beside it."
        ),
        Table("What it can be asked for", ("condition", "values"), rows, words=True),
    ]
    if not asked:
        return blocks
    caption = "What the first samples were asked for"
    return [*blocks, Table(caption, ("sample", "conditions"), asked, words=True, folded=True)]


def _values(attribute: dict[str, Any]) -> str:
    if attribute["values"]:
        return ", ".join(map(str, attribute["values"]))
    mean, deviation = number(attribute["mean"]), number(attribute["deviation"])
    return f"a number; {mean} ± {deviation} in training"


def _said(attributes: dict[str, Any]) -> str:
    pairs = [f"{name}: {value}" for name, value in attributes.items()]
    return ", ".join(pairs) or "nothing"

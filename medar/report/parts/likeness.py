"""How good the synthetic volumes are as a set: distances with floors, diversity, copies."""

from typing import Any

from medar.report.blocks import Block, KeyFigure, KeyFigures, Notes, Picture, Table, Text
from medar.report.charts import Distance, distance_chart
from medar.report.folder import RunFolder
from medar.report.words import amount, counted, fixed, interval, number, percent

GENERATION = "evaluation/report.json"

NAMED = 20
"""Suspected copies that are named, at most."""

NEARER = 0.5
"""Share of the floor below which a set lies suspiciously near the training volumes."""


def distances(run: RunFolder) -> list[Block]:
    """How far the synthetic set is from the training set, and how far real ones are."""
    report = run.object(GENERATION, "evaluate")
    found = report["distances"]
    blocks: list[Block] = [
        Text(
            f"{counted(report['volumes'], 'synthetic volume')} against "
            f"{counted(report['reference'], 'real one')} of the training split. The floor is what "
            f"{counted(report['held_out'], 'held-out real volume')} get against the same reference "
            "at the same number: two finite sets of real volumes are not at distance 0, and no "
            "generator can be expected below it."
        ),
        Notes([f"{name}: {_sentence(one)}" for name, one in found.items()]),
    ]
    drawn = [
        Distance(name, one["frechet"], one["frechet_interval"], one["frechet_floor"])
        for name, one in found.items()
        if one["frechet"] > 0 and (one["frechet_floor"] is None or one["frechet_floor"] > 0)
    ]
    if drawn:
        blocks.append(_chart(drawn))
    intensities = (
        f"Intensities: the voxels' distribution is {_amount(report, 'intensity_distance')} away "
        "(Wasserstein distance), that of held-out real volumes "
        f"{_amount(report, 'intensity_floor')}."
    )
    return [
        *blocks,
        _table(found),
        Text(
            "Intervals (95 %, bootstrap over the synthetic volumes) say how much depends on which "
            "volumes were drawn, not on which real ones there were."
        ),
        Text(intensities),
        *([Notes(report["notes"])] if report["notes"] else []),
    ]


def _table(found: dict[str, dict[str, Any]]) -> Table:
    """A row a set of features."""
    rows = [
        (f"{name} ({one['features']})", number(one["frechet"]), interval(one["frechet_interval"]),
         number(one["frechet_floor"]), number(one["kernel"]), interval(one["kernel_interval"]),
         number(one["kernel_floor"]))
        for name, one in found.items()
    ]  # fmt: skip
    headings = ("features (number)", "Frechet", "95 %", "floor", "kernel", "95 %", "floor")
    return Table("Distances from the training volumes; smaller is nearer", headings, rows)


def _amount(report: dict[str, Any], key: str) -> str:
    return " ".join(amount(report[key], report["intensity_unit"])).strip()


def _chart(drawn: list[Distance]) -> Picture:
    said = "; ".join(
        f"{one.name} {number(one.value)}"
        + (f", floor {number(one.floor)}" if one.floor is not None else "")
        for one in drawn
    )
    return Picture(
        "distances.svg",
        distance_chart(drawn, "Frechet distance from the training volumes (logarithmic)"),
        f"Chart of Frechet distances on a logarithmic axis: {said}.",
        "Frechet distance of the synthetic volumes (circle, with its 95 % interval) and of "
        "held-out real volumes (diamond, the floor). The grey line between them is what "
        "is left to learn.",
    )


def against_the_floor(one: dict[str, Any]) -> str:
    """What a distance means beside its floor, in a few words."""
    floor, span = one["frechet_floor"], one["frechet_interval"]
    if not floor:
        return "no floor to compare with"
    if one["frechet"] < NEARER * floor:
        return "nearer than real volumes are"
    if span and span[0] <= floor <= span[1]:
        return "not told apart"
    return f"{number(one['frechet'] / floor, 2)} times as far"


def _sentence(one: dict[str, Any]) -> str:
    meaning = against_the_floor(one)
    if "times" in meaning:
        return f"synthetic volumes are {meaning} as held-out real ones."
    return {
        "nearer than real volumes are": "synthetic volumes lie much nearer to the training volumes "
        "than new real ones do; look at the search for copies.",
        "not told apart": "at this number, synthetic volumes and held-out real ones are not told "
        "apart.",
    }.get(meaning, f"{meaning}.")


def diversity(run: RunFolder) -> list[Block]:
    """Whether the volumes differ as real ones do."""
    report = run.object(GENERATION, "evaluate")
    made, real = report["ms_ssim"], report["ms_ssim_real"]
    shown, beside = fixed(made, 3), fixed(real, 3)
    likeness = (
        "as alike as" if shown == beside else f"{'more' if made > real else 'less'} alike than"
    )
    return [
        KeyFigures(
            [
                KeyFigure("MS-SSIM of synthetic pairs", shown),
                KeyFigure("MS-SSIM of real pairs", beside, "training volumes"),
            ]
        ),
        Text(
            "Mean likeness of random pairs (1 is the same volume). Synthetic volumes are "
            f"{likeness} real ones are. Much above the real value means that one volume is made "
            "over and over; much below it that they have no anatomy in common."
        ),
    ]


def copies(run: RunFolder) -> list[Block]:
    """Whether training volumes come back."""
    report = run.object(GENERATION, "evaluate")
    audits = report["memorisation"]
    found = suspects(report)
    rows = [
        (name, number(one["median"]), number(one["median_held_out"]), number(one["ratio"]),
         percent(one["fraction_nearer"]), str(len(one["suspects"])))
        for name, one in audits.items()
    ]  # fmt: skip
    headings = ("distance by", "median", "held out", "ratio", "nearer", "suspects")
    verdict = "No synthetic volume is a suspected copy of a training volume."
    if found:
        verdict = (
            f"{counted(len(found), 'synthetic volume')} may be copied: look at each beside its "
            "training case before anything is shared."
        )
    blocks: list[Block] = [
        Text(
            f"{verdict} Each synthetic volume's distance to its nearest training volume is set "
            "beside the distances of held-out real volumes to theirs."
        ),
        Table("Nearest training volume", headings, rows),
    ]
    return [
        *blocks,
        *([_named(found)] if found else []),
        Text(
            "A ratio near 1 means volumes as new as real ones. “Nearer” is the share below the "
            "distance that 1 % of held-out volumes lie below; suspects are below half of it. "
            "Features miss noisy copies and voxels miss moved ones; neither finds a copied part."
        ),
    ]


def _named(found: list[tuple[int, str, str, float]]) -> Table:
    """What to look at."""
    some = f"; the first {NAMED} of {len(found)}" if len(found) > NAMED else ""
    return Table(
        f"Suspected copies, by each distance the nearest first{some}",
        ("volume, from 0", "training case", "distance by", "distance"),
        [(str(index), case, space, number(far)) for index, case, space, far in found[:NAMED]],
        words=True,
    )


def suspects(report: dict[str, Any]) -> list[tuple[int, str, str, float]]:
    """Volume, training case, space and distance of each suspected copy; a volume once."""
    found: dict[int, tuple[int, str, str, float]] = {}
    for space, audit in report["memorisation"].items():
        for one in audit["suspects"]:
            found.setdefault(one["index"], (one["index"], one["case"], space, one["distance"]))
    return list(found.values())

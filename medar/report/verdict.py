"""The verdict on a run: good, rough or poor, the reason in one sentence, and what to run next.

Synthesis: by the Frechet distance of the samples from the training volumes, in multiples of its
floor, the distance of held-out real volumes at the same sample size; the extractor with the largest
multiple counts. If the reconstructions of real volumes have at least `LIMITED` of the distance of
the samples, no generator could do much better: the tokenizer is the limit, else the generator.
Samples in which the grid of the decoder's patches shows are rough at best: few features are about
it, but every eye sees it.

Segmentation: by the mean Dice over the labels, for which there is no floor; the bounds are what the
field takes for usable and for a beginning.
"""

import math
import shlex
from typing import Any, NamedTuple

from medar.errors import MedarError
from medar.evaluation.distances import SetDistance
from medar.evaluation.generation.evaluate import GenerationReport
from medar.records import CONFIG_FILE, DETAIL, GENERATOR, SEGMENTATION, SEGMENTER, TOKENIZER
from medar.report.blocks import Grade, Verdict
from medar.report.folder import Metrics, RunFolder
from medar.report.formatting import format_count, format_duration, format_fixed, format_number
from medar.report.sections.generation import TOO_CLOSE, suspected_copies
from medar.report.sections.training import DICE
from medar.settings import parse_yaml

GOOD, ROUGH = 1.5, 5.0
"""Largest multiples of the floor. At twice the floor of a few volumes soft tissue can be all noise,
which every eye sees; at five times blur is seen at once."""
LIMITED = 0.5
"""Fraction of the samples' distance that reconstructions must have to be the limit."""
GRID = 1.1
"""Largest multiple of the floor of the grid artifact, by the lower end of its interval."""
AS_FAR = "as far from the training data as real volumes are"
FEW = 20
"""With fewer volumes the reason says that they are few."""
GOOD_DICE, ROUGH_DICE = 0.8, 0.6
FACTORS: dict[Grade, float] = {"good": 1, "rough": 2, "poor": 4}
"""How much longer the next command trains."""


class Training(NamedTuple):
    """A training of the run, in words and as the next command changes it."""

    key: str
    """Of its settings in the recipe, and the name of its folder."""
    stage: str
    noun: str


TRAININGS = {
    TOKENIZER: Training("tokenizer", "tokenizer", "tokenizer"),
    DETAIL: Training("detail", "detail", "detail decoder"),
    GENERATOR: Training("generator", "generator", "generator"),
    SEGMENTER: Training("segmentation", "train", "network"),
}
"""By folder."""


def verdict(run: RunFolder) -> Verdict:
    """The verdict on a run.

    Raises:
        MedarError: it has not been evaluated, or without a floor.
    """
    return _segmentation(run) if run.recipe == SEGMENTATION else _synthesis(run)


def _synthesis(run: RunFolder) -> Verdict:
    report = run.generation_report()
    ratios = {
        name: ratio
        for name, one in report.distances.items()
        if (ratio := _ratio(one.frechet, one.frechet_floor)) is not None
    }
    if not ratios:
        raise MedarError("no distance has a floor: too few real volumes were held out")
    name = max(ratios, key=lambda one: ratios[one])
    grade, why = _graded(report.distances[name], ratios[name], name)
    grid = _visible_grid(report)
    too_close = ratios[name] < TOO_CLOSE and grade != "good"
    folder = GENERATOR if too_close else _limit(run)
    if grid and grade == "good":
        grade, folder = "rough", DETAIL if DETAIL in run.expected else TOKENIZER
        grid += f": {_had(run, folder)}"
    elif grade != "good":
        if folder == TOKENIZER:
            multiple = _times(_ratio(*_reconstructions(run)))
            blamed = (TOKENIZER, DETAIL) if run.detail_report() else (TOKENIZER,)
            why = f"reconstructions are {multiple} {AS_FAR}"
        else:
            blamed = (GENERATOR,)
        why += f": {' and '.join(_had(run, one) for one in blamed)}"
        if folder == TOKENIZER and DETAIL not in run.expected:
            why += ", and there is no detail decoder"
    why += grid
    copies = len(suspected_copies(report))
    if copies:
        why += f"; {format_count(copies, 'volume')} may be copied from the training data"
    if report.volumes < FEW:
        why += f"; a verdict on {format_count(report.volumes, 'volume')} is uncertain"
    here = shlex.quote(str(run.path))
    if grade == "good":
        return Verdict(grade, why, f"medar synthesize {here} {here}-samples -n 100")
    # Samples too close to the training volumes are learnt by heart, the more the longer.
    return Verdict(grade, why, _longer(run, folder, 0.5 if too_close else FACTORS[grade]))


def _graded(one: SetDistance, ratio: float, name: str) -> tuple[Grade, str]:
    """Grade of the samples, and how far they are."""
    interval, floor = one.frechet_interval, one.frechet_floor or 0.0
    if interval and interval[0] <= floor <= interval[1]:
        return "good", f"{name} cannot tell samples from real volumes"
    if ratio < TOO_CLOSE:
        return "rough", "samples are closer to the training volumes than new real ones are"
    grade: Grade = "good" if ratio <= GOOD else "rough" if ratio <= ROUGH else "poor"
    return grade, f"samples are {_times(ratio)} {AS_FAR} ({name})"


def _visible_grid(report: GenerationReport) -> str:
    """A reason if the grid of the decoder's patches shows in the samples, else nothing."""
    interval, floor = report.grid_artifact_interval, report.grid_artifact_floor
    if not interval or not floor or interval[0] <= GRID * floor:
        return ""
    value = format_fixed(report.grid_artifact or interval[0], 2)
    return (
        f"; the grid of patches is visible (grid artifact {value}, floor {format_fixed(floor, 2)})"
    )


def _limit(run: RunFolder) -> str:
    """The folder of the training that limits the samples: the tokenizer's or the generator's."""
    samples = next(iter(run.generation_report().distances.values())).frechet
    try:
        distance, floor = _reconstructions(run)
    except MedarError:
        return GENERATOR
    ratio = _ratio(distance, floor)
    far = ratio is not None and ratio > GOOD
    return (
        TOKENIZER if far and distance is not None and distance >= LIMITED * samples else GENERATOR
    )


def _reconstructions(run: RunFolder) -> tuple[float | None, float | None]:
    """Frechet distance and floor of what the decoder makes of real volumes."""
    report = run.detail_report() or run.reconstruction_report()
    return report.frechet, report.frechet_floor


def _segmentation(run: RunFolder) -> Verdict:
    model = run.segmentation_report().models[0]
    if model.dice_mean is None:
        raise MedarError("no label was found in any case")
    dice = model.dice_mean
    grade: Grade = "good" if dice >= GOOD_DICE else "rough" if dice >= ROUGH_DICE else "poor"
    why = f"the mean Dice is {format_fixed(dice, 2)}"
    scored = {name: one.dice for name, one in model.labels.items() if one.dice is not None}
    if len(scored) > 1:
        worst = min(scored, key=lambda name: scored[name])
        why += f", of {worst} alone {format_fixed(scored[worst], 2)}"
    here = shlex.quote(str(run.path))
    if grade == "good":
        return Verdict(grade, why, f"medar segment {here} SCAN.nii.gz LABELS.nii.gz")
    why += f": {_had(run, SEGMENTER)}"
    points = run.metrics(SEGMENTER, "train").points(DICE)
    if len(points) > 1 and points[-1][1] < max(value for _, value in points):
        labelled = sum(bool(case.annotated) and case.split == "train" for case in run.cases())
        why += f" and was no longer improving, with {format_count(labelled, 'labelled case')}"
        data = shlex.quote(str(run.manifest().root))
        return Verdict(grade, why, f"medar data check {data} --deep")
    return Verdict(grade, why, _longer(run, SEGMENTER, FACTORS[grade]))


def _had(run: RunFolder, folder: str) -> str:
    """How long a training was: "the tokenizer had 431 steps in 3.1 min"."""
    one = TRAININGS[folder]
    metrics: Metrics = run.metrics(folder, one.stage)
    time = "" if metrics.seconds is None else f" in {format_duration(metrics.seconds)}"
    return f"the {one.noun} had {format_count(metrics.steps, 'step')}{time}"


def _longer(run: RunFolder, folder: str, factor: float) -> str:
    """The command that trains again, for `factor` times as long."""
    one = TRAININGS[folder]
    here, config = (shlex.quote(str(path)) for path in (run.path, run.path / CONFIG_FILE))
    command = f"medar run {run.recipe} {config} --out {here}"
    settings = _settings(run)
    budget = settings.get("max_minutes")
    if budget:
        return f"{command} --max-minutes {factor * float(budget):g} --force {one.stage}"
    training = (settings.get(one.key) or {}).get("training") or {}
    steps, minutes = training.get("steps"), training.get("minutes")
    trained = run.metrics(folder, one.stage).steps
    changes = []
    if steps and (not minutes or trained >= steps):
        changes.append(f"{one.key}.training.steps={round(factor * int(steps))}")
    if minutes:
        changes.append(f"{one.key}.training.minutes={factor * float(minutes):g}")
    return " ".join([command, *changes])


def _settings(run: RunFolder) -> dict[str, Any]:
    values = parse_yaml(run.text(CONFIG_FILE, "prepare"), str(run.path / CONFIG_FILE))
    return values if isinstance(values, dict) else {}


def _ratio(distance: float | None, floor: float | None) -> float | None:
    """A distance in multiples of its floor; None without one."""
    return distance / floor if distance is not None and floor and math.isfinite(floor) else None


def _times(ratio: float | None) -> str:
    return f"{format_number(ratio, 2)} times"

"""In short: what was done, in a paragraph, and the numbers that sum it up."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from medar.errors import MedarError
from medar.report.blocks import Block, KeyFigure, KeyFigures, LeftOut, Text
from medar.report.folder import SEGMENTATION, SYNTHESIS, UNEXPECTED, RunFolder
from medar.report.parts.data import cases_of, modalities, origin
from medar.report.parts.labelmaps import judged
from medar.report.parts.likeness import GENERATION, against_the_floor, suspects
from medar.report.parts.tokenizer import RECONSTRUCTION
from medar.report.words import SPLITS, counted, duration, fixed, number, sides

T = TypeVar("T")


def overview(run: RunFolder) -> list[Block]:
    """What was done, as far as the run came."""
    short = SHORT.get(run.recipe, SHORT[SYNTHESIS])
    sentences = [said for one in short.sentences if (said := _try(run, one))]
    if not sentences:
        raise LeftOut("no stage has left anything yet")
    figures = [figure for one in short.figures if (figure := _try(run, one))]
    blocks: list[Block] = [Text(" ".join(sentences))]
    return [*blocks, KeyFigures(figures)] if figures else blocks


def _try(run: RunFolder, make: Callable[[RunFolder], T]) -> T | None:
    """What a stage has to say, or None where it left nothing whole; the sections say why."""
    try:
        return make(run)
    except (LeftOut, MedarError, *UNEXPECTED):
        return None


def _of_data(run: RunFolder) -> str:
    cases = cases_of(run)
    plan = run.settings("prepared/plan.yaml", "prepare")
    what = counted(len(cases), f"{modalities(cases)} volume".strip())
    form = f"{sides(plan['size'])} voxels of {sides(plan['spacing'])} mm"
    if plan["mode"] == "patch":
        return (
            f"{what} of {origin(run)} were resampled to {sides(plan['spacing'])} mm; models see "
            f"patches of {sides(plan['size'])} voxels."
        )
    return f"{what} of {origin(run)} were brought to {form}."


def _of_tokenizer(run: RunFolder) -> str:
    model = run.settings("tokenizer/config.yaml", "tokenizer")["task"]["model"]
    grids = model["schedule"]["grids"]
    tokens = sum(math.prod(grid) for grid in grids)
    lines = run.lines("tokenizer/metrics.jsonl", "tokenizer")
    return (
        f"A tokenizer{_trained(lines)} writes each as {counted(tokens, 'token')}: "
        f"{counted(len(grids), 'grid')}, coarse to fine, from {sides(grids[0])} to "
        f"{sides(grids[-1])}."
    )


def _of_generator(run: RunFolder) -> str:
    task = run.settings("generator/config.yaml", "generator")["task"]
    parameters = f"{task['parameters'] / 1e6:.3g} million parameters"
    lines = run.lines("generator/metrics.jsonl", "generator")
    return (
        f"A generator with {parameters}{_trained(lines)} learnt to predict the tokens "
        "of each grid from those of the coarser ones, all at once."
    )


def _of_samples(run: RunFolder) -> str:
    count = len(list(run.need("samples", "synthesize").glob("sample_*.json")))
    if not count:
        raise LeftOut("no sample")
    return f"The generator made {counted(count, 'synthetic volume')}."


def _of_evaluation(run: RunFolder) -> str:
    report = run.object(GENERATION, "evaluate")
    return (
        f"In the evaluation, {counted(report['volumes'], 'synthetic volume')} were compared with "
        f"{counted(report['reference'], 'real one')} of the training split, beside "
        f"{counted(report['held_out'], 'real one')} that no model was trained on."
    )


def _trained(lines: list[dict[str, Any]]) -> str:
    """How long a model was trained, as an insertion."""
    if not lines:
        return ""
    last: dict[str, Any] = lines[-1]
    seconds = [line["seconds"] for line in lines if line.get("seconds") is not None]
    took = f" in {duration(seconds[-1])}" if seconds else ""
    return f", trained for {counted(last['step'], 'step')}{took},"


def _of_backbone(run: RunFolder) -> str:
    task = run.settings("pretrained/config.yaml", "pretrain")["task"]
    lines = run.lines("pretrained/metrics.jsonl", "pretrain")
    return (
        f"A {task['backbone']['kind']} backbone{_trained(lines)} was pretrained by "
        f"“{task['pretext']['kind']}”, without a label."
    )


def _of_network(run: RunFolder) -> str:
    task = run.settings("segmenter/config.yaml", "train")["task"]
    lines = run.lines("segmenter/metrics.jsonl", "train")
    begun = "pretrain" in run.expected and run.holds("pretrained/model")
    start = "from that backbone" if begun else "from scratch"
    share = task["data"]["labels"]
    labels = "all labels" if share == 1 else f"the labels of {100 * share:.3g} % of the subjects"
    return (
        f"A network with a {task['backbone']['kind']} backbone{_trained(lines)} learnt {start} to "
        f"segment, with {labels}."
    )


def _of_label_maps(run: RunFolder) -> str:
    report = judged(run)
    split = SPLITS.get(report.split, report.split)
    return (
        f"The label maps of {counted(report.cases, 'case')} of the {split} split were compared "
        "with the truth, on the files' own grid."
    )


def _distance(run: RunFolder) -> KeyFigure:
    report = run.object(GENERATION, "evaluate")
    name, one = next(iter(report["distances"].items()))
    floor = f"floor {number(one['frechet_floor'])}: " if one["frechet_floor"] else ""
    return KeyFigure(
        f"Frechet distance, {name}", number(one["frechet"]), floor + against_the_floor(one)
    )


def _diversity(run: RunFolder) -> KeyFigure:
    report = run.object(GENERATION, "evaluate")
    return KeyFigure(
        "likeness of pairs, MS-SSIM",
        fixed(report["ms_ssim"], 2),
        f"of real pairs {fixed(report['ms_ssim_real'], 2)}",
    )


def _copies(run: RunFolder) -> KeyFigure:
    report = run.object(GENERATION, "evaluate")
    return KeyFigure(
        "suspected copies",
        number(len(suspects(report))),
        f"of {counted(report['volumes'], 'volume')}",
    )


def _reconstruction(run: RunFolder) -> KeyFigure:
    report = run.object(RECONSTRUCTION, "tokenizer")
    return KeyFigure(
        "PSNR of the tokenizer",
        f"{fixed(report['psnr'], 1)} dB",
        f"{number(report['compression'])} times fewer bits",
    )


def _time(run: RunFolder) -> KeyFigure:
    seconds = [one.seconds for one in run.stages.values() if one.seconds]
    if not seconds:
        raise LeftOut("no time is known")
    return KeyFigure("time", duration(sum(seconds)), counted(len(seconds), "stage"))


def _dice(run: RunFolder) -> KeyFigure:
    report = judged(run)
    return KeyFigure(
        "mean Dice", fixed(report.dice_mean, 3), _between(report.models[0].dice_interval)
    )


def _surface(run: RunFolder) -> KeyFigure:
    first = judged(run).models[0]
    return KeyFigure("HD95", f"{fixed(first.hd95_mean, 2)} mm", _between(first.hd95_interval))


def _between(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = (number(one) for one in interval)
    return f"95 % interval {low} to {high}"


class Short(NamedTuple):
    """What sums up one recipe."""

    sentences: tuple[Callable[[RunFolder], str], ...]
    figures: tuple[Callable[[RunFolder], KeyFigure], ...]


SHORT = {
    SYNTHESIS: Short(
        (_of_data, _of_tokenizer, _of_generator, _of_samples, _of_evaluation),
        (_distance, _diversity, _copies, _reconstruction, _time),
    ),
    SEGMENTATION: Short(
        (_of_data, _of_tokenizer, _of_backbone, _of_network, _of_label_maps),
        (_dice, _surface, _reconstruction, _time),
    ),
}
"""By the recipe's name."""

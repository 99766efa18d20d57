"""The summary: one paragraph about the run, and its key figures."""

import math
from collections.abc import Callable
from typing import TypeVar

from medar.errors import MedarError
from medar.evaluation.segmentation.statistics import Interval
from medar.records import GENERATOR, PRETRAINED, SAMPLES, SEGMENTATION, SEGMENTER, TOKENIZER
from medar.report.blocks import Block, KeyFigure, KeyFigures, Text
from medar.report.folder import Metrics, RunFolder
from medar.report.formatting import (
    SPLIT_NAMES,
    format_count,
    format_duration,
    format_fixed,
    format_number,
    format_range,
    format_sides,
)
from medar.report.sections.data import modalities
from medar.report.sections.generation import compare_with_floor, suspected_copies
from medar.report.sections.training import (
    GeneratorTask,
    PretextTask,
    SegmentationTask,
    TokenizerTask,
)

T = TypeVar("T")


def summary(run: RunFolder) -> list[Block]:
    """What was done, up to the last stage that finished."""
    segmentation = run.recipe == SEGMENTATION
    sentences = [
        _try(run, sentence)
        for sentence in (SEGMENTATION_SENTENCES if segmentation else SYNTHESIS_SENTENCES)
    ]
    text = " ".join(one for one in sentences if one)
    if not text:
        raise MedarError("no stage has left a result yet")
    figures = [
        _try(run, figure)
        for figure in (SEGMENTATION_FIGURES if segmentation else SYNTHESIS_FIGURES)
    ]
    shown = [one for one in figures if one]
    return [Text(text), *([KeyFigures(shown)] if shown else [])]


def _try(run: RunFolder, make: Callable[[RunFolder], T]) -> T | None:
    """Part of the summary; None without the files that it needs, as its section explains."""
    try:
        return make(run)
    except MedarError:
        return None


def _data(run: RunFolder) -> str:
    cases, plan = run.cases(), run.plan()
    count = format_count(len(cases), f"{modalities(cases)} volume".strip())
    source = run.manifest().root.name
    spacing, size = f"{format_sides(plan.spacing)} mm", f"{format_sides(plan.size)} voxels"
    if plan.mode == "patch":
        return (
            f"{count} of {source} were resampled to {spacing}; the models are trained on patches "
            f"of {size}."
        )
    return f"{count} of {source} were resampled to {size} of {spacing}."


def _tokenizer(run: RunFolder) -> str:
    grids = run.task(TokenizerTask, TOKENIZER, "tokenizer").model.schedule.grids
    tokens = sum(math.prod(grid) for grid in grids)
    return (
        f"A tokenizer{_trained(run.metrics(TOKENIZER, 'tokenizer'))} encodes each volume as "
        f"{format_count(tokens, 'token')} on {format_count(len(grids), 'grid')}, from "
        f"{format_sides(grids[0])} to {format_sides(grids[-1])}."
    )


def _generator(run: RunFolder) -> str:
    task = run.task(GeneratorTask, GENERATOR, "generator")
    return (
        f"A generator with {task.parameters / 1e6:.3g} million parameters"
        f"{_trained(run.metrics(GENERATOR, 'generator'))} predicts all tokens of a grid at once "
        "from those of the coarser grids."
    )


def _samples(run: RunFolder) -> str:
    run.require(SAMPLES, "synthesize")
    count = len(run.samples())
    if not count:
        raise MedarError("no synthetic volume")
    return f"It generated {format_count(count, 'synthetic volume')}."


def _generation(run: RunFolder) -> str:
    report = run.generation_report()
    return (
        f"In the evaluation, {format_count(report.volumes, 'synthetic volume')} and "
        f"{format_count(report.held_out, 'real volume')} that no model was trained on were "
        f"compared with {format_count(report.reference, 'real volume')} of the training split."
    )


def _backbone(run: RunFolder) -> str:
    task = run.task(PretextTask, PRETRAINED, "pretrain")
    return (
        f"A {task.backbone.kind} backbone{_trained(run.metrics(PRETRAINED, 'pretrain'))} was "
        f"pretrained without labels on the pretext task “{task.pretext.kind}”."
    )


def _segmenter(run: RunFolder) -> str:
    task = run.task(SegmentationTask, SEGMENTER, "train")
    pretrained = "pretrain" in run.expected and run.has(f"{PRETRAINED}/model")
    start = "from that backbone" if pretrained else "from scratch"
    fraction = task.data.label_fraction
    labels = "all labels"
    if fraction != 1:
        labels = f"the labels of {100 * fraction:.3g} % of the subjects"
    return (
        f"A segmentation network with a {task.backbone.kind} backbone"
        f"{_trained(run.metrics(SEGMENTER, 'train'))} started {start} and used {labels}."
    )


def _label_maps(run: RunFolder) -> str:
    report = run.segmentation_report()
    return (
        f"Its label maps of {format_count(report.cases, 'case')} of the "
        f"{SPLIT_NAMES[report.split]} split were compared with the true labels on the original "
        "grid of the files."
    )


def _trained(metrics: Metrics) -> str:
    """Duration of a training, as an insertion between commas."""
    if not metrics.lines:
        return ""
    time = f" in {format_duration(metrics.seconds)}" if metrics.seconds is not None else ""
    return f", trained for {format_count(metrics.steps, 'step')}{time},"


def _frechet(run: RunFolder) -> KeyFigure:
    name, one = next(iter(run.generation_report().distances.items()))
    floor = f"floor {format_number(one.frechet_floor)}: " if one.frechet_floor else ""
    return KeyFigure(
        f"Frechet distance, {name}, N = {one.frechet_samples}",
        format_number(one.frechet),
        floor + compare_with_floor(one),
    )


def _turing(run: RunFolder) -> KeyFigure:
    report = run.generation_report().turing
    if report is None:
        raise MedarError("no Turing test")
    floor = f"halves of the real volumes {format_fixed(report.floor, 2)}" if report.floor else ""
    return KeyFigure("told from real volumes by a network, AUC", format_fixed(report.auc, 2), floor)


def _similarity(run: RunFolder) -> KeyFigure:
    report = run.generation_report()
    return KeyFigure(
        "similarity between samples, MS-SSIM",
        format_fixed(report.ms_ssim, 2),
        f"between real volumes {format_fixed(report.ms_ssim_real, 2)}",
    )


def _copies(run: RunFolder) -> KeyFigure:
    report = run.generation_report()
    count = format_number(len(suspected_copies(report)))
    return KeyFigure("suspected copies", count, f"of {format_count(report.volumes, 'volume')}")


def _psnr(run: RunFolder) -> KeyFigure:
    report = run.reconstruction_report()
    return KeyFigure(
        "PSNR of the tokenizer",
        f"{format_fixed(report.psnr, 1)} dB",
        f"{format_number(report.compression)} × compression",
    )


def _time(run: RunFolder) -> KeyFigure:
    seconds = [one.seconds for one in run.stages.values() if one.seconds]
    if not seconds:
        raise MedarError("no time is recorded")
    return KeyFigure("time", format_duration(sum(seconds)), format_count(len(seconds), "stage"))


def _dice(run: RunFolder) -> KeyFigure:
    first = run.segmentation_report().models[0]
    return KeyFigure("mean Dice", format_fixed(first.dice_mean, 3), _interval(first.dice_interval))


def _hd95(run: RunFolder) -> KeyFigure:
    first = run.segmentation_report().models[0]
    return KeyFigure(
        "HD95", f"{format_fixed(first.hd95_mean, 2)} mm", _interval(first.hd95_interval)
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"95 % interval {format_range(interval)}"


Sentences = tuple[Callable[[RunFolder], str], ...]
Figures = tuple[Callable[[RunFolder], KeyFigure], ...]

SYNTHESIS_SENTENCES: Sentences = (_data, _tokenizer, _generator, _samples, _generation)
SYNTHESIS_FIGURES: Figures = (_frechet, _turing, _similarity, _copies, _psnr, _time)
SEGMENTATION_SENTENCES: Sentences = (_data, _tokenizer, _backbone, _segmenter, _label_maps)
SEGMENTATION_FIGURES: Figures = (_dice, _hd95, _psnr, _time)

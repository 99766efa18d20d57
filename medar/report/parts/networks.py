"""Training curves of a segmentation network and of the backbone that it started from."""

from typing import Any

from medar.report.blocks import Block, Picture
from medar.report.charts import MUTED, ORANGE, Curve, Panel
from medar.report.folder import RunFolder
from medar.report.parts.tokenizer import drawn, points
from medar.report.words import number

DICE = "validation/dice"


def training_of_network(run: RunFolder) -> list[Block]:
    """Loss, and Dice of validation cases."""
    lines = run.lines("segmenter/metrics.jsonl", "train")
    names = sorted({name for line in lines for name in line if name.startswith(f"{DICE}_")})
    by_label = [
        Curve(name.removeprefix(f"{DICE}_"), points(lines, name), marked=True) for name in names
    ]
    panels = [
        Panel("training loss", [Curve("loss", points(lines, "train/loss"))]),
        Panel("Dice of validation cases", by_label),
    ]
    mean = [value for _, value in points(lines, DICE)]
    said = f"from {number(mean[0])} to {number(mean[-1])}" if mean else "not known"
    return [
        Picture(
            "network-curves.svg",
            drawn(panels),
            f"Line charts over training steps: the loss; Dice by label, its mean {said}.",
            "Training of the segmentation network. Dice by averaged weights, on prepared volumes "
            "and without mirrors; the weights of the best evaluation are the ones kept.",
            wide=True,
        )
    ]


def pretraining(run: RunFolder) -> list[Block]:
    """Loss of the pretext task, and the share of tokens found where it asks for such."""
    lines = run.lines("pretrained/metrics.jsonl", "pretrain")
    loss = [
        Curve("training", points(lines, "train/loss"), colour=MUTED),
        Curve("validation", points(lines, "validation/loss"), marked=True),
    ]
    entropy = [
        Curve("validation", points(lines, "validation/cross_entropy"), marked=True),
        Curve("frequencies of codes alone", points(lines, "validation/marginal"), colour=ORANGE,
              dashed=True),
    ]  # fmt: skip
    panels = [
        Panel(f"loss of “{_kind(run)}”", [one for one in loss if one.points]),
        Panel("cross-entropy of tokens (nats)", [one for one in entropy if one.points]),
    ]
    ends = [value for _, value in points(lines, "validation/loss")]
    said = f"from {number(ends[0])} to {number(ends[-1])}" if ends else "not known"
    return [
        Picture(
            "pretraining-curves.svg",
            drawn(panels),
            f"Line charts over training steps: loss of the pretext task, of validation {said}.",
            "Pretraining of the backbone on volumes alone: no label is used.",
            wide=True,
        )
    ]


def _kind(run: RunFolder) -> str:
    settings: dict[str, Any] = run.settings("pretrained/config.yaml", "pretrain")
    return str(settings["task"]["pretext"]["kind"])

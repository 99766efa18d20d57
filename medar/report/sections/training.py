"""Training curves of all networks."""

from collections.abc import Sequence
from dataclasses import dataclass

from medar.errors import MedarError
from medar.generator.settings import ConditionConfig
from medar.records import GENERATOR, PRETRAINED, SEGMENTER, TOKENIZER
from medar.report.blocks import Block, Charts
from medar.report.charts import (
    MUTED,
    ORANGE,
    Bars,
    Curve,
    Panel,
    Points,
    bar_chart,
    line_chart,
)
from medar.report.folder import Metrics, RunFolder
from medar.report.formatting import format_number, join_words
from medar.tokenizer.schedule import ScaleSchedule

DICE = "validation/dice"
CROSS_ENTROPY, MARGINAL = "validation/cross_entropy", "validation/marginal"
FREQUENCIES = "code frequencies only"
"""Legend of the baseline that knows only how often each code occurs."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Name of an implementation."""

    kind: str


@dataclass(frozen=True, kw_only=True)
class TokenizerModel:
    """Values that a report reads of a tokenizer's configuration."""

    schedule: ScaleSchedule


@dataclass(frozen=True, kw_only=True)
class TokenizerTask:
    """Values that a report reads of a tokenizer's training."""

    model: TokenizerModel


@dataclass(frozen=True, kw_only=True)
class GeneratorModel:
    """Values that a report reads of a generator's configuration."""

    condition: ConditionConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorTask:
    """Values that a report reads of a generator's training."""

    model: GeneratorModel
    parameters: int


@dataclass(frozen=True, kw_only=True)
class PretextTask:
    """Values that a report reads of a pretraining."""

    backbone: Kind
    pretext: Kind


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which labels a segmentation network was trained with."""

    label_fraction: float
    """Fraction of the subjects whose labels are used."""


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """Values that a report reads of the training of a segmentation network."""

    backbone: Kind
    data: Labels


def tokenizer_training(run: RunFolder) -> list[Block]:
    """Loss, PSNR and codebook usage of the tokenizer."""
    metrics = run.metrics(TOKENIZER, "tokenizer")
    panels = [
        Panel("training loss", [Curve("loss", _training_loss(metrics))]),
        Panel(
            "validation PSNR (dB)",
            [Curve("PSNR", metrics.points("validation/psnr"), marked=True)],
        ),
        Panel(
            "codebook usage (%)",
            [Curve("usage", metrics.points("validation/codebook_usage", 100), marked=True)],
            percent=True,
        ),
    ]
    return [
        Charts(
            "tokenizer-curves",
            _line_chart(panels),
            "Line charts over training steps: "
            f"{_ends(metrics, 'train/loss', 'loss')}; "
            f"{_ends(metrics, 'validation/psnr', 'validation PSNR in dB')}; "
            f"{_ends(metrics, 'validation/codebook_usage', 'fraction of codes in use')}.",
            "Training of the tokenizer. The loss is the sum of the reconstruction and codebook "
            "losses on training volumes; it jumps up where quantisation starts. PSNR and "
            "codebook usage are measured on validation volumes with averaged weights. If they "
            "still rise at the end, train longer.",
        )
    ]


def generator_training(run: RunFolder) -> list[Block]:
    """Cross-entropy and accuracy of the generator, and its last evaluation by scale."""
    metrics = run.metrics(GENERATOR, "generator")
    panels = [
        Panel("cross-entropy (nats per token)", _cross_entropy(metrics, training=True)),
        Panel(
            "accuracy on validation tokens (%)",
            [Curve("accuracy", metrics.points("validation/accuracy", 100), marked=True)],
        ),
    ]
    blocks: list[Block] = [
        Charts(
            "generator-curves",
            _line_chart(panels),
            "Line charts over training steps: "
            f"{_ends(metrics, CROSS_ENTROPY, 'validation cross-entropy in nats per token')}; "
            "accuracy on validation tokens.",
            "Training of the generator. Dashed: the cross-entropy of a model that knows only how "
            "often each code occurs. Validation cross-entropy that rises while the training loss "
            "falls is a sign of overfitting; the weights of the best evaluation are kept.",
        )
    ]
    evaluated = [line for line in metrics.lines if line.get(f"{CROSS_ENTROPY}/scale_0") is not None]
    return [*blocks, _by_scale(Metrics(evaluated[-1:]))] if evaluated else blocks


def _by_scale(metrics: Metrics) -> Charts:
    """One evaluation of the generator, scale by scale."""
    names = metrics.names(f"{CROSS_ENTROPY}/scale_")
    values = [value for name in names for _, value in metrics.points(name)]
    marks = [
        value
        for name in names
        for _, value in metrics.points(name.replace("cross_entropy", "marginal"))
    ]
    bars = Bars(
        "cross-entropy by scale (nats per token)",
        [str(scale) for scale in range(1, len(values) + 1)],
        values,
        marks=marks if len(marks) == len(values) else (),
        legend=("generator", FREQUENCIES),
        x_label="scale, coarse to fine",
    )
    return Charts(
        "generator-scales",
        bar_chart([bars]),
        "Bar chart by scale, coarse to fine: cross-entropy "
        f"{join_words([format_number(value) for value in values])} nats per token.",
        "The last evaluation by scale. The gap between a bar and its mark is what the generator "
        "has learned beyond the frequencies of the codes.",
    )


def segmenter_training(run: RunFolder) -> list[Block]:
    """Loss and validation Dice of the segmentation network."""
    metrics = run.metrics(SEGMENTER, "train")
    by_label = [
        Curve(name.removeprefix(f"{DICE}_"), metrics.points(name), marked=True)
        for name in sorted(metrics.names(f"{DICE}_"))
    ]
    panels = [
        Panel("training loss", [Curve("loss", _training_loss(metrics))]),
        Panel("validation Dice", by_label),
    ]
    return [
        Charts(
            "network-curves",
            _line_chart(panels),
            "Line charts over training steps: the loss; Dice by label, "
            f"{_ends(metrics, DICE, 'mean Dice')}.",
            "Training of the segmentation network. Dice is measured with averaged weights on "
            "prepared volumes, without test-time augmentation. The weights of the best evaluation "
            "are kept.",
        )
    ]


def pretraining(run: RunFolder) -> list[Block]:
    """Loss of the pretext task, and cross-entropy if it predicts tokens."""
    metrics = run.metrics(PRETRAINED, "pretrain")
    task = run.task(PretextTask, PRETRAINED, "pretrain")
    loss = [
        Curve("training", _training_loss(metrics), colour=MUTED),
        Curve("validation", metrics.points("validation/loss"), marked=True),
    ]
    panels = [
        Panel(f"loss of “{task.pretext.kind}”", [one for one in loss if one.points]),
        Panel("cross-entropy of tokens (nats)", _cross_entropy(metrics, training=False)),
    ]
    return [
        Charts(
            "pretraining-curves",
            _line_chart(panels),
            "Line charts over training steps: "
            f"{_ends(metrics, 'validation/loss', 'validation loss of the pretext task')}.",
            "Pretraining of the backbone on volumes without labels.",
        )
    ]


def _training_loss(metrics: Metrics) -> Points:
    """The training loss, which is averaged over the steps since the last point.

    The end of a training may average a few steps only; such a point is left out.
    """
    points = metrics.points("train/loss")
    if len(points) > 2 and points[-1][0] - points[-2][0] < (points[-2][0] - points[-3][0]) / 2:
        return points[:-1]
    return points


def _cross_entropy(metrics: Metrics, *, training: bool) -> list[Curve]:
    curves = [
        Curve("training", _training_loss(metrics) if training else (), colour=MUTED),
        Curve("validation", metrics.points(CROSS_ENTROPY), marked=True),
        Curve(FREQUENCIES, metrics.points(MARGINAL), colour=ORANGE, dashed=True),
    ]
    return [curve for curve in curves if curve.points]


def _line_chart(panels: Sequence[Panel]) -> list[bytes]:
    """Charts of the panels that have points.

    Raises:
        MedarError: none has any.
    """
    filled = [one for one in panels if any(curve.points for curve in one.curves)]
    if not filled:
        raise MedarError("training ended before anything was logged")
    return line_chart(filled)


def _ends(metrics: Metrics, name: str, shown: str) -> str:
    """Start and end of a curve in words."""
    values = [value for _, value in metrics.points(name)]
    if not values:
        return f"{shown} unknown"
    return f"{shown} from {format_number(values[0])} to {format_number(values[-1])}"

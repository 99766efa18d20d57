"""Cross-entropy and Dice on partly annotated cases, for segmentation and the label head.

B batch, X Y Z voxels, K labels (the background not counted).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medar.data.loading import UNKNOWN


class LabelLosses(NamedTuple):
    """Both losses, scalars."""

    cross_entropy: Tensor
    dice: Tensor


def label_losses(logits: Tensor, classes: Tensor, annotated: Tensor) -> LabelLosses:
    """Cross-entropy and Dice over what each case was annotated for.

    Where a case was not annotated for a label, its "background" may be that label, so the
    probabilities of both are summed before they are compared with the truth (the marginal loss of
    arXiv 2007.03868). A voxel that has such a label nevertheless counts as background. Voxels of
    unknown class are ignored.

    Args:
        logits: (B, K + 1, X, Y, Z), background first.
        classes: (B, 1, X, Y, Z) integers, 0 the background, -1 unknown (see `to_classes`).
        annotated: (B, K) bool.

    Returns:
        The mean cross-entropy over annotated voxels, and 1 - Dice, averaged over the labels that
        occur in the batch; 0 where there is nothing to compare with.
    """
    logits, classes = logits.float(), classes.long()
    known = classes != UNKNOWN
    named = annotated[:, :, None, None, None]
    truth = _one_hot(classes, annotated.shape[1]) & named
    return LabelLosses(
        _marginal_cross_entropy(logits, truth, named, known), _dice(logits, truth, named & known)
    )


def to_classes(label: Tensor, values: Sequence[int]) -> Tensor:
    """Label values as classes: `values[i]` becomes i + 1; 0 and -1 (unknown) stay.

    Args:
        label: (B, 1, X, Y, Z) of the plan's values, in the order of `Plan.labels`.
        values: the plan's label values.
    """
    classes = label.long().clamp(max=0)
    for index, value in enumerate(values, start=1):
        classes = torch.where(label == value, index, classes)
    return classes


def _one_hot(classes: Tensor, labels: int) -> Tensor:
    """(B, 1, X, Y, Z) to (B, K, X, Y, Z) bool, without the background."""
    values = torch.arange(1, labels + 1, device=classes.device)
    return classes == values.view(1, -1, 1, 1, 1)


def _marginal_cross_entropy(logits: Tensor, truth: Tensor, named: Tensor, known: Tensor) -> Tensor:
    """Background and labels not annotated are one class.

    `truth` (B, K, X, Y, Z), `named` (B, K, 1, 1, 1), `known` (B, 1, X, Y, Z), all bool.
    """
    out = torch.finfo(logits.dtype).min
    rest = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(named, out)], 1)
    of_truth = (logits[:, 1:] * truth).sum(1, keepdim=True)
    score = torch.where(truth.any(1, keepdim=True), of_truth, rest.logsumexp(1, keepdim=True))
    loss = (logits.logsumexp(1, keepdim=True) - score).masked_fill(~known, 0.0)
    return loss.sum() / known.sum().clamp(min=1)


def _dice(logits: Tensor, truth: Tensor, compared: Tensor) -> Tensor:
    """`truth` and `compared` (B, K, X, Y, Z) bool: Dice of each label over the whole batch."""
    from monai.losses import DiceLoss

    probabilities = logits.softmax(1)[:, 1:] * compared
    loss = DiceLoss(batch=True, reduction="none")
    of_label: Tensor = loss(probabilities, truth.float()).flatten()
    occurs = truth.any(dim=4).any(dim=3).any(dim=2).any(dim=0)
    return (of_label * occurs).sum() / occurs.sum().clamp(min=1)

"""What a network says before it has learnt anything: how much of a volume each label fills.

Most voxels are background. A head that gives all classes the same chance spends its first steps on
unlearning that, and small labels are lost meanwhile; so its bias begins at the logarithm of each
class's share of the training voxels (after arXiv 1708.02002, which begins with rare objects too).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from medar.data.loading import UNKNOWN
from medar.data.plan import Plan
from medar.data.prepared import Prepared

LEAST = 0.001
"""The smallest share that a label begins with, so that none is all but ruled out."""
MOST = 0.5
"""The largest share that all labels together begin with."""
CASES = 64
"""Most training cases that are looked at, spread over all of them."""
SAMPLE = 1_000_000
"""Voxels of a case that are counted; larger ones are strided down to about it."""


def label_shares(prepared: Prepared, places: Sequence[int], plan: Plan) -> list[float]:
    """Each label's share of the voxels of the cases that were annotated for it.

    Args:
        prepared: the data set.
        places: the cases, all annotated; of more than `CASES` a spread choice is looked at.
        plan: its labels, in whose order shares come.

    Returns:
        At least `LEAST` each, together at most `MOST`.
    """
    count = min(len(places), CASES)
    found: dict[int, list[float]] = {value: [] for value in plan.labels}
    for n in range(count):
        case = prepared[places[n * len(places) // count]]
        voxels = np.asarray(prepared.label(case)).reshape(-1)
        # An odd step, as rows of voxels are often even: it does not stay in one column.
        voxels = voxels[:: max(1, voxels.size // SAMPLE) | 1]
        voxels = voxels[voxels != UNKNOWN]
        for value in found:
            if voxels.size and value in case.annotated:
                found[value].append(float(np.mean(voxels == value)))
    shares = [max(LEAST, float(np.mean(each))) if each else LEAST for each in found.values()]
    return [share * min(1.0, MOST / sum(shares)) for share in shares]


@torch.no_grad()
def begin_with(head: nn.Module, shares: Sequence[float]) -> None:
    """Have a head that is still untrained give each label its share of every voxel's chance.

    Args:
        head: a convolution to logits, the background first.
        shares: of the labels, together below 1.
    """
    assert isinstance(head, nn.Conv3d)
    assert head.bias is not None
    chances = [1 - sum(shares), *shares]
    head.bias.copy_(torch.tensor([math.log(chance) for chance in chances]))

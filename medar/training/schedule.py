"""The learning rate: a linear warm-up, then a cosine, by how much of the run is over.

A run ends after a number of steps or of minutes, whichever comes first; its progress is the larger
of the two shares, so that the cosine comes down in time either way (cosine annealing: arXiv
1608.03983, without restarts).
"""

import math

from medar.training.settings import TrainingSettings


def progress(settings: TrainingSettings, step: float, elapsed: float) -> float:
    """Share of the run that is over, from 0 to 1.

    Args:
        settings: `steps` and `minutes` are used.
        step: steps done.
        elapsed: seconds spent.
    """
    shares = [0.0]
    if settings.steps is not None:
        shares.append(step / settings.steps)
    if settings.minutes is not None:
        shares.append(elapsed / (60 * settings.minutes))
    return min(max(shares), 1.0)


def learning_rate(settings: TrainingSettings, share: float) -> float:
    """The learning rate at a share of the run.

    Args:
        settings: `learning_rate`, `warmup_fraction` and `min_learning_rate` are used.
        share: see `progress`.
    """
    warmup, low, high = (
        settings.warmup_fraction, settings.min_learning_rate, settings.learning_rate
    )  # fmt: skip
    if share < warmup:
        return high * share / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
    return low + (high - low) * cosine

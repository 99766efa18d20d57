"""`rank`: the cases of a data set by how far their likelihood is from that of the others.

Each case is compared with reference cases: those of another data set, or all others of its own.
Two features count (`Likelihood.features`): the mean cross-entropy of the tokens grows with anything
that the generator has not learnt, such as mirrored, cropped or missing anatomy; the residual shows
what tokens do not hold, such as noise and blur. The score joins both as the length of a vector, of
which cases that are likelier than usual have only the second part. Median and median absolute
deviation take the place of mean and deviation, so that a few damaged reference cases do no harm.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.evaluation.surprise.likelihood import Likelihood

FEWEST = 8
"""Smallest number of reference cases."""

FAR = 4.0
"""Score from which on a case counts as surprising."""

MAD_SCALE = 1.4826
"""Ratio of standard deviation to median absolute deviation of a normal distribution."""

LEAST = 1e-3
"""Smallest deviation of a feature."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How surprising a case is."""

    case: str
    score: float
    """Distance from the reference cases, in robust standard deviations."""
    nats_per_token: float
    """Mean cross-entropy of its tokens."""
    nats_deviation: float
    """The same as deviations from the median of the reference cases."""
    residual: float
    """Mean absolute difference of volume and reconstruction; 1 is the whole intensity range."""
    residual_deviation: float
    """Its logarithm as deviations from the median of the reference cases."""

    @property
    def surprising(self) -> bool:
        """Whether it is as far away as hardly any usual case."""
        return self.score >= FAR

    @property
    def reason(self) -> str:
        """Which part of the score is the larger, in words."""
        if self.nats_deviation >= abs(self.residual_deviation):
            return "unlikely anatomy or contrast"
        return f"{'more' if self.residual_deviation > 0 else 'less'} texture or noise than usual"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {**vars(self), "surprising": self.surprising, "reason": self.reason}


def rank(
    cases: Mapping[str, Likelihood], reference: Sequence[Likelihood] | None = None
) -> list[Score]:
    """Score cases, the most surprising first.

    Args:
        cases: by id.
        reference: cases that they are compared with; default: all other cases.

    Raises:
        MedarError: there are fewer than `FEWEST` reference cases.
    """
    count = len(cases) if reference is None else len(reference)
    if count < FEWEST:
        which = "the data set has" if reference is None else "the reference has"
        raise MedarError(
            f"{which} {count} readable cases; surprise is measured against at least {FEWEST}: name "
            "more with --reference"
        )
    names = list(cases)
    features = np.stack([cases[name].features for name in names])
    others = None if reference is None else np.stack([one.features for one in reference])
    scores = []
    for index, name in enumerate(names):
        usual = np.delete(features, index, axis=0) if others is None else others
        nats, residual = _deviations(features[index], usual)
        scores.append(
            Score(
                case=name,
                score=math.hypot(max(nats, 0.0), residual),
                nats_per_token=float(features[index, 0]),
                nats_deviation=nats,
                residual=cases[name].residual / 2,
                residual_deviation=residual,
            )
        )
    return sorted(scores, key=lambda one: (-one.score, one.case))


def usual_losses(cases: Sequence[Likelihood]) -> npt.NDArray[np.float32]:
    """(L,) median cross-entropy of each token over reference cases."""
    usual: npt.NDArray[np.float32] = np.median([one.losses for one in cases], axis=0)
    return usual.astype(np.float32)


def _deviations(
    one: npt.NDArray[np.float64], usual: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Features (2,) as robust deviations from those of reference cases (N, 2)."""
    median = np.median(usual, axis=0)
    deviation = MAD_SCALE * np.median(np.abs(usual - median), axis=0)
    nats, residual = (one - median) / np.maximum(deviation, LEAST)
    return float(nats), float(residual)

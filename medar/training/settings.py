"""`TrainingSettings`: how long, how fast, how often; the same for every task."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from medar.errors import MedarError
from medar.settings import STRICT, to_dict

FREE = frozenset({"log_every", "evaluate_every", "save_every", "keep", "device", "compile"})
"""Settings that may change when a run goes on: the weights do not depend on them."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One training run.

    Raises:
        MedarError: a value out of its range, or no end (neither `steps` nor `minutes`).
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    steps: int | None = None
    """Optimiser steps; the run ends here or after `minutes`, whichever comes first."""
    minutes: float | None = None
    """Time of the run, evaluation and saving included, over all its resumptions."""
    learning_rate: float = 3e-4
    """The highest learning rate, reached after the warm-up."""
    warmup: float = 0.03
    """Share of the run in which the learning rate rises from 0."""
    final: float = 0.0
    """Learning rate at the end of the cosine, as a share of the highest."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices and kernels; norms, biases and scalars are left out."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates of the first and the second moment."""
    clip: float | None = 1.0
    """Largest norm of an optimiser's gradient; None does not clip."""
    accumulation: int = 1
    """Batches of each process that make one step."""
    ema: float = 0.999
    """Decay of the averaged weights, which are evaluated and saved; 0 for none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the network computes in; "auto": bf16 where the processor has instructions for it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; "auto": a CUDA device if there is one."""
    compile: bool = False
    """Compile the model's forward pass with torch.compile: a slow first step, faster ones after it.
    What a loss calls otherwise, such as a method of its own, is not compiled."""
    log_every: int = 20
    """Steps between lines of metrics."""
    evaluate_every: int = 500
    """Steps between evaluations; the end of the run has one in any case."""
    save_every: int = 500
    """Steps between checkpoints; evaluations that are the best so far save one too."""
    keep: int = 1
    """Newest checkpoints that are kept, besides the best."""
    nonfinite: int = 5
    """Steps in a row with a loss or gradient that is not finite that end the run."""
    seed: int = 0
    """Of everything random in the loop; process r of several takes seed + r."""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise MedarError("neither steps nor minutes is given; at least one must end the run")
        for name, (needed, holds) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise MedarError(f"{name} {value}: {needed} is needed")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise MedarError(f"betas {list(self.betas)}: two numbers from 0 to below 1 are needed")

    def within(self, minutes: float | None) -> "TrainingSettings":
        """The same with another limit of time, where one is given."""
        return self if minutes is None else replace(self, minutes=minutes)

    def what_matters(self) -> dict[str, Any]:
        """The settings that the trained weights depend on."""
        return {name: value for name, value in to_dict(self).items() if name not in FREE}


_Rule = tuple[str, Callable[[float], bool]]

_COUNT: _Rule = ("a whole number from 1", lambda value: value >= 1 and value == int(value))
_POSITIVE: _Rule = ("a number above 0", lambda value: value > 0)
_SHARE: _Rule = ("a share from 0 to below 1", lambda value: 0 <= value < 1)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("steps", "accumulation", "log_every", "evaluate_every"), _COUNT),
    **dict.fromkeys(("save_every", "keep", "nonfinite"), _COUNT),
    **dict.fromkeys(("minutes", "learning_rate", "clip"), _POSITIVE),
    **dict.fromkeys(("warmup", "ema"), _SHARE),
    "final": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "weight_decay": ("a number from 0", lambda value: value >= 0),
    "seed": ("a whole number from 0", lambda value: value >= 0),
}

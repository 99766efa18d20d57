"""`TrainingSettings`: how long, how fast, how often; the same for every task."""

from dataclasses import replace
from typing import Any, Literal

from medar.errors import MedarError
from medar.settings import (
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    settings,
    to_dict,
)

FREE = frozenset(
    {"log_every", "evaluate_every", "save_every", "keep_checkpoints", "device", "compile", "shard"}
)
"""Settings that may change when a run is resumed: the weights do not depend on them."""


@settings(
    renamed={
        "warmup": "warmup_fraction",
        "final": "min_learning_rate, now absolute: learning_rate times the old value",
        "clip": "max_grad_norm",
        "accumulation": "accumulation_steps",
        "ema": "ema_decay",
        "keep": "keep_checkpoints",
        "nonfinite": "max_nonfinite_steps",
    }
)
class TrainingSettings:
    """One training run.

    Raises:
        MedarError: a value out of its range, or no end (neither `steps` nor `minutes`).
    """

    steps: PositiveInt | None = None
    """Optimiser steps; the run ends here or after `minutes`, whichever comes first."""
    minutes: PositiveFloat | None = None
    """Duration of the run, including evaluation and saving, summed over resumptions."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights; or Muon for those of linear layers and convolutions, and AdamW for
    heads, embeddings, biases and norms. Both take the same learning rate."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate, reached after the warm-up."""
    warmup_fraction: FractionBelowOne = 0.03
    """Fraction of the run in which the learning rate rises from 0."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices and kernels; norms, biases and scalars have none."""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.99)
    """AdamW's decay rates of the first and the second moment."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients of each network are clipped to this norm; None disables clipping."""
    accumulation_steps: PositiveInt = 1
    """Batches per process and optimiser step."""
    ema_decay: FractionBelowOne = 0.999
    """Decay of the averaged weights, which are evaluated and saved; 0 disables averaging."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward pass; "auto": bf16 where the processor has instructions for it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; "auto": a CUDA device if there is one."""
    compile: bool = False
    """Compile what pays with torch.compile: a slow first step, faster ones after it. Evaluations
    are not compiled."""
    shard: bool = False
    """Under torchrun, divide weights, gradients and optimiser states among the processes (FSDP2),
    for a generator that does not fit one device; slower than a copy in each process. Nothing is
    drawn during the training."""
    log_every: PositiveInt = 20
    """Steps between lines of metrics."""
    evaluate_every: PositiveInt = 500
    """Steps between evaluations; there is always one at the end of the run."""
    save_every: PositiveInt = 500
    """Steps between checkpoints; an evaluation that is the best so far saves one too."""
    keep_checkpoints: PositiveInt = 1
    """Newest checkpoints to keep, besides the best."""
    max_nonfinite_steps: PositiveInt = 5
    """The run ends after this many consecutive steps with a non-finite loss or gradient."""
    seed: NonNegativeInt = 0
    """Seed of everything random in the loop; rank r uses seed + r."""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise MedarError("neither steps nor minutes is set; at least one must end the run")
        if self.shard and self.optimiser == "muon":
            raise MedarError("shard true: Muon needs whole matrices; use optimiser adamw")
        if self.min_learning_rate > self.learning_rate:
            raise MedarError(
                f"min_learning_rate {self.min_learning_rate:g} must not exceed learning_rate "
                f"{self.learning_rate:g}"
            )

    def within(self, minutes: float | None) -> "TrainingSettings":
        """The same settings with another time limit, or unchanged for None."""
        return self if minutes is None else replace(self, minutes=minutes)

    def with_learning_rate(self, rate: float) -> "TrainingSettings":
        """The same schedule with another peak; `min_learning_rate` is scaled with it."""
        scale = rate / self.learning_rate
        return replace(self, learning_rate=rate, min_learning_rate=self.min_learning_rate * scale)

    def resume_key(self) -> dict[str, Any]:
        """The settings that the trained weights depend on."""
        return {name: value for name, value in to_dict(self).items() if name not in FREE}

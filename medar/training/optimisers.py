"""Optimisers, their learning rate, the averaged weights, and what happens to non-finite steps."""

import contextlib
import math
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.training.muon import Muon
from medar.training.settings import TrainingSettings
from medar.training.task import ParameterGroup


def progress(settings: TrainingSettings, step: float, elapsed: float) -> float:
    """Fraction of the run that is over, from 0 to 1.

    A run ends after a number of steps or minutes, whichever comes first, so this is the larger of
    the two fractions.

    Args:
        settings: `steps` and `minutes` are used.
        step: steps done.
        elapsed: seconds spent.
    """
    fractions = [0.0]
    if settings.steps is not None:
        fractions.append(step / settings.steps)
    if settings.minutes is not None:
        fractions.append(elapsed / (60 * settings.minutes))
    return min(max(fractions), 1.0)


def learning_rate(settings: TrainingSettings, fraction: float) -> float:
    """The learning rate: a linear warm-up, then a cosine (arXiv 1608.03983, without restarts).

    Args:
        settings: `learning_rate`, `warmup_fraction` and `min_learning_rate` are used.
        fraction: of the run that is over, see `progress`.
    """
    warmup, low, high = settings.warmup_fraction, settings.min_learning_rate, settings.learning_rate
    if fraction < warmup:
        return high * fraction / warmup
    decayed = (fraction - warmup) / (1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * decayed))
    return low + (high - low) * cosine


class Optimisers:
    """AdamW (arXiv 1711.05101) for each network, or Muon for its matrices and AdamW for the rest.

    Args:
        groups: parameter groups by network, see `Task.parameter_groups`.
        matrices: parameters that Muon may train, see `hidden_matrices`.
        settings: `optimiser`, `weight_decay`, `betas` and `max_grad_norm` are used.
    """

    def __init__(
        self,
        groups: dict[str, list[ParameterGroup]],
        matrices: Collection[Tensor],
        settings: TrainingSettings,
    ) -> None:
        self.rate = 0.0
        self.max_norm = settings.max_grad_norm or float("inf")
        self._parameters = {
            name: [p for group in those for p in group["params"]] for name, those in groups.items()
        }
        for_muon = set(matrices) if settings.optimiser == "muon" else set()
        self._optimisers: dict[str, torch.optim.Optimizer] = {}
        rate, decay = settings.learning_rate, settings.weight_decay
        for name, those in groups.items():
            if own := _selected(those, lambda p: p not in for_muon):
                # Fused: only that implementation can skip a step by a flag on the device.
                self._optimisers[name] = torch.optim.AdamW(
                    own, lr=rate, betas=settings.betas, weight_decay=decay, fused=True
                )
            if own := _selected(those, for_muon.__contains__):
                self._optimisers[f"{name}/muon"] = Muon(own, lr=rate, weight_decay=decay)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate, multiplied by the factor of each group."""
        self.rate = rate
        for optimiser in self._optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip the gradient of each network; returns the norms before, scalars on the device."""
        norms = {}
        for name, parameters in self._parameters.items():
            # Without any gradient, as of a resting discriminator, torch's norm is on the CPU.
            norm = (
                torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
                if any(p.grad is not None for p in parameters)
                else torch.zeros((), device=parameters[0].device)
            )
            # Of sharded gradients, over all processes.
            norms[name] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return norms

    def parameters(self, name: str) -> list[Tensor]:
        """The parameters of an optimiser in `state_dict`, in the order of its state."""
        return [p for group in self._optimisers[name].param_groups for p in group["params"]]

    def step(self, finite: Tensor) -> None:
        """Update the parameters if `finite`, a bool on the device, is true; reset gradients."""
        for optimiser in self._optimisers.values():
            # As torch's GradScaler does: these optimisers skip the step where this is 1.
            optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the moments of `state_dict`; the present settings stay."""
        for name, optimiser in self._optimisers.items():
            now = [
                {k: v for k, v in group.items() if k != "params"}
                for group in optimiser.param_groups
            ]
            optimiser.load_state_dict(state[name])
            for group, values in zip(optimiser.param_groups, now, strict=True):
                group.update(values)


def _selected(
    groups: list[ParameterGroup], belongs: Callable[[Tensor], bool]
) -> list[ParameterGroup]:
    """The groups with those of their parameters that belong to an optimiser; no empty ones."""
    selected = []
    for group in groups:
        if parameters := [p for p in group["params"] if belongs(p)]:
            selected.append({"factor": 1.0, **group, "params": parameters})
    return selected


class NonfiniteGuard:
    """Counts steps with a non-finite loss or gradient, which are skipped; ends a run with too many.

    The counts stay on the device, so that a step need not wait for them.

    Args:
        settings: `max_nonfinite_steps` is the limit; some others are named in the advice.
        device: where the flags are.
        quiet: print no warnings.
    """

    def __init__(
        self, settings: TrainingSettings, device: torch.device, *, quiet: bool = False
    ) -> None:
        self._settings, self._quiet = settings, quiet
        self._in_a_row, self._longest, self._skipped = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)
        )

    def add(self, finite: Tensor) -> None:
        """Count a step; `finite` is a bool on the device."""
        self._in_a_row = torch.where(finite, 0, self._in_a_row + 1)
        self._longest = torch.maximum(self._longest, self._in_a_row)
        self._skipped = self._skipped + (~finite).long()

    def check(self, step: int) -> None:
        """Read the counts since the last check.

        Raises:
            MedarError: too many consecutive steps were skipped.
        """
        longest, skipped = torch.stack([self._longest, self._skipped]).tolist()
        if longest >= self._settings.max_nonfinite_steps:
            raise MedarError(
                f"step {step}: the loss or its gradient was not finite in {longest} consecutive "
                f"steps; try a lower learning_rate (now {self._settings.learning_rate:g}), a "
                "longer warm-up, precision 'fp32', or look for NaN in the data"
            )
        if skipped and not self._quiet:
            print(
                f"warning: step {step}: loss or gradient not finite; skipped {skipped} of the "
                "last steps",
                file=sys.stderr,
                flush=True,
            )
        self._longest = self._in_a_row
        self._skipped = torch.zeros_like(self._skipped)


class Average:
    """Exponential moving average of a model's parameters, starting from their present values.

    At update n the decay is min(decay, (1 + n) / (10 + n)), so that the average of a short run
    forgets the initial weights. Buffers are not averaged.

    Args:
        model: whose parameters are averaged; those that are not trained are left out.
        decay: fraction of the average that stays at each update, from 0 to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self._averages.values()), list(self._parameters.values()), 1 - decay
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            own = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, object]:
        """State for a checkpoint."""
        return {"updates": self.updates, "averages": self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore `state_dict`."""
        self.updates = cast(int, state["updates"])
        for name, value in cast(dict[str, Tensor], state["averages"]).items():
            self._averages[name].copy_(value)

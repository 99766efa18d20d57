"""One AdamW (arXiv 1711.05101) for each set of parameters that a task names, moved together."""

from typing import Any

import torch
from torch import Tensor

from medar.training.settings import TrainingSettings
from medar.training.task import ParameterGroup


class Optimisers:
    """The optimisers of a task, by name.

    Args:
        groups: parameter groups by optimiser, see `Task.parameter_groups`.
        settings: `weight_decay`, `betas` and `max_grad_norm` are used.
    """

    def __init__(self, groups: dict[str, list[ParameterGroup]], settings: TrainingSettings) -> None:
        self.rate = 0.0
        self.max_norm = settings.max_grad_norm or float("inf")
        # Fused: only that path can skip a step on a flag that lies on the device.
        self._optimisers = {
            name: torch.optim.AdamW(
                [{"factor": 1.0, **group} for group in those],
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            )
            for name, those in groups.items()
        }

    def set_rate(self, rate: float) -> None:
        """Set the learning rate, times the factor of each group."""
        self.rate = rate
        for optimiser in self._optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip the gradient of each optimiser; the norms before that, scalars on the device."""
        norms = {}
        for name, optimiser in self._optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
            norms[name] = norm.to(parameters[0].device)
        return norms

    def step(self, finite: Tensor) -> None:
        """Move the parameters, unless `finite`, a bool on the device, is false; drop gradients."""
        for optimiser in self._optimisers.values():
            # What torch's GradScaler sets: a fused optimiser skips the step where this is 1.
            optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, with the moments it had and the settings that hold now."""
        for name, optimiser in self._optimisers.items():
            now = [
                {k: v for k, v in group.items() if k != "params"}
                for group in optimiser.param_groups
            ]
            optimiser.load_state_dict(state[name])
            for group, values in zip(optimiser.param_groups, now, strict=True):
                group.update(values)

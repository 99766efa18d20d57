"""Means of what the loss says, all_gather_object on the device and read at log steps alone."""

import torch
from torch import Tensor

from medar.training.distributed import all_gather_object, weighted_means


class Meter:
    """Sums since the last reading. Steps that were skipped do not count."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, metrics: dict[str, Tensor], finite: Tensor) -> None:
        """Take scalars in, if `finite`, a bool on the device, is true."""
        for name, value in metrics.items():
            pair = torch.stack([value.float(), torch.ones_like(value, dtype=torch.float32)])
            pair = torch.where(finite, pair, torch.zeros_like(pair))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self) -> dict[str, float]:
        """The means over steps and processes; the sums begin anew."""
        own = {name: (float(s), float(n)) for name, (s, n) in self._to_cpu().items()}
        self._sums = {}
        return weighted_means(all_gather_object(own))

    def _to_cpu(self) -> dict[str, list[float]]:
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).tolist()
        return dict(zip(self._sums, values, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this process."""
        return {name: pair.cpu() for name, pair in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from `state_dict`."""
        self._sums = {name: value.to(device) for name, value in state.items()}

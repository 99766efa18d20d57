"""Steps whose loss or gradient is not finite: skipped, told, and too many of them end the run."""

import sys

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.training.settings import TrainingSettings


class Guard:
    """Counts skipped steps on the device, so that a step need not wait to be looked at.

    Args:
        settings: `max_nonfinite_steps` is the limit; some others are named in the advice.
        device: where the flags come from.
        quiet: print no warnings.
    """

    def __init__(
        self, settings: TrainingSettings, device: torch.device, *, quiet: bool = False
    ) -> None:
        self._settings, self._quiet = settings, quiet
        self._in_a_row, self._longest, self._skipped = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)
        )

    def note(self, finite: Tensor) -> None:
        """Count a step; `finite` is a bool on the device."""
        self._in_a_row = torch.where(finite, 0, self._in_a_row + 1)
        self._longest = torch.maximum(self._longest, self._in_a_row)
        self._skipped = self._skipped + (~finite).long()

    def check(self, step: int) -> None:
        """Look at the counts since the last check.

        Raises:
            MedarError: too many steps in a row were skipped.
        """
        longest, skipped = torch.stack([self._longest, self._skipped]).tolist()
        if longest >= self._settings.max_nonfinite_steps:
            raise MedarError(
                f"step {step}: the loss or its gradient was not finite in {longest} steps in a "
                f"row; try a lower learning_rate (now {self._settings.learning_rate:g}), a longer "
                "warm-up, precision 'fp32', or look for NaN in the data"
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

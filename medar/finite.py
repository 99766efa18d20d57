"""NaN and infinite outputs of networks, of which nothing may be made."""

import torch

from medar.errors import MedarError


def check_finite(values: torch.Tensor, what: str) -> None:
    """Check that a network's output is finite; on a GPU, this waits for it.

    Args:
        values: the output.
        what: plural, for the message.

    Raises:
        MedarError: it holds NaN or Inf.
    """
    # The extremes are NaN if any value is; `isfinite` of all values would take their memory again.
    low, high = values.aminmax()
    if not (low.isfinite() & high.isfinite()):
        raise MedarError(
            f"{what} are NaN or infinite: the weights are damaged, or training diverged; restore "
            "the model folder from a copy, or train again"
        )

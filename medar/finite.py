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
    if not values.isfinite().all():
        raise MedarError(
            f"{what} are NaN or infinite: the weights are damaged, or training diverged; restore "
            "the model folder from a copy, or train again"
        )

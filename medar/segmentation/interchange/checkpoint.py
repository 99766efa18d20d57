"""Weights out of other people's checkpoints, without running what is in them."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from medar.errors import MedarError, one_line

INSIDE = ("network_weights", "state_dict", "model_state_dict", "model", "net")
"""Where checkpoints keep the weights, beside the optimiser and the rest."""
PARALLEL = "module."
"""How names begin in a network that was trained on several GPUs."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint: .safetensors, or what torch.save wrote.

    Raises:
        MedarError: it cannot be read, holds objects other than tensors and plain values, or no
            weights.
    """
    path = Path(path)
    if not path.is_file():
        raise MedarError(f"{path}: no such file; a checkpoint is needed, .pt, .pth or .safetensors")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with _numbers_of_numpy():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MedarError(
            f"{path}: not a checkpoint of tensors and plain values ({one_line(error)}); save the "
            "state_dict alone"
        ) from error
    found = _weights_in(content)
    if not found:
        raise MedarError(
            f"{path}: no weights found; a state_dict is needed, alone or under {', '.join(INSIDE)}"
        )
    if all(name.startswith(PARALLEL) for name in found):
        found = {name.removeprefix(PARALLEL): value for name, value in found.items()}
    return found


def _weights_in(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    for name in INSIDE:
        if isinstance(content.get(name), dict):
            return _weights_in(content[name])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _numbers_of_numpy() -> AbstractContextManager[Any]:
    """Numbers of NumPy are no code: nnU-Net keeps its losses as such."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    return safe_globals([scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds])

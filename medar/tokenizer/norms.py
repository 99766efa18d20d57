"""RMSNorm (arXiv 1910.07467) that stays in the dtype of its input.

Autocast on CUDA would cast its input to float32 and keep that copy for the backward pass (torch
2.13); the kernel sums in float32 anyway.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.RMSNorm):
    """RMSNorm over the last axis, in the dtype of its input whatever autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) to the same shape and dtype."""
        weight: Tensor | None = self.weight
        if weight is not None:
            weight = weight.to(x.dtype)  # the fused kernel needs one type
        with without_autocast(x):
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast changes no operation on the device of `x`."""
    # A tensor without data is on no device that autocast knows.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)

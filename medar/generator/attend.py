"""`attend`: scaled dot-product attention in the precision that is fast where the tensors are.

B batch, H heads, T queries, S keys, W width of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """(B, H, T, W) queries over (B, H, S, W) keys and values; as precise as `values`.

    On CPUs the backward pass of torch's bf16 kernel takes several times as long as that of the
    float32 one (torch 2.13), so that float32 is used there.

    Args:
        queries: of any precision.
        keys: likewise.
        values: what the result is as precise as.
        mask: bool, True where a query may look; broadcast over the batch and heads.
        causal: a query looks at keys up to its own place alone.
    """
    device = values.device.type
    kind = torch.float32 if device == "cpu" else values.dtype
    with torch.autocast(device, enabled=False):
        mixed = scaled_dot_product_attention(
            queries.to(kind), keys.to(kind), values.to(kind), attn_mask=mask, is_causal=causal
        )
    return mixed.to(values.dtype)

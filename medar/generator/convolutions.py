"""Convolutions over the grid of each scale, between the embedding and the transformer.

    x = x + conv(SiLU(norm(conv(SiLU(norm(x))))))        3x3x3, for each scale on its own grid

A token depends most on the reconstruction next to its site: which way an edge runs, where it ends.
Attention within a window can find that out, but has to learn for each pair of positions what a
convolution has built in. Weights are shared by all scales. As every site of a scale has its inputs
before any of its tokens is drawn, the same layers serve training and sampling, and known and
revealed tokens are seen by their neighbours as well.

B batch, L tokens over all scales, T tokens of one scale, E width, X Y Z sites.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from medar.tokenizer.convolution import Convolution
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


class GridConvolutions(nn.Module):
    """Residual blocks of two convolutions.

    Args:
        blocks: how many.
        width: E.
        schedule: the grids.
        dropout: probability at the end of each block, in training.
        activation_checkpointing: see `ModelSettings`.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        schedule: ScaleSchedule,
        dropout: float = 0.0,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.schedule, self.activation_checkpointing = schedule, activation_checkpointing
        self.blocks = nn.ModuleList(ConvolutionBlock(width, dropout) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """All scales, (B, L, E) to the same."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(self._scales, x, use_reentrant=False)
            return recomputed
        return self._scales(x)

    def _scales(self, x: Tensor) -> Tensor:
        scales = torch.split(x, list(self.schedule.tokens), dim=1)
        return torch.cat([self.step(k, scale) for k, scale in enumerate(scales)], dim=1)

    def step(self, k: int, x: Tensor) -> Tensor:
        """Scale k, (B, T, E) to the same."""
        for block in self.blocks:
            x = block(x, self.schedule.grids[k])
        return x


class ConvolutionBlock(nn.Module):
    """One residual block; it starts as the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.into = Norm(width, eps=1e-6), Convolution(width, width)
        self.norm2, self.out = Norm(width, eps=1e-6), Convolution(width, width)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, grid: Shape3) -> Tensor:
        """(B, T, E) of a grid to the same."""
        h = _on_grid(self.into, silu(self.norm(x)), grid)
        h = _on_grid(self.out, silu(self.norm2(h)), grid)
        changed: Tensor = x + self.dropout(h)
        return changed


def _on_grid(convolution: nn.Module, x: Tensor, grid: Shape3) -> Tensor:
    """A convolution of (B, T, E), whose memory is that of channels last, to the same."""
    batch, _, width = x.shape
    convolved = convolution(x.view(batch, *grid, width).permute(0, 4, 1, 2, 3))
    flat: Tensor = convolved.permute(0, 2, 3, 4, 1).flatten(1, 3)
    return flat

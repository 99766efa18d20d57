"""Attention within a scale: each token sees all tokens of its own scale, and of no other scale.

Queries and keys are normalised (RMSNorm over a head's features, as in arXiv 2302.05442) and rotated
by their 3D positions. From a minimum grid size on, where attention between all pairs would take
most of the time, it is limited to windows; every other layer shifts them by half a side (arXiv
2103.14030, without its cyclic shift: windows at the border are smaller).

B batch, L tokens over all scales, T queries or tokens of one scale, S keys, E width, H heads, W
width of a head.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from medar.generator.positions import Rotary
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention of (B, H, T, W) queries over (B, H, S, W) keys and values.

    On CPUs it runs in float32: the backward pass of torch's bf16 kernel takes several times as long
    (torch 2.13).

    Args:
        queries: of any dtype.
        keys: of any dtype.
        values: the result has their dtype.
        mask: bool, True where a query may attend; broadcast over the batch and heads.
        causal: a query attends only to keys up to its own index.
    """
    device = values.device.type
    kind = torch.float32 if device == "cpu" else values.dtype
    with torch.autocast(device, enabled=False):
        mixed = scaled_dot_product_attention(
            queries.to(kind), keys.to(kind), values.to(kind), attn_mask=mask, is_causal=causal
        )
    return mixed.to(values.dtype)


class ScaleAttention(nn.Module):
    """Multi-head attention within each scale.

    Args:
        width: E.
        heads: H.
        schedule: the grids.
        rotary: positions of all L tokens.
        window_size: sites along a side of a window.
        window_min_side: longest side of a grid from which windows are used.
        shifted: whether the windows start half a side before the grid.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        schedule: ScaleSchedule,
        rotary: Rotary,
        *,
        window_size: int,
        window_min_side: int,
        shifted: bool,
    ) -> None:
        super().__init__()
        self.heads, self.schedule, self.rotary = heads, schedule, rotary
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        shift = window_size // 2 if shifted else 0
        self.windows = nn.ModuleList(
            Windows(grid, window_size, shift) if max(grid) >= window_min_side else nn.Identity()
            for grid in schedule.grids
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same; or only the coarsest scales."""
        scales = len(self.schedule.split(x))
        return self._attend(x, range(scales))

    def step(self, k: int, x: Tensor) -> Tensor:
        """Scale k, (B, T, E) to the same."""
        return self._attend(x, [k])

    def _attend(self, x: Tensor, scales: Sequence[int]) -> Tensor:
        start = self.schedule.offsets[scales[0]]
        queries, keys, values = rearrange(
            self.project(x), "b l (three h w) -> three b h l w", three=3, h=self.heads
        )
        queries = self.rotary(self.query_norm(queries.float()), start)
        keys = self.rotary(self.key_norm(keys.float()), start)
        tokens = [self.schedule.tokens[k] for k in scales]
        parts = zip(*(one.split(tokens, dim=2) for one in (queries, keys, values)), strict=True)
        mixed = [self._scale(k, *part) for k, part in zip(scales, parts, strict=True)]
        result: Tensor = self.out(rearrange(torch.cat(mixed, dim=2), "b h l w -> b l (h w)"))
        return result

    def _scale(self, k: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, H, T, W) each, of one scale."""
        windows = self.windows[k]
        if not isinstance(windows, Windows):
            return attend(queries, keys, values)
        mask = windows.inside.repeat(len(queries), 1)[:, None, None]
        cut = (windows.cut(queries), windows.cut(keys), windows.cut(values))
        return windows.join(attend(*cut, mask=mask), len(queries))


class Windows(nn.Module):
    """A grid cut into windows.

    Args:
        grid: sites along each axis.
        side: sites along a side of a window.
        shift: sites by which the first window starts before the grid.
    """

    inside: Tensor
    """(windows, sites of a window) bool: whether a site lies on the grid."""

    def __init__(self, grid: Shape3, side: int, shift: int) -> None:
        super().__init__()
        self.grid, self.side, self.shift = grid, side, shift
        x, y, z = (-(-(shift + sites) // side) for sites in grid)
        self.counts = x, y, z
        there = torch.ones(1, 1, *grid, dtype=torch.bool).flatten(2)[..., None]
        self.register_buffer("inside", self.cut(there)[:, 0, :, 0], persistent=False)

    def cut(self, x: Tensor) -> Tensor:
        """(B, H, T, W) to (B windows, H, sites of a window, W); zeros beyond the grid."""
        i, j, k = self.grid
        volume = rearrange(x, "b h (i j k) w -> b h i j k w", i=i, j=j, k=k)
        padding = [0, 0]
        for sites, count in zip(reversed(self.grid), reversed(self.counts), strict=True):
            padding += [self.shift, count * self.side - self.shift - sites]
        pattern = "b h (i a) (j c) (k d) w -> (b i j k) h (a c d) w"
        a, c, d = self.side, self.side, self.side
        cut: Tensor = rearrange(pad(volume, padding), pattern, a=a, c=c, d=d)
        return cut

    def join(self, x: Tensor, batch: int) -> Tensor:
        """The inverse of `cut` for `batch` volumes."""
        i, j, k = self.counts
        pattern = "(b i j k) h (a c d) w -> b h (i a) (j c) (k d) w"
        side = self.side
        volume = rearrange(x, pattern, b=batch, i=i, j=j, k=k, a=side, c=side, d=side)
        own = [slice(self.shift, self.shift + sites) for sites in self.grid]
        return volume[:, :, own[0], own[1], own[2]].flatten(2, 4)

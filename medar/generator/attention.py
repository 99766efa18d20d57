"""Attention within a scale: each token sees all tokens of its own scale, and of no other scale.

Queries and keys are normalised (RMSNorm over a head's features, as in arXiv 2302.05442) and rotated
by their 3D positions. From a minimum grid size on, where attention between all pairs would take
most of the time, it is limited to windows; every other layer shifts them by half a side (arXiv
2103.14030, without its cyclic shift: windows at the border are smaller).

B batch, L tokens over all scales, T queries or tokens of one scale, S keys, E width, H heads, W
width of a head.
"""

from collections.abc import Iterable, Sequence
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from medar.generator.crops import crop_grids
from medar.generator.positions import Rotary
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention of (B, H, T, W) queries over (B, H, S, W) keys and values.

    On CPUs it runs in float32: the backward pass of torch's bf16 kernel takes several times as long
    (torch 2.13).

    Args:
        queries: of any dtype.
        keys: of any dtype.
        values: the result has their dtype.
        causal: a query attends only to keys up to its own index.
    """
    device = values.device.type
    kind = torch.float32 if device == "cpu" else values.dtype
    with torch.autocast(device, enabled=False):
        mixed = scaled_dot_product_attention(
            queries.to(kind), keys.to(kind), values.to(kind), is_causal=causal
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
        crop_side: sites along a side of training's crops; None: there are none.
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
        crop_side: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.schedule, self.rotary = heads, schedule, rotary
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = Norm(width // heads, eps=1e-6)
        self.key_norm = Norm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        shift = window_size // 2 if shifted else 0
        windowed = [max(grid) >= window_min_side for grid in schedule.grids]
        self.windows = grids_of_windows(schedule.grids, windowed, window_size, shift)
        self.crop_tokens: list[int] = []
        if crop_side is not None:
            crops = crop_grids(schedule, crop_side)
            self.crop_tokens = [prod(grid) for grid in crops]
            self.crop_windows = grids_of_windows(crops, windowed, window_size, shift)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """(B, L, E) to the same; or only the coarsest scales.

        Args:
            x: the tokens.
            indices: (C,), if `x` is a crop, (B, C, E): its positions among all tokens.
        """
        if indices is not None:
            return self._attend(x, self.crop_tokens, self.crop_windows, indices=indices)
        scales = len(self.schedule.split(x))
        return self._attend(x, self.schedule.tokens[:scales], self.windows[:scales])

    def step(self, k: int, x: Tensor) -> Tensor:
        """Scale k, (B, T, E) to the same."""
        start = self.schedule.offsets[k]
        return self._attend(x, [x.shape[1]], [self.windows[k]], start)

    def _attend(
        self,
        x: Tensor,
        tokens: Sequence[int],
        windows: Iterable[nn.Module],
        start: int = 0,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Some scales, by their numbers of tokens and windows; see `Rotary` for positions."""
        queries, keys, values = rearrange(
            self.project(x), "b l (three h w) -> three b h l w", three=3, h=self.heads
        )
        queries = self.rotary(self.query_norm(queries.float()), start, indices)
        keys = self.rotary(self.key_norm(keys.float()), start, indices)
        parts = zip(
            *(one.split(list(tokens), dim=2) for one in (queries, keys, values)), strict=True
        )
        mixed = [attend_in(one, *part) for one, part in zip(windows, parts, strict=True)]
        result: Tensor = self.out(rearrange(torch.cat(mixed, dim=2), "b h l w -> b l (h w)"))
        return result


def attend_in(windows: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention within windows, or within the whole scale; (B, H, T, W) each."""
    if not isinstance(windows, Windows):
        return attend(queries, keys, values)
    cut = zip(windows.cut(queries), windows.cut(keys), windows.cut(values), strict=True)
    return windows.join([attend(*part) for part in cut], len(queries))


def grids_of_windows(
    grids: Sequence[Shape3], windowed: Sequence[bool], side: int, shift: int
) -> nn.ModuleList:
    """`Windows` per grid, the identity for those that are not windowed."""
    return nn.ModuleList(
        Windows(grid, side, shift) if cut else nn.Identity()
        for grid, cut in zip(grids, windowed, strict=True)
    )


class Windows(nn.Module):
    """A grid cut into windows, which are grouped by their number of sites.

    Windows at the border are smaller. Each group is one call of attention without a mask, for which
    torch has its fastest kernels, and no site beyond the grid is computed.

    Args:
        grid: sites along each axis.
        side: sites along a side of a window.
        shift: sites by which the first window starts before the grid.
    """

    order: Tensor
    """(T,) the sites, window by window."""
    inverse: Tensor
    """(T,) the index of each site in `order`."""

    def __init__(self, grid: Shape3, side: int, shift: int) -> None:
        super().__init__()
        window = torch.zeros(grid, dtype=torch.long)
        for axis, sites in enumerate(grid):
            along = (torch.arange(sites) + shift) // side
            shape = [-1 if other == axis else 1 for other in range(3)]
            window = window * (sites + 1) + along.view(shape)
        _, window, sizes = torch.unique(window.flatten(), return_inverse=True, return_counts=True)
        order = (sizes[window] * len(sizes) + window).argsort(stable=True)
        found, counts = torch.unique(sizes, return_counts=True)
        self.groups = tuple(zip(counts.tolist(), found.tolist(), strict=True))
        """Windows, and sites of each, per group."""
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    def cut(self, x: Tensor) -> list[Tensor]:
        """(B, H, T, W) to (B windows, H, sites of a window, W) for each group."""
        parts = torch.split(x[:, :, self.order], [n * sites for n, sites in self.groups], dim=2)
        return [
            rearrange(part, "b h (n s) w -> (b n) h s w", n=n)
            for part, (n, _) in zip(parts, self.groups, strict=True)
        ]

    def join(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        """The inverse of `cut` for `batch` volumes."""
        back = [rearrange(part, "(b n) h s w -> b h (n s) w", b=batch) for part in parts]
        return torch.cat(back, dim=2)[:, :, self.inverse]

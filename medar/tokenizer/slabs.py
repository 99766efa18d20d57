"""Run a convolutional network slab by slab along one axis: the same result as in one piece.

A slab is a few rows of a volume along that axis. Each layer keeps the rows of its input that its
next outputs need, so that nothing is computed twice and memory does not grow with the number of
rows. A layer's output lags behind its input by the rows that it waits for: it may return nothing
for the first slabs, and returns the rest with the last one.

    slab -> layer -> as many rows as are complete -> next layer -> ...

B batch, C channels, X Y Z rows along the three axes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medar.tokenizer.network import ChannelNorm, Fold, Repeat, ResidualBlock, Unfold

ALIVE = 6
"""Float32 features of a network at its finest level that are in memory at once, in multiples of
its width: 5.1 to 6.0 measured (widths 16 and 8, 96 cubed voxels, on a CPU)."""

Layer = Callable[[Tensor, bool], Tensor | None]
"""From a slab, and whether it is the last one, to the rows that are complete; None: none yet."""


def by_slabs(layer: Layer, slabs: Iterable[Tensor]) -> Iterator[Tensor]:
    """The rows that a layer makes of all slabs, in order.

    Args:
        layer: not used before; it holds the state of one pass.
        slabs: (B, C, X, Y, Z) each.
    """
    before: Tensor | None = None
    for slab in slabs:
        if before is not None and (made := layer(before, False)) is not None:
            yield made
        before = slab
    if before is not None and (made := layer(before, True)) is not None:
        yield made


def at_most(slabs: Iterable[Tensor], rows: int, axis: int) -> Iterator[Tensor]:
    """The same rows in slabs of at most `rows`.

    The last output of a layer holds all rows that it waited for; upsampled further, they would
    need more memory than any other slab.
    """
    for slab in slabs:
        yield from torch.split(slab, rows, axis)


def layer_of(module: nn.Module, axis: int) -> Layer:
    """A module of the tokenizer's networks as a layer over slabs.

    Args:
        module: a convolution of three sites and padding, or whose stride is its kernel; a residual
            block; a module that treats sites or patches by themselves; or a sequence of these.
            Slabs must hold whole patches.
        axis: of the slabs, 2 to 4.

    Raises:
        TypeError: another module.
    """
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return chained([layer_of(one, axis) for one in module])
    if isinstance(module, ResidualBlock):
        return Residual(layer_of(module.body, axis), axis)
    if isinstance(module, nn.Conv3d) and module.stride == module.kernel_size:
        return chained([Whole(module.stride[axis - 2], axis), each(module)])
    if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
        return chained([Neighbours(axis), each(inner_convolution(module, axis))])
    if isinstance(module, ChannelNorm | Fold | Unfold | Repeat | nn.SiLU | nn.Identity):
        return each(module)
    raise TypeError(f"no layer over slabs for {type(module).__name__}")


def chained(layers: Sequence[Layer]) -> Layer:
    """Layers one after the other."""

    def run(slab: Tensor, last: bool) -> Tensor | None:
        rows: Tensor | None = slab
        del slab  # the caller's reference aside, only the newest rows are kept in memory
        for layer in layers:
            if rows is None:
                return None
            rows = layer(rows, last)
        return rows

    return run


def each(function: Callable[[Tensor], Tensor]) -> Layer:
    """A function that treats rows, or patches of them, by themselves."""
    return lambda slab, last: function(slab)


def inner_convolution(module: nn.Conv3d, axis: int) -> Callable[[Tensor], Tensor]:
    """A convolution of three sites without padding along `axis`; see `Neighbours`."""
    padding = [0 if other == axis else 1 for other in (2, 3, 4)]
    return lambda rows: functional.conv3d(rows, module.weight, module.bias, padding=padding)


def fitting(count: int, width_bytes: int, kept_bytes: int, budget: int) -> int:
    """How many patches along an axis a network may take at once; at least 1.

    Args:
        count: all of them.
        width_bytes: of the features of one patch at the finest level, in float32, once.
        kept_bytes: of the rows that the layers keep between slabs.
        budget: in bytes.
    """
    if count * width_bytes * ALIVE <= budget:
        return count
    return max(1, (budget - kept_bytes) // (width_bytes * ALIVE))


class Neighbours:
    """Rows with the row before and the row after them, zeros at the ends of the volume."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._kept: Tensor | None = None

    def __call__(self, slab: Tensor, last: bool) -> Tensor | None:
        edge = torch.zeros_like(slab.narrow(self.axis, 0, 1))
        before = edge if self._kept is None else self._kept
        rows = torch.cat([before, slab, edge] if last else [before, slab], self.axis)
        size = rows.shape[self.axis]
        self._kept = None if last else rows.narrow(self.axis, size - 2, 2).clone()
        return rows if size >= 3 else None


class Waiting:
    """Rows that wait until others of the same position are complete."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._rows: Tensor | None = None

    def put(self, slab: Tensor) -> None:
        """Add rows at the end."""
        self._rows = slab if self._rows is None else torch.cat([self._rows, slab], self.axis)

    def take(self, count: int) -> Tensor | None:
        """The first rows, which then wait no longer; None for none."""
        if count == 0 or self._rows is None:
            return None
        rows, left = self._rows, self._rows.shape[self.axis] - count
        self._rows = rows.narrow(self.axis, count, left).clone() if left else None
        return rows.narrow(self.axis, 0, count)

    def __len__(self) -> int:
        return 0 if self._rows is None else self._rows.shape[self.axis]


class Whole:
    """Rows in multiples of a patch, for layers that treat patches by themselves."""

    def __init__(self, patch: int, axis: int) -> None:
        self.patch, self._waiting = patch, Waiting(axis)

    def __call__(self, slab: Tensor, last: bool) -> Tensor | None:
        self._waiting.put(slab)
        return self._waiting.take(len(self._waiting) // self.patch * self.patch)


class Residual:
    """x + f(x), where f is a layer."""

    def __init__(self, change: Layer, axis: int) -> None:
        self.change, self.axis, self._waiting = change, axis, Waiting(axis)

    def __call__(self, slab: Tensor, last: bool) -> Tensor | None:
        self._waiting.put(slab)
        change = self.change(slab, last)
        own = None if change is None else self._waiting.take(change.shape[self.axis])
        return None if change is None or own is None else own + change

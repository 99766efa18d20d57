"""Overlapping windows of a volume, blended while they are computed.

    windows that start at one row -> added to a buffer as deep as a window
    -> the rows that no later window reaches -> out; the buffer moves on

Positions and Gaussian weights are MONAI's, as of its `sliding_window_inference`, which keeps all
classes of the whole volume. Here memory does not grow with the number of rows.

On a CPU, what is computed voxel by voxel is computed a few planes at a time: these stay in the
cache, and in memory that the process has already. New memory for each step over a whole window
takes more time than the step.

B batch, C channels, X Y Z voxels, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medar.devices import send
from medar.finite import check_finite
from medar.volume import Shape3

PART = 1 << 24
"""Numbers that are handed on at once."""

CACHED = 1 << 18
"""Numbers that a CPU computes with at once."""

Planes = tuple[slice, Tensor]
"""Some of the X of a window, and its class probabilities there, (B, K, x, Y, Z) float32."""


class Blended(NamedTuple):
    """Rows of a volume that are complete; overwritten when the next ones are requested."""

    low: int
    high: int
    """The rows, along the axis of the blending."""
    sums: Tensor
    """(1, K, X, Y, Z): the class probabilities of all windows, times their weights."""
    weights: Tensor
    """(X, Y, Z): the sum of the weights."""

    def narrow(self, axis: int, start: int, length: int) -> "Blended":
        """A part of the rows along another axis, 0 to 2."""
        sums = self.sums.narrow(2 + axis, start, length)
        return self._replace(sums=sums, weights=self.weights.narrow(axis, start, length))

    @property
    def probabilities(self) -> Tensor:
        """(1, K, X, Y, Z) float32."""
        return self.sums / self.weights

    @property
    def classes(self) -> Tensor:
        """The most probable class, (1, X, Y, Z) int16."""
        sums = self.sums[0]
        if sums.device.type != "cpu":
            return sums[None].max(1).indices.to(torch.int16)
        made = torch.empty(sums.shape[1:], dtype=torch.int16)
        for planes in plane_slices(sums[None]):
            made[planes] = first_largest(sums[:, planes])
        return made[None]


def first_largest(values: Tensor) -> Tensor:
    """The index of the largest of K numbers, the first one among equals; (K, ...) to int16 (...).

    Equal to `values.max(0).indices`, which a CPU does not vectorise; neither does it vectorise
    comparisons into boolean tensors.
    """
    count = len(values)
    back = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    equal = values.clone().eq_(values.amax(0))
    first = equal.mul_(back.view(count, *[1] * (values.ndim - 1))).amax(0)
    return (count - first).to(torch.int16)


def plane_slices(array: Tensor) -> Iterator[slice]:
    """Slices of the X of a (B, K, X, Y, Z) array: on a CPU a few planes each, otherwise one."""
    sides = array.shape[2]
    count = max(1, CACHED * sides // array.numel()) if array.device.type == "cpu" else sides
    for low in range(0, sides, count):
        yield slice(low, min(low + count, sides))


def class_probabilities(logits: Tensor) -> Iterator[Planes]:
    """The softmax of logits (B, K, X, Y, Z) of any precision."""
    for planes in plane_slices(logits):
        yield planes, logits[:, :, planes].float().softmax(1)


def blend(
    network: Callable[[Tensor], Iterable[Planes]],
    image: Tensor,
    size: Shape3,
    *,
    axis: int,
    overlap: float,
    batch_size: int,
    network_device: torch.device,
    device: torch.device,
) -> Iterator[Blended]:
    """Blend the class probabilities of all windows of an image.

    Args:
        network: from windows (B, C, *size) to all planes of their softmax probabilities.
        image: (C, X, Y, Z) of any size, on the CPU; -1 where a window exceeds it.
        size: of a window.
        axis: 0 to 2, along which rows are handed on.
        overlap: fraction of a window that overlaps with its neighbour.
        batch_size: windows at once.
        network_device: of the network.
        device: to blend on.

    Raises:
        MedarError: probabilities that are NaN or infinite.
    """
    from monai.data.utils import compute_importance_map

    image, inside = _padded(image, size)
    sides, depth = list(image.shape[1:]), size[axis]
    starts = [window_starts(*of_axis, overlap) for of_axis in zip(sides, size, strict=True)]
    along, sides[axis] = starts[axis], depth
    map_ = compute_importance_map(size, mode="gaussian", device=device)
    weights = torch.zeros(1, *sides, device=device)
    sums: Tensor | None = None
    for start, following in zip(along, [*along[1:], along[-1] + depth], strict=True):
        starts[axis] = [start]
        corners = list(product(*starts))
        for first in range(0, len(corners), batch_size):
            some = corners[first : first + batch_size]
            windows = torch.stack([_window(image, corner, size) for corner in some])
            at = [[*corner[:axis], 0, *corner[axis + 1 :]] for corner in some]
            for planes, made in network(send(windows, network_device)):
                if sums is None:
                    sums = torch.zeros(made.shape[1], *sides, device=device)
                for corner, part in zip(at, made.to(device), strict=True):
                    _window(sums, corner, size)[:, planes].addcmul_(part, map_[planes])
            for corner in at:
                _window(weights, corner, size).add_(map_)
        assert sums is not None
        complete = range(start, following)
        # Once a row, as it waits for the device; and one class, as softmax makes all of them NaN.
        check_finite(sums[0].narrow(axis, 0, len(complete)), "the class probabilities")
        for low, high in _parts(complete, inside[axis], sums.numel() // depth):
            box = [slice(part.start, part.stop) for part in inside]
            box[axis] = slice(low - start, high - start)
            x, y, z = box
            own = low - inside[axis].start, high - inside[axis].start
            yield Blended(*own, sums[None, :, x, y, z], weights[0, x, y, z])
        if following < along[-1] + depth:
            _move_on(sums, axis, len(complete))
            _move_on(weights, axis, len(complete))


def window_starts(side: int, wide: int, overlap: float) -> list[int]:
    """The first row of each window: every step, the last one moved back to end with the side."""
    step = max(1, int(wide * (1 - overlap)))
    count = 1 + max(0, -((wide - side) // step))
    return [min(step * index, side - wide) for index in range(count)]


def _padded(image: Tensor, size: Shape3) -> tuple[Tensor, tuple[range, range, range]]:
    """An image at least as large as a window, and where the given one lies in it."""
    pads: list[int] = []
    inside = []
    for side, wide in zip(image.shape[1:], size, strict=True):
        before = max(0, wide - side) // 2
        pads = [before, max(0, wide - side) - before, *pads]
        inside.append(range(before, before + side))
    x, y, z = inside
    return functional.pad(image, pads, value=-1.0) if any(pads) else image, (x, y, z)


def _window(array: Tensor, corner: Sequence[int], size: Shape3) -> Tensor:
    """The window of a (C, X, Y, Z) array at a corner."""
    x, y, z = (slice(low, low + wide) for low, wide in zip(corner, size, strict=True))
    return array[:, x, y, z]


def _parts(rows: range, inside: range, row_size: int) -> Iterator[tuple[int, int]]:
    """The rows that lie inside, in parts of about `PART` numbers."""
    first, last = max(rows.start, inside.start), min(rows.stop, inside.stop)
    step = max(1, PART // row_size)
    for low in range(first, last, step):
        yield low, min(low + step, last)


def _move_on(buffer: Tensor, axis: int, rows: int) -> None:
    """Drop the first rows of a (C, X, Y, Z) buffer and append rows of zeros."""
    kept = buffer.shape[1 + axis] - rows
    for channel in buffer:  # one by one, for the sake of memory
        left = channel.narrow(axis, rows, kept)
        channel.narrow(axis, 0, kept).copy_(left.clone() if rows < kept else left)
        channel.narrow(axis, kept, rows).zero_()

"""Class probabilities of a prepared volume, by overlapping windows, mirror images and ensembles.

    prepared volume -> windows -> softmax, averaged over mirror images and networks
    -> blended by Gaussian weights (`medar.segmentation.blending`)

Windows are computed along the longest axis, and only the rows that they reach are in memory. If
these exceed the memory, the volume is cut into slabs along its second longest axis. Each slab sees
all windows that reach into it, so that slabs give the result of the whole volume.

B batch, C channels, X Y Z voxels, K labels (without the background).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from medar.data.augmentation import AXES, mirrored_labels
from medar.devices import (
    InferencePrecision,
    device_of,
    inference_autocast,
    memory_budget,
    reused_memory,
)
from medar.errors import MedarError
from medar.segmentation.blending import PART, Blended, Planes, blend, class_probabilities
from medar.segmentation.segmenter import Segmenter
from medar.settings import FractionBelowOne, PositiveInt, settings, to_dict
from medar.volume import Shape3


@settings(renamed={"budget": "memory_gib"})
class PredictionSettings:
    """How volumes are segmented."""

    overlap: FractionBelowOne = 0.5
    """Fraction of a window that overlaps with its neighbour."""
    mirrors: tuple[Literal["x", "y", "z"], ...] | None = None
    """Axes whose mirror images are averaged over; null: those of training; none: fastest. x is
    left-right, where labels of the two sides are swapped."""
    batch_size: PositiveInt = 1
    """Windows that go through the network at once."""
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Memory for class probabilities, in GiB; if windows side by side need more, the volume is
    processed in slabs."""
    precision: InferencePrecision = "auto"
    """What the network computes in: "fp32", "bf16", or "auto", bf16 where the device has
    instructions for it. Probabilities are float32."""

    @classmethod
    def from_options(
        cls, mirrors: str | None, overlap: float = 0.5, precision: InferencePrecision = "auto"
    ) -> "PredictionSettings":
        """Settings from command-line options.

        Args:
            mirrors: "none", some of the letters "xyz", or None for the axes of training.
            overlap, precision: see above.

        Raises:
            MedarError: other letters, or an overlap out of its range.
        """
        if mirrors is None:
            return cls(overlap=overlap, precision=precision)
        if mirrors != "none" and not set(mirrors) <= set(AXES):
            raise MedarError(f"mirrors must be 'none' or some of the letters xyz, got {mirrors!r}")
        letters = "" if mirrors == "none" else mirrors
        axes: Any = tuple(axis for axis in AXES if axis in letters)
        return cls(overlap=overlap, mirrors=axes, precision=precision)


DEFAULT = PredictionSettings()

Models = Segmenter | Sequence[Segmenter]
"""A network, or an ensemble of networks of one plan whose probabilities are averaged."""

Box = tuple[slice, slice, slice, slice]
"""A box of a (C, X, Y, Z) array."""


def as_ensemble(model: Models) -> list[Segmenter]:
    """A network or several as a list, after comparing their plans.

    Raises:
        MedarError: the list is empty, or the plans differ in volumes or classes.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models:
        raise MedarError("no network to segment with; give at least one")
    first = to_dict(models[0].plan)
    for number, other in enumerate(models[1:], start=2):
        for name, value in to_dict(other.plan).items():
            # Logits are in the order of the labels, so that their order counts too.
            same = str(value) == str(first[name]) if name == "labels" else value == first[name]
            if name != "downsampling" and not same:
                raise MedarError(
                    f"network {number} of the ensemble: its plan has {name} {value}, that of the "
                    f"first has {first[name]}; all networks need the same plan"
                )
    return models


@torch.no_grad()
def predict_classes(model: Models, image: Tensor, settings: PredictionSettings = DEFAULT) -> Tensor:
    """The most probable class of each voxel of a prepared image.

    Args:
        model: in evaluation mode.
        image: (C, X, Y, Z) in [-1, 1], of any size, on the CPU.
        settings: of prediction.

    Returns:
        (1, X, Y, Z) int16 on the CPU: 0 the background, i + 1 the i-th of the plan's labels.
    """
    classes = torch.zeros((1, *image.shape[1:]), dtype=torch.int16)
    for box, blended in predict_rows(model, image, settings):
        classes[box] = blended.classes.cpu()
    return classes


@torch.no_grad()
def predict_rows(
    model: Models, image: Tensor, settings: PredictionSettings = DEFAULT
) -> Iterator[tuple[Box, Blended]]:
    """Classes and probabilities of a prepared image, a few rows at a time.

    Args:
        model: in evaluation mode; computes on the device that it is on. An ensemble is averaged.
        image: (C, X, Y, Z) in [-1, 1], of any size, on the CPU.
        settings: of prediction.

    Yields:
        A box, and its blended probabilities, background first; on the device of the networks, or
        on the CPU if they do not fit there. Valid until the next ones are requested.

    Raises:
        MedarError: probabilities are NaN.
    """
    models = as_ensemble(model)
    plan, sides, device = models[0].plan, list(image.shape[1:]), device_of(models[0])
    _, second, longest = sorted(range(3), key=lambda axis: sides[axis])
    average, classes = _averaged(models, settings), len(plan.labels) + 1
    held = [plan.size[axis] if axis == longest else sides[axis] for axis in range(3)]
    x, y, z = held
    for slab in slabs((x, y, z), plan.size, second, settings, classes):
        held[second] = slab.stop - slab.start
        with reused_memory() if device.type == "cpu" else contextlib.nullcontext():
            rows = blend(
                average,
                image.narrow(1 + second, slab.start, slab.stop - slab.start),
                plan.size,
                axis=longest,
                overlap=settings.overlap,
                batch_size=settings.batch_size,
                network_device=device,
                device=_blending_device(device, held, classes),
            )
            for part in rows:
                box = [slice(0, side) for side in (1, *sides)]
                box[1 + second] = slice(slab.low, slab.high)
                box[1 + longest] = slice(part.low, part.high)
                own = part.narrow(second, slab.low - slab.start, slab.high - slab.low)
                yield (box[0], box[1], box[2], box[3]), own


class Slab(NamedTuple):
    """A part of a volume along one axis, in voxels."""

    low: int
    high: int
    """The slab is [low, high)."""
    start: int
    stop: int
    """All windows that reach into it lie in [start, stop)."""


def slabs(
    sides: Shape3, window: Shape3, axis: int, settings: PredictionSettings, classes: int
) -> Iterator[Slab]:
    """Cut a volume along an axis so that the probabilities of a slab fit `memory_gib` if possible.

    Windows are where they would be in the whole volume: every `step` voxels, the last one moved
    back to end with the volume.

    Args:
        sides: of the volume.
        window: size of the network's input.
        axis: to cut along.
        settings: `overlap` and `memory_gib` are used.
        classes: K + 1.
    """
    size, wide = sides[axis], window[axis]
    across = prod(max(n, w) for n, w in zip(sides, window, strict=True)) // max(size, wide)
    # Probabilities and window weights in float32.
    most = int(settings.memory_gib * 2**30 / (across * 4 * (classes + 1)))
    if size <= max(most, wide):
        yield Slab(0, size, 0, size)
        return
    step = max(1, int(wide * (1 - settings.overlap)))
    keep, last = max(step, most - 2 * wide), size - wide
    for low in range(0, size, keep):
        high = min(low + keep, size)
        first = max(0, -((wide - 1 - low) // step) * step)
        start = min(first, last // step * step)
        stop = (high - 1) // step * step + wide
        yield Slab(low, high, start, size if stop >= size or last < high else stop)


def _blending_device(device: torch.device, sides: Sequence[int], classes: int) -> torch.device:
    """The device of the networks if its memory allows for the rows of a blending, else the CPU."""
    # Sums and weights, and the part of them that is handed on.
    needed = 4 * prod(sides) * (classes + 1) + 16 * PART
    return device if needed <= memory_budget(device) else torch.device("cpu")


def _averaged(
    models: list[Segmenter], settings: PredictionSettings
) -> Callable[[Tensor], Iterator[Planes]]:
    """From windows to class probabilities, averaged over networks and mirror images."""
    plan = models[0].plan
    axes = [one.mirrors if settings.mirrors is None else settings.mirrors for one in models]
    swapped = swapped_classes(plan.labels) if any("x" in chosen for chosen in axes) else []
    device = device_of(models[0])

    def average(windows: Tensor) -> Iterator[Planes]:
        with inference_autocast(device, settings.precision):
            if len(models) == 1 and not axes[0]:
                logits: Tensor = models[0](windows)
                planes = class_probabilities(logits)
            else:
                total = mirror_average(models[0], windows, axes[0], swapped)
                for one, chosen in zip(models[1:], axes[1:], strict=True):
                    total += mirror_average(one, windows, chosen, swapped)
                mean = total.div_(len(models)) if len(models) > 1 else total
                planes = iter([(slice(None), mean)])
        return planes

    return average


def mirror_average(
    model: Segmenter, volumes: Tensor, axes: Sequence[str], swapped: list[int]
) -> Tensor:
    """Class probabilities averaged over a batch and all its mirror images, mirrored back.

    Args:
        model: in evaluation mode.
        volumes: (B, C, X, Y, Z).
        axes: to mirror along.
        swapped: see `swapped_classes`.

    Returns:
        (B, K + 1, X, Y, Z) float32.
    """
    images = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
    total: Tensor | None = None
    for chosen in images:
        dims = [2 + AXES.index(axis) for axis in chosen]
        logits: Tensor = model(volumes.flip(dims) if dims else volumes)
        if total is None:
            total = torch.zeros(logits.shape, device=logits.device)
        for planes, part in class_probabilities(logits):
            if dims:  # torch copies even where nothing is flipped
                part = part.flip(dims)
            if "x" in chosen:
                part = part[:, swapped]
                planes = slice(logits.shape[2] - planes.stop, logits.shape[2] - planes.start)
            total[:, :, planes] += part
    assert total is not None
    return total.div_(len(images)) if len(images) > 1 else total


def swapped_classes(labels: dict[int, str]) -> list[int]:
    """For each class, background first, its index in a left-right mirror image.

    Raises:
        MedarError: a label is named left or right and its counterpart is missing.
    """
    swap, values = mirrored_labels(labels), list(labels)
    return [0, *(1 + values.index(swap.get(value, value)) for value in values)]

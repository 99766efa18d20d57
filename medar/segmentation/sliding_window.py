"""Class probabilities of a prepared volume, by overlapping windows, mirror images and ensembles.

    prepared volume -> windows -> softmax, averaged over mirror images and networks
    -> blended by Gaussian weights (MONAI)

The probabilities of a large volume may exceed the memory: the volume is then processed in slabs.
Each slab sees all windows that reach into it, so that slabs give the result of the whole volume.

B batch, C channels, X Y Z voxels, K labels (without the background).
"""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from medar.data.augmentation import AXES, mirrored_labels
from medar.devices import device_of, memory_budget
from medar.errors import MedarError
from medar.finite import check_finite
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
    """Memory for class probabilities, in GiB; a volume that needs more is processed in slabs."""

    @classmethod
    def from_options(cls, mirrors: str | None, overlap: float = 0.5) -> "PredictionSettings":
        """Settings from command-line options.

        Args:
            mirrors: "none", some of the letters "xyz", or None for the axes of training.
            overlap: see above.

        Raises:
            MedarError: other letters, or an overlap out of its range.
        """
        if mirrors is None:
            return cls(overlap=overlap)
        if mirrors != "none" and not set(mirrors) <= set(AXES):
            raise MedarError(f"mirrors must be 'none' or some of the letters xyz, got {mirrors!r}")
        letters = "" if mirrors == "none" else mirrors
        axes: Any = tuple(axis for axis in AXES if axis in letters)
        return cls(overlap=overlap, mirrors=axes)


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
    for box, probabilities in predict_slabs(model, image, settings):
        classes[box] = probabilities.argmax(1)
    return classes


@torch.no_grad()
def predict_slabs(
    model: Models, image: Tensor, settings: PredictionSettings = DEFAULT
) -> Iterator[tuple[Box, Tensor]]:
    """The probabilities of all classes of a prepared image, slab by slab.

    Args:
        model: in evaluation mode; computes on the device that it is on. An ensemble is averaged.
        image: (C, X, Y, Z) in [-1, 1], of any size, on the CPU.
        settings: slabs fit `memory_gib` if possible.

    Yields:
        The box of a slab, and its (1, K + 1, x, y, z) float32, background first; on the device of
        the networks, or on the CPU if the probabilities do not fit there.

    Raises:
        MedarError: probabilities are NaN.
    """
    models = as_ensemble(model)
    plan = models[0].plan
    x, y, z = image.shape[1:]
    axis = 1 + int(np.argmax(image.shape[1:]))
    for slab in slabs((x, y, z), plan.size, axis - 1, settings, len(plan.labels) + 1):
        seen = image.narrow(axis, slab.start, slab.stop - slab.start)
        box = [slice(0, side) for side in (1, x, y, z)]
        box[axis] = slice(slab.low, slab.high)
        probabilities = _blended_windows(models, seen, settings)
        check_finite(probabilities, "the class probabilities")
        own = probabilities.narrow(1 + axis, slab.low - slab.start, slab.high - slab.low)
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
    # Probabilities and window weights in float32, the most probable class in int64.
    most = int(settings.memory_gib * 2**30 / (across * 4 * (classes + 3)))
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


def _blended_windows(
    models: list[Segmenter], image: Tensor, settings: PredictionSettings
) -> Tensor:
    """(C, X, Y, Z) to probabilities (1, K + 1, X, Y, Z).

    They are blended on the device of the networks if its memory allows, else on the CPU.
    """
    from monai.inferers import sliding_window_inference

    plan = models[0].plan
    axes = [one.mirrors if settings.mirrors is None else settings.mirrors for one in models]
    swapped = swapped_classes(plan.labels) if any("x" in chosen for chosen in axes) else []

    def average(windows: Tensor) -> Tensor:
        total = mirror_average(models[0], windows, axes[0], swapped)
        for one, chosen in zip(models[1:], axes[1:], strict=True):
            total += mirror_average(one, windows, chosen, swapped)
        return total / len(models)

    device = device_of(models[0])
    voxels = prod(max(n, w) for n, w in zip(image.shape[1:], plan.size, strict=True))
    # Probabilities while they are blended and divided by the weights, the weights, the image.
    needed = 4 * voxels * (2 * (len(plan.labels) + 1) + 1 + len(image))
    blending = device if needed <= memory_budget(device) else torch.device("cpu")
    blended = sliding_window_inference(
        image[None].to(blending),
        roi_size=plan.size,
        sw_batch_size=settings.batch_size,
        predictor=average,
        overlap=settings.overlap,
        mode="gaussian",
        cval=-1.0,
        sw_device=device,
        device=blending,
    )
    assert isinstance(blended, Tensor)
    return blended


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
        probabilities = model(volumes.flip(dims)).float().softmax(1).flip(dims)
        if "x" in chosen:
            probabilities = probabilities[:, swapped]
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total / len(images)


def swapped_classes(labels: dict[int, str]) -> list[int]:
    """For each class, background first, its index in a left-right mirror image.

    Raises:
        MedarError: a label is named left or right and its counterpart is missing.
    """
    swap, values = mirrored_labels(labels), list(labels)
    return [0, *(1 + values.index(swap.get(value, value)) for value in values)]

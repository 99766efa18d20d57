"""Decoded volumes: as arrays, on their own grid, by overlapping windows, and their PSNR.

The plan's mode decides how. In volume mode each volume becomes one array of the plan's size, and
what lies outside it cannot be reconstructed. In patch mode a volume keeps its extent: overlapping
windows of the plan's size are reconstructed one by one and blended (MONAI's sliding window with
Gaussian weights).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.data.plan import Plan, Window
from medar.data.preparation import Trace
from medar.tokenizer.bounded import DecodedMap
from medar.volume import Shape3, Volume, resample

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

OVERLAP = 0.25
"""Overlap of neighbouring windows as a fraction of their size, in patch mode."""

UNITS = Window(low=0.0, high=1000.0)
"""Window of a decoded volume if the plan measures windows on volumes and no volume is given."""


class DecodedArrays(NamedTuple):
    """A decoded volume on the plan's grid."""

    image: Array
    """(C, X, Y, Z) in [-1, 1]."""
    label: Labels | None
    """(1, X, Y, Z) of the plan's label values; None without a label head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructed:
    """A volume after encoding and decoding, on its own grid and in its own intensities."""

    image: Volume
    label: Volume | None
    psnr: float
    """dB, within the plan's field of view; see `psnr_within`."""
    outside: float
    """Fraction of the volume's voxels outside the plan's grid."""


def decoded_arrays(decoded: DecodedMap, plan: Plan) -> DecodedArrays:
    """A decoded batch of one as arrays, with classes turned into the plan's label values.

    Training volumes lie within [-1, 1], and so does what is made of a decoder's output.
    """
    values = None
    if decoded.classes is not None:
        named = np.array([0, *plan.labels], dtype=plan.label_dtype)
        values = named[decoded.classes[0].cpu().numpy()]
    return DecodedArrays(decoded.volume[0].float().cpu().numpy().clip(-1.0, 1.0), values)


def field_of_view(trace: Trace) -> npt.NDArray[np.bool_]:
    """Which voxels of the volume's own grid lie within the plan's grid: (X, Y, Z) bool."""
    ones = np.ones((1, *trace.target.shape), np.float32)
    reached = Volume(array=ones, affine=trace.target.affine)
    inside = resample(reached, trace.source, interpolation="nearest", fill=0.0).array[0]
    return np.asarray(inside > 0.5)


def psnr_within(
    inside: npt.NDArray[np.bool_], before: Volume, after: Volume, windows: tuple[Window, ...]
) -> float:
    """Peak signal-to-noise ratio in dB over the voxels `inside`, all channels together.

    Both volumes are clipped to the intensity windows, whose width is the peak: a network cannot
    reconstruct what lies outside. Infinite if the two are equal.
    """
    errors = [
        window.normalise(b[inside]) - window.normalise(a[inside])
        for window, b, a in zip(windows, before.array, after.array, strict=True)
    ]
    square = float(np.mean(np.square(errors, dtype=np.float64)))
    return 10 * math.log10(4 / square) if square > 0 else math.inf


def by_windows(
    network: Callable[[Tensor], tuple[Tensor, ...]], batch: Tensor, size: Shape3
) -> DecodedMap:
    """Reconstruct a volume of any size by overlapping windows.

    Args:
        network: from windows (B, C, *size) to their reconstructions and, with a label head, class
            probabilities.
        batch: (1, C, X, Y, Z).
        size: of a window.
    """
    from monai.inferers import sliding_window_inference

    blended = sliding_window_inference(
        batch,
        roi_size=size,
        sw_batch_size=1,
        predictor=network,
        overlap=OVERLAP,
        mode="gaussian",
        cval=-1.0,
    )
    if isinstance(blended, Tensor):
        return DecodedMap(blended, None)
    volume, *probabilities = blended
    classes = probabilities[0].argmax(1, keepdim=True).to(torch.int16) if probabilities else None
    return DecodedMap(volume, classes)

"""`radiomics`: a volume as some seventy numbers, without any learnt weights.

After the feature classes of radiomics (the IBSI's, arXiv 1612.07003): statistics of intensities and
gradients, spectral power, detail at several scales, local texture, differences over distances, and
coarse means. Magnitudes enter as logarithms with a floor, so that "twice as rough" counts the same
on smooth and on rough volumes. The rise from one scale to the next is a feature of its own: it
varies less among real volumes than the magnitudes do, and noise changes it at once. Features that
a trained network would see (shape, anatomy) are left out: distances over these features judge
sharpness, texture and brightness.

N volumes times channels, X Y Z voxels, F features of a channel.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, avg_pool3d, pad

from medar.errors import MedarError
from medar.tokenizer.spectrum import band_power

NAME = "radiomics-v1"
"""Name and version: raise the version whenever a feature changes."""

SMALLEST = 8
"""Voxels that each axis needs."""

FLOOR = 0.01
"""Amplitude, of the range [-1, 1], below which differences fade out."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STEEPEST = (0.5, 0.9, 0.99)
"""Quantiles of the gradient's magnitude."""
BANDS = tuple(k / 6 for k in range(7))
LEVELS = 3
"""Of the pyramid of details, each at half the resolution of the one before."""
WINDOWS = (3, 5, 7)
"""Sides of the boxes that local deviations are taken in."""
DISTANCES = (1, 2, 4)
"""Voxels along each axis over which differences are taken."""


def feature_names() -> list[str]:
    """What the features of one channel are called, in order."""
    moments = ("mean", "deviation", "skewness", "kurtosis")
    return [
        *(f"intensity_quantile_{q:g}" for q in QUANTILES),
        *(f"intensity_{moment}" for moment in moments),
        *(f"gradient_quantile_{q:g}" for q in STEEPEST),
        *(f"gradient_{moment}" for moment in moments),
        *(f"power_from_{edge:.2f}" for edge in BANDS),
        *(f"power_rise_at_{edge:.2f}" for edge in BANDS[1:]),
        *(f"detail_{k}" for k in range(LEVELS)),
        *(f"detail_rise_{k}" for k in range(1, LEVELS)),
        *(f"detail_sparsity_{k}" for k in range(LEVELS)),
        *(f"texture_{side}_{what}" for side in WINDOWS for what in ("mean", "deviation")),
        *(f"difference_{step}_{axis}" for step in DISTANCES for axis in "xyz"),
        *(f"difference_rise_{step}_{axis}" for step in DISTANCES[1:] for axis in "xyz"),
        *(f"octant_{k:03b}" for k in range(8)),
    ]


@torch.no_grad()
def radiomics(volumes: Tensor) -> Tensor:
    """The features of volumes in [-1, 1].

    Args:
        volumes: (B, C, X, Y, Z), each side from 8 voxels.

    Returns:
        (B, C F) float64 on the CPU, F of the first channel first, in the order of `feature_names`.

    Raises:
        MedarError: a side below 8 voxels.
    """
    if min(volumes.shape[2:]) < SMALLEST:
        sides = " x ".join(map(str, volumes.shape[2:]))
        raise MedarError(f"features of a volume of {sides} voxels: sides from {SMALLEST} needed")
    x = volumes.float().flatten(0, 1)
    power = 0.5 * (band_power(x, BANDS) + FLOOR**2).log()
    detail, sparsity = _details(x)
    difference = _differences(x)
    parts = [
        _quantiles(x, QUANTILES),
        _moments(x),
        *_gradient(x),
        *(power, power.diff(dim=1)),
        *(detail, detail.diff(dim=1), sparsity),
        *_texture(x),
        *(difference.flatten(1), difference.diff(dim=1).flatten(1)),
        adaptive_avg_pool3d(x, 2).flatten(1),
    ]
    return torch.cat(parts, dim=1).reshape(len(volumes), -1).double().cpu()


def _quantiles(x: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(N, ...) -> (N, shares)."""
    # NumPy sorts twenty times faster than torch on a CPU.
    ordered = np.sort(x.flatten(1).cpu().numpy(), axis=1)
    places = [round(share * (ordered.shape[1] - 1)) for share in shares]
    return torch.from_numpy(ordered[:, places]).to(x.device)


def _moments(x: Tensor) -> Tensor:
    """(N, ...) -> (N, 4): mean, log deviation, skewness and kurtosis, both tamed by a root."""
    flat = x.flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    apart = flat - mean
    deviation = apart.square().mean(dim=1, keepdim=True).sqrt()
    scaled = apart / deviation.clamp(min=1e-6)
    squared = scaled.square()
    skewness = (squared * scaled).mean(dim=1, keepdim=True)
    kurtosis = squared.square().mean(dim=1, keepdim=True).clamp(min=1.0)
    return torch.cat([mean, (deviation + FLOOR).log(), skewness.asinh(), kurtosis.log()], dim=1)


def _gradient(x: Tensor) -> list[Tensor]:
    """Of the magnitude of forward differences."""
    inner = x[:, :-1, :-1, :-1]
    along = (x[:, 1:, :-1, :-1], x[:, :-1, 1:, :-1], x[:, :-1, :-1, 1:])
    magnitude = sum((one - inner).square() for one in along).sqrt()  # type: ignore[union-attr]
    return [(_quantiles(magnitude, STEEPEST) + FLOOR).log(), _moments(magnitude)]


def _details(x: Tensor) -> tuple[Tensor, Tensor]:
    """What a 3 x 3 x 3 mean takes away at each resolution: log deviation and sparsity, (N, K)."""
    deviations, sparsities = [], []
    for level in range(LEVELS):
        x = avg_pool3d(x, 2) if level else x
        detail = (x - avg_pool3d(pad(x, (1,) * 6, mode="replicate"), 3, stride=1)).flatten(1)
        deviation = detail.square().mean(dim=1).sqrt() + FLOOR
        deviations.append(deviation.log())
        sparsities.append(((detail.abs().mean(dim=1) + FLOOR) / deviation).log())
    return torch.stack(deviations, dim=1), torch.stack(sparsities, dim=1)


def _texture(x: Tensor) -> list[Tensor]:
    """Mean and spread of the logarithm of the deviation inside boxes."""
    found = []
    for side in WINDOWS:
        mean, square = (avg_pool3d(values, side, stride=2) for values in (x, x.square()))
        local = ((square - mean.square()).clamp(min=0).sqrt() + FLOOR).log().flatten(1)
        found += [local.mean(dim=1, keepdim=True), local.std(dim=1, keepdim=True, correction=0)]
    return found


def _differences(x: Tensor) -> Tensor:
    """Log mean difference of voxels some distance apart along each axis: (N, distances, 3)."""
    found = []
    for step in DISTANCES:
        for axis in (1, 2, 3):
            room = x.shape[axis] - step
            apart = x.narrow(axis, step, room) - x.narrow(axis, 0, room)
            found.append((apart.abs().flatten(1).mean(dim=1) + FLOOR).log())
    return torch.stack(found, dim=1).view(-1, len(DISTANCES), 3)

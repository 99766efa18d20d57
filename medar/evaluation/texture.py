"""`texture`: grey level co-occurrence of a volume along each axis, without any learnt weights.

The grey level co-occurrence matrix (GLCM) counts how often two grey levels lie a given distance
apart (Haralick, IEEE Trans. SMC 3, 1973; the IBSI's definitions, arXiv 1612.07003). Here the pairs
are taken in the whole volume along x, y and z, one matrix for each axis and distance, so that
anisotropic sampling shows. Properties that span orders of magnitude enter as logarithms.

N volumes times channels, X Y Z voxels, F features of a channel.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NAME = "texture-v1"
"""Name and version: raise the version whenever a feature changes."""

LEVELS = 32
"""Grey levels, equal steps of [-1, 1]."""

DISTANCES = (1, 2, 4)
"""Voxels between the two of a pair."""

PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "ASM", "correlation")
LOGARITHMS = ("contrast", "dissimilarity", "ASM")

FLOOR = 0.01
"""Added before a logarithm is taken."""


def feature_names() -> list[str]:
    """What the features of one channel are called, in order."""
    return [
        f"{name.lower()}_{step}_{axis}" for axis in "xyz" for name in PROPERTIES
        for step in DISTANCES
    ]  # fmt: skip


@torch.no_grad()
def texture(volumes: Tensor) -> Tensor:
    """The features of volumes in [-1, 1].

    Args:
        volumes: (B, C, X, Y, Z), each side above the largest distance.

    Returns:
        (B, C F) float64 on the CPU, F of the first channel first, in the order of `feature_names`.
    """
    levels = ((volumes.float().clamp(-1, 1) + 1) / 2 * LEVELS).clamp(max=LEVELS - 1)
    grey = levels.to(torch.uint8).flatten(0, 1).cpu().numpy()
    found = np.stack([np.concatenate([_along(one, axis) for axis in range(3)]) for one in grey])
    return torch.from_numpy(found).reshape(len(volumes), -1)


def _along(grey: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.float64]:
    """Properties of the pairs along one axis of (X, Y, Z), distances fastest."""
    from skimage.feature import graycomatrix, graycoprops

    # As an image whose rows are the volume's lines along the axis: pairs along a row alone.
    lines = np.moveaxis(grey, axis, -1).reshape(-1, grey.shape[axis])
    matrix = graycomatrix(lines, DISTANCES, [0.0], levels=LEVELS, symmetric=True, normed=True)
    found = []
    for name in PROPERTIES:
        values = graycoprops(matrix, name)[:, 0]
        found.append(np.log(values + FLOOR) if name in LOGARITHMS else values)
    return np.concatenate(found)

"""Hand-crafted features: `radiomics-v2` and `texture-v2` of volumes, `shape-v2` of label maps.

They follow the feature classes of radiomics as the IBSI defines them (arXiv 1612.07003).

- `radiomics`: about seventy numbers per channel: statistics of intensities and gradients, spectral
  power, detail at several scales, local texture, differences over distances, and coarse means. The
  rise from one scale to the next is a feature of its own: it varies less among real volumes than
  the magnitudes do, and noise changes it at once. Anatomy is left out, so that distances over these
  features measure sharpness, texture and brightness.
- `texture`: grey level co-occurrence (GLCM; Haralick, IEEE Trans. SMC 3, 1973): how often two grey
  levels lie a fixed distance apart, one matrix per axis and distance over the whole volume, so that
  anisotropic sampling shows.
- `shape_features`: of each label the cube root of its volume fraction, the extent of its bounding
  box along each axis and its centre of mass, as fractions of the volume's sides, and its elongation
  and flatness: logarithms of ratios between the standard deviations along its principal axes in
  mm. A label that is absent has size and extents 0, lies in the middle and is round.

Magnitudes enter as logarithms with a floor, so that "twice as rough" counts the same on smooth and
on rough volumes.

N volumes times channels (shape: label maps), X Y Z voxels, K labels, F features of a channel.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, avg_pool3d, pad

from medar.errors import MedarError
from medar.tokenizer.spectrum import band_power

RADIOMICS, TEXTURE, SHAPE = "radiomics-v2", "texture-v2", "shape-v2"
"""Names and versions: raise the version whenever a feature or its noticeable difference changes."""

FLOOR = 0.01
"""Added before a logarithm is taken: an amplitude of the range [-1, 1], or a GLCM property."""

DISTANCES = (1, 2, 4)
"""Voxels along each axis over which differences and co-occurrences are taken."""

SMALLEST = 8
"""Minimum number of voxels along each axis, for `radiomics`."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STEEPEST = (0.5, 0.9, 0.99)
"""Quantiles of the gradient's magnitude."""
BANDS = tuple(k / 6 for k in range(7))
DETAIL_LEVELS = 3
"""Resolutions at which detail is measured, each half the one before."""
WINDOWS = (3, 5, 7)
"""Sides of the boxes in which local standard deviations are taken."""

GREY_LEVELS = 32
"""Of the GLCM: equal steps of [-1, 1]."""
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "ASM", "correlation")
LOGARITHMS = ("contrast", "dissimilarity", "ASM")

SHAPE_FEATURES = (
    "size", "extent_x", "extent_y", "extent_z", "centre_x", "centre_y", "centre_z", "elongation",
    "flatness",
)  # fmt: skip
"""Of each label."""
ABSENT = (0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0)


def radiomics_names() -> list[str]:
    """Names of the radiomics features of one channel, in order."""
    moments = ("mean", "deviation", "skewness", "kurtosis")
    return [
        *(f"intensity_quantile_{q:g}" for q in QUANTILES),
        *(f"intensity_{moment}" for moment in moments),
        *(f"gradient_quantile_{q:g}" for q in STEEPEST),
        *(f"gradient_{moment}" for moment in moments),
        *(f"power_from_{edge:.2f}" for edge in BANDS),
        *(f"power_rise_at_{edge:.2f}" for edge in BANDS[1:]),
        *(f"detail_{k}" for k in range(DETAIL_LEVELS)),
        *(f"detail_rise_{k}" for k in range(1, DETAIL_LEVELS)),
        *(f"detail_sparsity_{k}" for k in range(DETAIL_LEVELS)),
        *(f"texture_{side}_{what}" for side in WINDOWS for what in ("mean", "deviation")),
        *(f"difference_{step}_{axis}" for step in DISTANCES for axis in "xyz"),
        *(f"difference_rise_{step}_{axis}" for step in DISTANCES[1:] for axis in "xyz"),
        *(f"octant_{k:03b}" for k in range(8)),
    ]


@torch.no_grad()
def radiomics(volumes: Tensor) -> Tensor:
    """The radiomics features of volumes in [-1, 1].

    Args:
        volumes: (B, C, X, Y, Z), each side of at least 8 voxels.

    Returns:
        (B, C F) float64 on the CPU, all features of the first channel first, in the order of
        `radiomics_names`.

    Raises:
        MedarError: a side below 8 voxels.
    """
    if min(volumes.shape[2:]) < SMALLEST:
        sides = " x ".join(map(str, volumes.shape[2:]))
        raise MedarError(
            f"{RADIOMICS}: sides must be at least {SMALLEST} voxels, got a volume of {sides}"
        )
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
        *_local_deviations(x),
        *(difference.flatten(1), difference.diff(dim=1).flatten(1)),
        adaptive_avg_pool3d(x, 2).flatten(1),
    ]
    return torch.cat(parts, dim=1).reshape(len(volumes), -1).double().cpu()


def _quantiles(x: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """(N, ...) -> (N, quantiles)."""
    # NumPy sorts twenty times faster than torch on a CPU.
    ordered = np.sort(x.flatten(1).cpu().numpy(), axis=1)
    indices = [round(quantile * (ordered.shape[1] - 1)) for quantile in quantiles]
    return torch.from_numpy(ordered[:, indices]).to(x.device)


def _moments(x: Tensor) -> Tensor:
    """(N, ...) -> (N, 4): mean, log standard deviation, asinh of skewness, log of kurtosis."""
    flat = x.flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    centred = flat - mean
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    scaled = centred / deviation.clamp(min=1e-6)
    squared = scaled.square()
    skewness = (squared * scaled).mean(dim=1, keepdim=True)
    kurtosis = squared.square().mean(dim=1, keepdim=True).clamp(min=1.0)
    return torch.cat([mean, (deviation + FLOOR).log(), skewness.asinh(), kurtosis.log()], dim=1)


def _gradient(x: Tensor) -> list[Tensor]:
    """Quantiles and moments of the magnitude of forward differences."""
    inner = x[:, :-1, :-1, :-1]
    along = (x[:, 1:, :-1, :-1], x[:, :-1, 1:, :-1], x[:, :-1, :-1, 1:])
    magnitude = sum((one - inner).square() for one in along).sqrt()  # type: ignore[union-attr]
    return [(_quantiles(magnitude, STEEPEST) + FLOOR).log(), _moments(magnitude)]


def _details(x: Tensor) -> tuple[Tensor, Tensor]:
    """Difference from a 3 x 3 x 3 mean at each resolution: log deviation and sparsity, (N, K)."""
    deviations, sparsities = [], []
    for level in range(DETAIL_LEVELS):
        x = avg_pool3d(x, 2) if level else x
        detail = (x - avg_pool3d(pad(x, (1,) * 6, mode="replicate"), 3, stride=1)).flatten(1)
        deviation = detail.square().mean(dim=1).sqrt() + FLOOR
        deviations.append(deviation.log())
        sparsities.append(((detail.abs().mean(dim=1) + FLOOR) / deviation).log())
    return torch.stack(deviations, dim=1), torch.stack(sparsities, dim=1)


def _local_deviations(x: Tensor) -> list[Tensor]:
    """Mean and standard deviation of the log standard deviation inside boxes."""
    features = []
    for side in WINDOWS:
        mean, square = (avg_pool3d(values, side, stride=2) for values in (x, x.square()))
        local = ((square - mean.square()).clamp(min=0).sqrt() + FLOOR).log().flatten(1)
        features += [local.mean(dim=1, keepdim=True), local.std(dim=1, keepdim=True, correction=0)]
    return features


def _differences(x: Tensor) -> Tensor:
    """Log mean difference of voxels some distance apart along each axis: (N, distances, 3)."""
    features = []
    for step in DISTANCES:
        for axis in (1, 2, 3):
            length = x.shape[axis] - step
            difference = x.narrow(axis, step, length) - x.narrow(axis, 0, length)
            features.append((difference.abs().flatten(1).mean(dim=1) + FLOOR).log())
    return torch.stack(features, dim=1).view(-1, len(DISTANCES), 3)


def texture_names() -> list[str]:
    """Names of the texture features of one channel, in order."""
    return [
        f"{name.lower()}_{step}_{axis}" for axis in "xyz" for name in PROPERTIES
        for step in DISTANCES
    ]  # fmt: skip


@torch.no_grad()
def texture(volumes: Tensor) -> Tensor:
    """The texture features of volumes in [-1, 1].

    Args:
        volumes: (B, C, X, Y, Z), each side longer than the largest distance.

    Returns:
        (B, C F) float64 on the CPU, all features of the first channel first, in the order of
        `texture_names`.
    """
    levels = ((volumes.float().clamp(-1, 1) + 1) / 2 * GREY_LEVELS).clamp(max=GREY_LEVELS - 1)
    grey = levels.to(torch.uint8).flatten(0, 1).cpu().numpy()
    rows = np.stack([np.concatenate([_glcm(one, axis) for axis in range(3)]) for one in grey])
    return torch.from_numpy(rows).reshape(len(volumes), -1)


def _glcm(grey: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.float64]:
    """Properties of the pairs along one axis of (X, Y, Z), distances fastest."""
    from skimage.feature import graycomatrix, graycoprops

    # As a 2D image whose rows are the volume's lines along the axis: pairs lie within a row.
    lines = np.moveaxis(grey, axis, -1).reshape(-1, grey.shape[axis])
    matrix = graycomatrix(lines, DISTANCES, [0.0], levels=GREY_LEVELS, symmetric=True, normed=True)
    features = []
    for name in PROPERTIES:
        values = graycoprops(matrix, name)[:, 0]
        features.append(np.log(values + FLOOR) if name in LOGARITHMS else values)
    return np.concatenate(features)


def shape_features(
    labels: npt.NDArray[np.integer], values: Sequence[int], spacing: Sequence[float]
) -> npt.NDArray[np.float64]:
    """The shape features of label maps.

    Args:
        labels: (N, X, Y, Z) label values.
        values: the K labels to describe, in order.
        spacing: voxel sides in mm.

    Returns:
        (N, K * 9), the 9 `SHAPE_FEATURES` of the first label first.
    """
    rows = [[_shape(one == value, spacing) for value in values] for one in labels]
    return np.asarray(rows, dtype=np.float64).reshape(len(labels), -1)


def _shape(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> list[float]:
    """The features of one label, (X, Y, Z)."""
    voxels = np.argwhere(mask)
    if not len(voxels):
        return list(ABSENT)
    sides = np.asarray(mask.shape)
    extents = (np.ptp(voxels, axis=0) + 1) / sides
    centre = (voxels.mean(axis=0) + 0.5) / sides
    # Variance of a uniform voxel: without it a label one voxel thick would be infinitely flat.
    widths = np.diag(np.square(spacing)) / 12
    covariance = np.cov(voxels * np.asarray(spacing), rowvar=False, bias=True) + widths
    small, middle, large = np.sqrt(np.linalg.eigvalsh(covariance))
    elongation, flatness = np.log(large / middle), np.log(middle / small)
    return [np.cbrt(mask.mean()), *extents, *centre, elongation, flatness]

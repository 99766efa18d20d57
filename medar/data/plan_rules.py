"""The rules that derive a plan's values from a fingerprint (docs/reference/plan.md lists them).

Spacing and anisotropy follow nnU-Net (Isensee et al., Nature Methods 2021); the voxel budget and
the downsampling are medar's own.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from medar.data.case import modality_of
from medar.data.fingerprint import QUANTILES, Fingerprint
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule
from medar.errors import MedarError
from medar.volume import Shape3, Spacing

DOWNSAMPLING = 8
"""Factor from voxels to the latent grid along the finest axes."""

ANISOTROPIC = 3.0
"""Ratio of coarsest to second coarsest spacing above which the coarsest axis is resampled finer."""

Vector = npt.NDArray[np.float64] | tuple[float, float, float]


def target_spacing(fingerprint: Fingerprint) -> Spacing:
    """The median spacing; along one axis that is much coarser than the others its 10th percentile.

    This is nnU-Net's rule (Isensee et al., Nature Methods 2021).
    """
    spacings = fingerprint.spacings
    target = np.median(spacings, axis=0)
    coarsest = int(np.argmax(target))
    if target[coarsest] > ANISOTROPIC * np.delete(target, coarsest).max():
        target[coarsest] = np.percentile(spacings[:, coarsest], 10)
    x, y, z = (float(f"{s:.4g}") for s in target)
    return x, y, z


def fit_spacing(spacing: Spacing, extent: Vector, voxels: int) -> Spacing:
    """The spacing at which a volume of `extent` mm has at most `voxels` voxels.

    Where `spacing` is too fine, its finest axes are made coarser first, by bisection.
    """
    extent = np.asarray(extent)
    if np.prod(extent / np.asarray(spacing)) <= voxels:
        return spacing
    low, high = min(spacing), float(max(extent))
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.prod(extent / np.maximum(spacing, middle)) <= voxels
        low, high = (low, middle) if fits else (middle, high)
    # Half a unit of the third digit is added, so that rounding never exceeds the budget.
    coarser = float(f"{1.005 * high:.3g}")
    x, y, z = (max(s, coarser) for s in spacing)
    return x, y, z


def cover_spacing(spacing: Spacing, extent: Vector, size: Shape3) -> Spacing:
    """The spacing at which `size` voxels cover a volume of `extent` mm.

    An axis may lose half a latent site in all, as where a size is derived.
    """
    x, y, z = (
        own if side <= (n + DOWNSAMPLING / 2) * own else float(f"{1.005 * side / n:.3g}")
        for own, side, n in zip(spacing, extent, size, strict=True)
    )
    return x, y, z


def patch_shape(shape: Vector, spacing: Spacing, voxels: int) -> npt.NDArray[np.float64]:
    """A patch of about `voxels` voxels, as close to a cube in mm as the volume's shape allows."""
    shape, sides = np.asarray(shape), np.asarray(spacing)
    low, high = 0.0, float((shape * sides).max())
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.prod(np.minimum(shape, middle / sides)) <= voxels
        low, high = (middle, high) if fits else (low, middle)
    return np.asarray(np.minimum(shape, low / sides))


def downsampling(spacing: Spacing, shape: Vector | Shape3) -> Shape3:
    """`DOWNSAMPLING` along the finest axes, half of it where the spacing is twice as coarse, etc.

    An axis keeps at least two latent sites if it has the voxels for them.
    """
    factors = []
    for side, n in zip(spacing, shape, strict=True):
        factor = max(1, DOWNSAMPLING >> int(np.log2(side / min(spacing)) + 0.01))
        while factor > 1 and n < 2 * factor:
            factor //= 2
        factors.append(factor)
    return factors[0], factors[1], factors[2]


def nearest_multiple(shape: Vector | Shape3, factors: Shape3) -> Shape3:
    """The multiple of `factors` nearest to a shape, at least one of each."""
    x, y, z = (max(1, round(float(n) / f)) * f for n, f in zip(shape, factors, strict=True))
    return x, y, z


def intensity_rules(fingerprint: Fingerprint, manifest: Manifest) -> dict[str, IntensityRule]:
    """A rule per channel name if there are several channels, otherwise per modality.

    CT: a window from air (-1000 HU) to the median over cases of the 99.9th foreground percentile,
    at least 500 HU, rounded up to 100. Anything else: the 0.5th to 99.5th percentile of each
    volume.

    Raises:
        MedarError: no case has all channels.
    """
    names = channel_names(fingerprint, manifest)
    if names:
        cases = [case for case in fingerprint.cases if len(case.quantiles) == len(names)]
        if not cases:
            raise MedarError(f"{manifest.root}: no case has {len(names)} channels, {names}")
        return {
            name: _rule(modality_of(name) or cases[0].modality, [c.quantiles[n] for c in cases])
            for n, name in enumerate(names)
        }
    by_modality: dict[str, list[tuple[float, ...]]] = {}
    for case in fingerprint.cases:
        by_modality.setdefault(case.modality or "other", []).append(case.quantiles[0])
    return {modality: _rule(modality, by_modality[modality]) for modality in sorted(by_modality)}


def _rule(modality: str | None, quantiles: list[tuple[float, ...]]) -> IntensityRule:
    if modality != "CT":
        return IntensityRule(kind="percentiles", low=0.5, high=99.5)
    brightest = float(np.median([q[QUANTILES.index(99.9)] for q in quantiles]))
    high = float(np.clip(np.ceil(brightest / 100) * 100, 500, 3000))
    return IntensityRule(kind="window", low=-1000.0, high=high)


def channel_names(fingerprint: Fingerprint, manifest: Manifest) -> tuple[str, ...]:
    """The names of several channels, or their numbers if they have none; () for one channel."""
    if manifest.channels:
        return manifest.channels if len(manifest.channels) > 1 else ()
    counts = Counter(len(case.quantiles) for case in fingerprint.cases)
    usual = counts.most_common(1)[0][0]
    return tuple(map(str, range(usual))) if usual > 1 else ()


def label_names(fingerprint: Fingerprint, manifest: Manifest) -> dict[int, str]:
    """Label values and names; a data set without names gets `label_1` and so on."""
    values = sorted({v for case in fingerprint.cases for v in case.label_ml if v > 0})
    return manifest.labels or {value: f"label_{value}" for value in values}

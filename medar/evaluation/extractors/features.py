"""Names of the features, and the smallest difference of each that an eye would notice.

A feature is standardised by its deviation among real volumes. Where real volumes hardly differ, as
in the darkest voxels of a masked background, that is next to nothing, and a difference that nobody
sees would outweigh all others. So no deviation is taken as smaller than a noticeable difference, in
the feature's own unit:

- intensities (quantiles, mean, octants): 0.02 of [-1, 1], one percent of the window, or 2.5 of the
  256 grey levels of a display: Weber's fraction is one to two percent for adjacent fields, and
  larger from one volume to the next.
- logarithms of amplitudes, spectral powers and contrasts, and the rise of such a logarithm from one
  scale to the next: 0.05, a change by 5 percent. Above the threshold of detection, contrast has to
  change by a tenth or so to be seen (Legge and Foley, J. Opt. Soc. Am. 70, 1980).
- the mean gradient, an amplitude that is no logarithm: 0.01 of [-1, 1].
- skewness and kurtosis, which an eye does not read off a volume: 0.1 of their compressed values.
- shares of voxel pairs (homogeneity): 0.02. Correlations: 0.005, at which two voxels differ by a
  tenth of the volume's standard deviation (1 - r = d^2 / 2 s^2).
- sizes and positions of labels: 0.01 of the volume's side, about a voxel.

Features of unknown unit, those of networks and of other packages, are given a tenth of the median
deviation of all features of their extractor.

F features over all channels.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medar.evaluation.extractors.handcrafted import (
    RADIOMICS,
    SHAPE,
    SHAPE_FEATURES,
    TEXTURE,
    radiomics_names,
    texture_names,
)

Floats = npt.NDArray[np.float64]

INTENSITY = 0.02
LOGARITHM = 0.05
AMPLITUDE = 0.01
MOMENT = 0.1
PAIRS = 0.02
CORRELATION = 0.005
POSITION = 0.01

UNKNOWN = 0.1
"""Of the median deviation, for features of unknown unit."""

PROTOCOL = (
    "mean and standard deviation of the reference, the latter at least a difference that an eye "
    f"would notice: {INTENSITY:g} for intensities in [-1, 1], {LOGARITHM:g} for logarithms of "
    f"amplitudes, {AMPLITUDE:g} for the mean gradient, {MOMENT:g} for skewness and kurtosis, "
    f"{PAIRS:g} for shares of voxel pairs, {CORRELATION:g} for correlations, {POSITION:g} for "
    f"sizes and positions of labels; {UNKNOWN:g} of the median deviation for features of networks"
)
"""How features are standardised, for reports."""


class FeatureSet(NamedTuple):
    """The features of one extractor."""

    names: tuple[str, ...]
    """F of them."""
    noticeable: Floats
    """(F,), in each feature's unit: the smallest deviation it is standardised by."""


def feature_set(extractor: str, reference: Floats) -> FeatureSet:
    """Names and noticeable differences of an extractor's features.

    Args:
        extractor: its name.
        reference: (M, F) features of real volumes, which set the scale of unknown units.
    """
    width = reference.shape[1]
    known = {
        RADIOMICS: (radiomics_names(), "channel"),
        TEXTURE: (texture_names(), "channel"),
        SHAPE: (list(SHAPE_FEATURES), "label"),
    }
    if extractor not in known:
        least = UNKNOWN * float(np.median(reference.std(axis=0)))
        return FeatureSet(tuple(f"feature_{k}" for k in range(width)), np.full(width, least))
    names, part = known[extractor]
    parts = width // len(names)
    every = [f"{name} ({part} {k})" if parts > 1 else name for k in range(parts) for name in names]
    return FeatureSet(tuple(every), np.tile([_noticeable(name) for name in names], parts))


def _noticeable(name: str) -> float:
    """The noticeable difference of a hand-crafted feature."""
    if name in SHAPE_FEATURES:
        return LOGARITHM if name in ("elongation", "flatness") else POSITION
    if name.endswith(("skewness", "kurtosis")):
        return MOMENT
    if name == "gradient_mean":
        return AMPLITUDE
    if name == "intensity_mean" or name.startswith(("intensity_quantile", "octant")):
        return INTENSITY
    if name.startswith("homogeneity"):
        return PAIRS
    if name.startswith("correlation"):
        return CORRELATION
    return LOGARITHM

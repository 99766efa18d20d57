"""From a fingerprint to a plan, by rules that a reader can check (docs/reference/plan.md).

Spacing and anisotropy follow nnU-Net (Isensee et al., Nature Methods 2021); the voxel budget, the
downsampling and the choice between whole volumes and patches are ours.
"""

from typing import Any

import numpy as np

from medar.data.cases import reading_for
from medar.data.fingerprint import QUANTILES, Fingerprint
from medar.data.intensity import IntensityRule
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.settings import from_dict, to_dict
from medar.volume import ReadOptions, Shape3, Spacing

BUDGET = 128**3
"""Voxels that a model sees at once, unless the caller says otherwise."""

DOWNSAMPLING = 8
"""Factor from voxels to latent grid along the finest axes."""

ANISOTROPIC = 3.0
"""Ratio of coarsest to finest spacing from which the coarsest axis is resampled finer."""

COARSER = 2.0
"""How much the spacing may grow for whole volumes to fit the budget; beyond, patches are cut."""

COVERED = 95.0
"""Percentage of the cases that fit into a whole volume without being cropped, axis by axis."""


def make_plan(
    fingerprint: Fingerprint,
    manifest: Manifest,
    *,
    voxels: int = BUDGET,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Derive a plan.

    Args:
        fingerprint: of the same data set.
        manifest: gives labels, channels and modalities.
        voxels: how many a model may see at once.
        reading: options that the files were read with.
        overrides: values of any of the plan's fields; what depends on them follows.

    Raises:
        MedarError: an override that does not fit.
    """
    given = dict(overrides or {})
    spacing = _three(given.get("spacing"), "spacing") or target_spacing(fingerprint)
    extent = np.percentile(fingerprint.extents, COVERED, axis=0)
    mode = given.get("mode")
    if mode is None:
        fitting = fit_spacing(spacing, extent, voxels)
        # A spacing that was given stays: what does not fit at it is cut into patches.
        coarser = 1.0 if "spacing" in given else COARSER
        much_coarser = np.prod(fitting) > coarser**3 * np.prod(spacing)
        mode = "patch" if much_coarser and "size" not in given else "volume"
    if mode == "volume" and "spacing" not in given and "size" not in given:
        spacing = fit_spacing(spacing, extent, voxels)
    shape = np.maximum(1, extent / spacing)
    if mode == "patch":
        shape = _patch(shape, spacing, voxels)
    size = _three(given.get("size"), "size")
    factors = _three(given.get("downsampling"), "downsampling")
    factors = factors or downsampling(spacing, size or shape)
    size = size or _multiple(shape, factors)
    plan = Plan(
        spacing=spacing,
        mode="patch" if mode == "patch" else "volume",
        size=(int(size[0]), int(size[1]), int(size[2])),
        downsampling=(int(factors[0]), int(factors[1]), int(factors[2])),
        intensity=intensity_rules(fingerprint, manifest),
        channels=manifest.channels if len(manifest.channels) > 1 else (),
        labels=manifest.labels or _unnamed_labels(fingerprint),
        ignore_label=manifest.ignore_label,
        reading=reading_for(manifest, reading or ReadOptions()),
    )
    return from_dict(Plan, {**to_dict(plan), **given}, "plan")


def target_spacing(fingerprint: Fingerprint) -> Spacing:
    """The median spacing; the 10th percentile along an axis that is much coarser than the rest."""
    spacings = fingerprint.spacings
    chosen = np.median(spacings, axis=0)
    coarse = int(np.argmax(chosen))
    if chosen[coarse] > ANISOTROPIC * np.delete(chosen, coarse).max():
        chosen[coarse] = np.percentile(spacings[:, coarse], 10)
    x, y, z = (float(f"{s:.4g}") for s in chosen)
    return x, y, z


def fit_spacing(spacing: Spacing, extent: Any, voxels: int) -> Spacing:
    """The spacing at which a volume of `extent` mm has at most `voxels`; finest axes grow first."""
    if np.prod(extent / np.asarray(spacing)) <= voxels:
        return spacing
    low, high = min(spacing), float(max(extent))
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.prod(extent / np.maximum(spacing, middle)) <= voxels
        low, high = (low, middle) if fits else (middle, high)
    # Half a unit of the third digit more, so that rounding never brings it below what fits.
    grown = float(f"{1.005 * high:.3g}")
    x, y, z = (max(s, grown) for s in spacing)
    return x, y, z


def downsampling(spacing: Spacing, shape: Any) -> Shape3:
    """Eight along the finest axes, half as much where the spacing is twice as coarse, and so on.

    An axis keeps at least two latent sites where it has the voxels for them.
    """
    factors = []
    for side, n in zip(spacing, shape, strict=True):
        factor = max(1, DOWNSAMPLING >> int(np.log2(side / min(spacing)) + 0.01))
        while factor > 1 and n < 2 * factor:
            factor //= 2
        factors.append(factor)
    return factors[0], factors[1], factors[2]


def intensity_rules(fingerprint: Fingerprint, manifest: Manifest) -> dict[str, IntensityRule]:
    """A rule by channel name where there are several, by modality otherwise.

    CT: from air (-1000 HU) to the median volume's 99.9th foreground percentile, at least 500 HU,
    in steps of 100. Everything else: the 0.5th to 99.5th percentile of each volume.
    """
    if len(manifest.channels) > 1:
        rules = {}
        for index, name in enumerate(manifest.channels):
            quantiles = [case.quantiles[index] for case in fingerprint.cases]
            rules[name] = _rule("CT" if name.upper() == "CT" else None, quantiles)
        return rules
    by_modality: dict[str, list[tuple[float, ...]]] = {}
    for case in fingerprint.cases:
        by_modality.setdefault(case.modality or "other", []).append(case.quantiles[0])
    return {modality: _rule(modality, by_modality[modality]) for modality in sorted(by_modality)}


def _unnamed_labels(fingerprint: Fingerprint) -> dict[int, str]:
    """Names for the label values of a data set that names none."""
    values = sorted({value for case in fingerprint.cases for value in case.label_ml})
    return {value: f"label_{value}" for value in values}


def _rule(modality: str | None, quantiles: list[tuple[float, ...]]) -> IntensityRule:
    if modality != "CT":
        return IntensityRule(kind="percentiles", low=0.5, high=99.5)
    top = float(np.median([q[QUANTILES.index(99.9)] for q in quantiles]))
    return IntensityRule(
        kind="window", low=-1000.0, high=float(np.clip(np.ceil(top / 100) * 100, 500, 3000))
    )


def _patch(shape: Any, spacing: Spacing, voxels: int) -> Any:
    """A patch of about `voxels`, as near to a cube in mm as the volume allows."""
    shape = np.asarray(shape)
    low, high = 0.0, float((shape * spacing).max())
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.prod(np.minimum(shape, middle / np.asarray(spacing))) <= voxels
        low, high = (middle, high) if fits else (low, middle)
    return np.minimum(shape, low / np.asarray(spacing))


def _multiple(shape: Any, factors: Any) -> Shape3:
    """The multiple of the downsampling nearest to a shape."""
    x, y, z = (
        max(1, round(float(n) / int(f))) * int(f) for n, f in zip(shape, factors, strict=True)
    )
    return x, y, z


def _three(value: Any, name: str) -> Spacing | None:
    if value is None:
        return None
    try:
        x, y, z = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise MedarError(f"{name} {value!r}: three numbers are needed") from error
    if min(x, y, z) <= 0:
        raise MedarError(f"{name} {value!r}: positive numbers are needed")
    return x, y, z

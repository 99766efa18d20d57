"""From a fingerprint to a plan, by rules that a reader can check (docs/reference/plan.md).

Spacing and anisotropy follow nnU-Net (Isensee et al., Nature Methods 2021); the voxel budget, the
downsampling and the choice between whole volumes and patches are ours.
"""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.case import modality_of
from medar.data.fingerprint import QUANTILES, Fingerprint, take_fingerprint
from medar.data.hashes import HashIndex
from medar.data.manifest import Manifest
from medar.data.plan import TISSUE_HU, IntensityRule, Plan
from medar.data.prepared import (
    FINGERPRINT_FILE,
    HASHES_FILE,
    PLAN_FILE,
    PREVIOUS_PLAN_FILE,
    check_folder,
)
from medar.data.reading import reading_for
from medar.errors import MedarError
from medar.files import write_bytes
from medar.parallel import default_workers
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


def plan_data_set(
    manifest: Manifest,
    out: str | Path,
    *,
    workers: int | None = None,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Measure a data set and derive its plan; see `make_plan` for the other arguments.

    Leaves fingerprint and plan in `out`, and keeps the plan that was there before. Cases whose
    files have not changed since the last fingerprint there are not measured again; those that
    cannot be read are named in the fingerprint.

    Args:
        manifest: the data set.
        out: the folder to write to.
        workers: processes; default: one a processor.
        voxels: see `make_plan`.
        reading: options for files that leave a question open.
        overrides: see `make_plan`.

    Raises:
        MedarError: no case can be read, an override does not fit, or `out` holds other files.
    """
    out = Path(out)
    check_folder(out)
    # Values that cannot be are refused now, not after a large data set was measured.
    check_values(overrides or {}, voxels)
    file = out / FINGERPRINT_FILE
    hashes = HashIndex(out / HASHES_FILE)
    taken = take_fingerprint(
        manifest,
        reading or ReadOptions(),
        workers=default_workers() if workers is None else workers,
        hashes=hashes,
        cached=Fingerprint.load(file) if file.exists() else None,
    )
    plan = make_plan(taken, manifest, voxels=voxels, reading=reading, overrides=overrides)
    taken.save(file)
    hashes.save()
    if (out / PLAN_FILE).exists():
        # It may have been edited by hand.
        write_bytes(out / PREVIOUS_PLAN_FILE, (out / PLAN_FILE).read_bytes())
    plan.save(out / PLAN_FILE)
    return plan


def plan_in_force(
    manifest: Manifest,
    out: str | Path,
    *,
    workers: int | None = None,
    file: str | Path | None = None,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """The plan to prepare a data set by: the one named, else the one in `out`, else a new one.

    Args:
        manifest: the data set.
        out: its folder.
        workers: processes, if a new plan is needed; default: one a processor.
        file: a plan to take instead of the one in `out`.
        voxels: budget of a new plan.
        reading: options for files that leave a question open; those that say something replace
            the plan's own.
        overrides: values that replace the plan's.

    Raises:
        MedarError: see `plan_data_set`; or `voxels` where there is a plan already.

    Warns:
        UserWarning: CT volumes that the plan normalises by percentiles for want of a rule.
    """
    out = Path(out)
    if file is None and not (out / PLAN_FILE).exists():
        return plan_data_set(
            manifest, out, workers=workers, voxels=voxels, reading=reading, overrides=overrides
        )
    file = Path(file) if file is not None else out / PLAN_FILE
    if voxels is not None:
        raise MedarError(f"voxels {voxels}: it shapes a new plan, and {file} is one already")
    plan = Plan.load(file)
    if "intensity" not in (overrides or {}):
        _warn_of_unplanned_ct(plan, manifest, file)
    stored = to_dict(plan)
    asked, usual = to_dict(reading or ReadOptions()), to_dict(ReadOptions())
    stored["reading"] |= {name: value for name, value in asked.items() if value != usual[name]}
    return from_dict(Plan, {**stored, **(overrides or {})}, str(file))


def make_plan(
    fingerprint: Fingerprint,
    manifest: Manifest,
    *,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Derive a plan.

    Args:
        fingerprint: of the same data set.
        manifest: gives labels, channels and modalities.
        voxels: how many a model may see at once; default `BUDGET`.
        reading: options that the files were read with.
        overrides: values of any of the plan's fields; what depends on them follows.

    Raises:
        MedarError: an override that does not fit.

    Warns:
        UserWarning: volumes that name no modality and whose values are those of CT.
    """
    given = dict(overrides or {})
    checked = check_values(given, voxels)
    voxels = BUDGET if voxels is None else voxels
    spacing = checked.spacing if "spacing" in given else target_spacing(fingerprint)
    extent = np.percentile(fingerprint.extents, COVERED, axis=0)
    mode = given.get("mode")
    if mode is None:
        fitting = fit_spacing(spacing, extent, voxels)
        # A spacing that was given stays: what does not fit at it is cut into patches.
        coarser = 1.0 if "spacing" in given else COARSER
        much_coarser = np.prod(fitting) > coarser**3 * np.prod(spacing)
        mode = "patch" if much_coarser and "size" not in given else "volume"
    if mode == "volume" and "spacing" not in given:
        covered = cover_spacing(spacing, extent, checked.size) if "size" in given else None
        spacing = covered or fit_spacing(spacing, extent, voxels)
    shape = np.maximum(1, extent / spacing)
    if mode == "patch":
        shape = _patch(shape, spacing, voxels)
    size = checked.size if "size" in given else None
    factors = checked.downsampling if "downsampling" in given else None
    factors = factors or downsampling(spacing, size or shape)
    size = size or _multiple(shape, factors)
    _warn_of_unnamed_ct(fingerprint, manifest)
    plan = Plan(
        spacing=spacing,
        mode="patch" if mode == "patch" else "volume",
        size=size,
        downsampling=factors,
        intensity=intensity_rules(fingerprint, manifest),
        channels=several_channels(fingerprint, manifest),
        labels=manifest.labels or _unnamed_labels(fingerprint),
        ignore_label=manifest.ignore_label,
        reading=reading_for(manifest, reading or ReadOptions()),
    )
    return from_dict(Plan, {**to_dict(plan), **given}, "plan")


def check_values(given: dict[str, Any], voxels: int | None) -> Plan:
    """The smallest plan with the given values, to check them before anything is measured.

    Raises:
        MedarError: values that no plan can have.
    """
    if voxels is not None and voxels < 1:
        raise MedarError(f"voxels must be at least 1, got {voxels}")
    one = (1, 1, 1)
    factors = given.get("downsampling", one)
    # Invalid factors must not be reported as an invalid size.
    valid = isinstance(factors, list | tuple) and len(factors) == 3
    valid = valid and all(isinstance(factor, int) and factor > 0 for factor in factors)
    size = factors if valid else one
    least = {"spacing": (1.0, 1.0, 1.0), "mode": "volume", "size": size, "downsampling": one}
    return from_dict(Plan, {**least, **given}, "plan")


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


def cover_spacing(spacing: Spacing, extent: Any, size: Shape3) -> Spacing:
    """The spacing at which `size` voxels cover a volume of `extent` mm.

    As when a size is derived, an axis may lose half a latent site at its ends.
    """
    x, y, z = (
        own if side <= (n + DOWNSAMPLING / 2) * own else float(f"{1.005 * side / n:.3g}")
        for own, side, n in zip(spacing, extent, size, strict=True)
    )
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
    names = several_channels(fingerprint, manifest)
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


def several_channels(fingerprint: Fingerprint, manifest: Manifest) -> tuple[str, ...]:
    """The names of the channels, or their numbers where they have none; () where there is one."""
    if manifest.channels:
        return manifest.channels if len(manifest.channels) > 1 else ()
    counts = Counter(len(case.quantiles) for case in fingerprint.cases)
    usual = counts.most_common(1)[0][0]
    return tuple(map(str, range(usual))) if usual > 1 else ()


def _unnamed_labels(fingerprint: Fingerprint) -> dict[int, str]:
    """Names for the label values of a data set that names none."""
    values = sorted({v for case in fingerprint.cases for v in case.label_ml if v > 0})
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


def _warn_of_unnamed_ct(fingerprint: Fingerprint, manifest: Manifest) -> None:
    """Say so where volumes that look like CT are about to be normalised without their units."""
    unnamed = [case for case in fingerprint.cases if case.modality is None]
    alike = [case for case in unnamed if min(case.quantiles[0]) < TISSUE_HU]
    if len(manifest.channels) <= 1 and len(alike) > len(unnamed) / 2:
        warnings.warn(
            f"{len(alike)} volumes of unknown modality have values below {TISSUE_HU:g}, as CT has; "
            "they are normalised by percentiles, not in HU: if they are CT, run `medar data plan` "
            "with --modality CT",
            stacklevel=3,
        )


def _warn_of_unplanned_ct(plan: Plan, manifest: Manifest, file: Path) -> None:
    """Say so where the modality was stated after the plan was made, and changes nothing."""
    other = plan.intensity.get("other")
    found = any(modality_of(case.modality) == "CT" for case in manifest)
    unruled = not plan.channels and "CT" not in plan.intensity
    if found and unruled and other is not None and other.kind == "percentiles":
        warnings.warn(
            f"{file}: CT volumes come under its rule 'other', by percentiles and not in HU; run "
            "`medar data plan` again, or write a rule for CT",
            stacklevel=3,
        )

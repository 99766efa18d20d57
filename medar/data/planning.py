"""From a data set to its plan: measure it, derive the values, let the caller override them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.case import modality_of
from medar.data.fingerprint import Fingerprint, take_fingerprint
from medar.data.hashes import HashIndex
from medar.data.manifest import Manifest
from medar.data.plan import TISSUE_HU, Plan
from medar.data.plan_rules import (
    channel_names,
    cover_spacing,
    downsampling,
    fit_spacing,
    intensity_rules,
    label_names,
    nearest_multiple,
    patch_shape,
    target_spacing,
)
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
from medar.volume import ReadOptions
from medar.words import format_count

BUDGET = 128**3
"""Voxels that a model sees at once, unless the caller gives another number."""

COARSER = 2.0
"""Whole volumes may be made this much coarser to fit the budget; beyond, patches are cut."""

COVERED = 95.0
"""Percentage of the cases that fit into a whole volume without being cropped, for each axis."""


def plan_data_set(
    manifest: Manifest,
    out: str | Path,
    *,
    workers: int | None = None,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Measure a data set, derive its plan and write both to a folder.

    A plan that is already there is kept as plan.previous.yaml. Cases whose files have not changed
    since the folder's last fingerprint are not measured again; cases that cannot be read are listed
    in the fingerprint.

    Args:
        manifest: the data set.
        out: the folder to write to.
        workers: processes; default: one per CPU core.
        voxels: see `make_plan`.
        reading: how to read files that leave a question open.
        overrides: see `make_plan`.

    Raises:
        MedarError: no case can be read, an override does not fit, or `out` holds other files.
    """
    out = Path(out)
    check_folder(out)
    check_values(overrides or {}, voxels)  # before a large data set is measured
    file = out / FINGERPRINT_FILE
    hashes = HashIndex(out / HASHES_FILE)
    fingerprint = take_fingerprint(
        manifest,
        reading or ReadOptions(),
        workers=default_workers() if workers is None else workers,
        hashes=hashes,
        cached=Fingerprint.load(file) if file.exists() else None,
    )
    plan = make_plan(fingerprint, manifest, voxels=voxels, reading=reading, overrides=overrides)
    fingerprint.save(file)
    hashes.save()
    if (out / PLAN_FILE).exists():
        # It may have been edited by hand.
        write_bytes(out / PREVIOUS_PLAN_FILE, (out / PLAN_FILE).read_bytes())
    plan.save(out / PLAN_FILE)
    return plan


def resolve_plan(
    manifest: Manifest,
    out: str | Path,
    *,
    workers: int | None = None,
    file: str | Path | None = None,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """The plan to prepare a data set with: `file` if given, else the one in `out`, else a new one.

    Args:
        manifest: the data set.
        out: the folder for its prepared cases.
        workers: processes, if a new plan is made; default: one per CPU core.
        file: a plan to use instead of the one in `out`.
        voxels: budget of a new plan.
        reading: how to read files that leave a question open; options other than the defaults
            replace the plan's.
        overrides: values that replace the plan's.

    Raises:
        MedarError: see `plan_data_set`; or `voxels` is given although a plan exists.

    Warns:
        UserWarning: CT volumes that the plan normalises by percentiles because it has no CT rule.
    """
    out = Path(out)
    if file is None and not (out / PLAN_FILE).exists():
        return plan_data_set(
            manifest, out, workers=workers, voxels=voxels, reading=reading, overrides=overrides
        )
    file = Path(file) if file is not None else out / PLAN_FILE
    if voxels is not None:
        raise MedarError(f"voxels {voxels}: only a new plan can use it, and {file} exists already")
    plan = Plan.load(file)
    if "intensity" not in (overrides or {}):
        _warn_of_ct_without_rule(plan, manifest, file)
    stored = to_dict(plan)
    requested, default = to_dict(reading or ReadOptions()), to_dict(ReadOptions())
    stored["reading"] |= {k: v for k, v in requested.items() if v != default[k]}
    return from_dict(Plan, {**stored, **(overrides or {})}, str(file))


def make_plan(
    fingerprint: Fingerprint,
    manifest: Manifest,
    *,
    voxels: int | None = None,
    reading: ReadOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Derive a plan from a fingerprint.

    Args:
        fingerprint: of the same data set.
        manifest: gives labels, channels and modalities.
        voxels: how many a model may see at once; default: `BUDGET`.
        reading: options that the files were read with.
        overrides: values of any of the plan's fields; the derived values take them into account.

    Raises:
        MedarError: an override does not fit.

    Warns:
        UserWarning: volumes of unknown modality have the intensities of CT.
    """
    given = dict(overrides or {})
    checked = check_values(given, voxels)
    voxels = BUDGET if voxels is None else voxels
    fixed_spacing, fixed_size = "spacing" in given, "size" in given
    extent = np.percentile(fingerprint.extents, COVERED, axis=0)

    spacing = checked.spacing if fixed_spacing else target_spacing(fingerprint)
    mode = given.get("mode")
    if mode is None:
        # A given spacing is kept: volumes that do not fit at it are cut into patches.
        limit = 1.0 if fixed_spacing else COARSER**3
        too_coarse = np.prod(fit_spacing(spacing, extent, voxels)) > limit * np.prod(spacing)
        mode = "patch" if too_coarse and not fixed_size else "volume"
    if mode == "volume" and not fixed_spacing:
        if fixed_size:
            spacing = cover_spacing(spacing, extent, checked.size)
        else:
            spacing = fit_spacing(spacing, extent, voxels)

    shape = np.maximum(1, extent / spacing)
    if mode == "patch":
        shape = patch_shape(shape, spacing, voxels)
    if "downsampling" in given:
        factors = checked.downsampling
    else:
        factors = downsampling(spacing, checked.size if fixed_size else shape)
    size = checked.size if fixed_size else nearest_multiple(shape, factors)

    _warn_of_unnamed_ct(fingerprint, manifest)
    plan = Plan(
        spacing=spacing,
        mode="patch" if mode == "patch" else "volume",
        size=size,
        downsampling=factors,
        intensity=intensity_rules(fingerprint, manifest),
        channels=channel_names(fingerprint, manifest),
        labels=label_names(fingerprint, manifest),
        ignore_label=manifest.ignore_label,
        reading=reading_for(manifest, reading or ReadOptions()),
    )
    return from_dict(Plan, {**to_dict(plan), **given}, "plan")


def check_values(given: dict[str, Any], voxels: int | None) -> Plan:
    """Check overrides before anything is measured, by building the smallest plan that has them.

    Raises:
        MedarError: no plan can have these values.
    """
    if voxels is not None and voxels < 1:
        raise MedarError(f"voxels must be at least 1, got {voxels}")
    one = (1, 1, 1)
    factors = given.get("downsampling", one)
    # A malformed downsampling is reported as such, not as a size that does not fit it.
    valid = isinstance(factors, list | tuple) and all(type(f) is int and f > 0 for f in factors)
    size = factors if valid and len(factors) == 3 else one
    smallest = {"spacing": (1.0, 1.0, 1.0), "mode": "volume", "size": size, "downsampling": one}
    return from_dict(Plan, {**smallest, **given}, "plan")


def _warn_of_unnamed_ct(fingerprint: Fingerprint, manifest: Manifest) -> None:
    """Warn if volumes that look like CT are about to be normalised without their units."""
    unnamed = [case for case in fingerprint.cases if case.modality is None]
    like_ct = [case for case in unnamed if min(case.quantiles[0]) < TISSUE_HU]
    if len(manifest.channels) <= 1 and len(like_ct) > len(unnamed) / 2:
        warnings.warn(
            f"{format_count(len(like_ct), 'volume')} of unknown modality, with values below "
            f"{TISSUE_HU:g} like CT, normalised by percentiles, not in HU: if CT, run `medar data "
            "plan` with --modality CT",
            stacklevel=3,
        )


def _warn_of_ct_without_rule(plan: Plan, manifest: Manifest, file: Path) -> None:
    """Warn if the modality was given after the plan was made, and therefore has no effect."""
    other = plan.intensity.get("other")
    has_ct = any(modality_of(case.modality) == "CT" for case in manifest)
    without_rule = not plan.channels and "CT" not in plan.intensity
    if has_ct and without_rule and other is not None and other.kind == "percentiles":
        warnings.warn(
            f"{file}: its rule 'other' applies to CT volumes, by percentiles and not in HU; run "
            "`medar data plan` again, or add a rule for CT",
            stacklevel=3,
        )

"""Prepared cases for a purpose: for a trained model, by its own plan; for training, by settings."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.planning import resolve_plan
from medar.data.prepare import prepare
from medar.data.prepared import CASES_FILE, MANIFEST_FILE, Prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.settings import from_dict, to_dict

COMPARED = ("spacing", "mode", "size", "centre", "intensity", "interpolation", "channels")
"""Settings of a plan that change the input of a model."""


@dataclass(frozen=True, kw_only=True)
class PreparedFolder:
    """A folder of prepared cases."""

    folder: Path
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that could not be prepared, with reasons."""


def is_prepared(path: str | Path) -> bool:
    """Whether `prepare` filled this folder."""
    return (Path(path) / CASES_FILE).is_file()


def prepare_for_model(
    path: str | Path,
    plan: Plan,
    out: str | Path,
    *,
    labels: bool = True,
    workers: int | None = None,
    read: Callable[[Path, Manifest | None], Manifest] | None = None,
) -> PreparedFolder:
    """The cases of a data set in the form that a model was trained on.

    Args:
        path: a folder that `prepare` filled, which is used as it is; or any data set that
            `read_manifest` reads, which is prepared.
        plan: the model's plan.
        out: the folder to prepare into; existing cases are kept.
        labels: whether label maps are needed; if so, they are prepared and the plans' labels must
            agree.
        workers: processes; default: one per CPU core.
        read: reads the manifest of `path`, with the splits of an earlier manifest or None; default:
            `read_manifest`.

    Raises:
        MedarError: the folder was prepared with another plan (the message names the first
            difference), `path` holds no data set, or no case could be prepared.
    """
    path, out = Path(path), Path(out)
    if is_prepared(path):
        _check_plan(Prepared(path).plan, plan, path, labels)
        return PreparedFolder(folder=path)
    stored = out / MANIFEST_FILE
    earlier = Manifest.load(stored) if stored.exists() else None
    manifest = read(path, earlier) if read else read_manifest(path, stored=earlier)
    if not labels:
        manifest = manifest.with_cases(tuple(replace(case, label=None) for case in manifest))
    done = prepare(manifest, plan, out, workers=workers)
    return PreparedFolder(folder=done.folder, failed=done.failed)


def _check_plan(plan: Plan, models: Plan, path: Path, labels: bool) -> None:
    """Check that prepared cases have the form that a model needs."""
    prepared, needed = to_dict(plan), to_dict(models)
    for name in (*COMPARED, *(("labels",) if labels else ())):
        if prepared[name] != needed[name]:
            raise MedarError(
                f"{path}: prepared with {name} {prepared[name]}, but the model's plan has "
                f"{needed[name]}; pass the data set that it was prepared from, or prepare it with "
                "the model's plan"
            )


def prepare_for_training(
    manifest: Manifest, overrides: dict[str, Any], out: str | Path, *, workers: int | None = None
) -> Path:
    """Prepare a data set in `out` by the plan values of training settings; existing cases are kept.

    Cases that cannot be prepared are left out with a warning.

    Args:
        manifest: the data set.
        overrides: values of the plan, such as `TokenizerSettings.plan`.
        out: the folder for prepared cases.
        workers: processes; default: one per CPU core.

    Raises:
        MedarError: see `resolve_plan` and `prepare`.
    """
    plan = resolve_plan(manifest, out, workers=workers, overrides=overrides)
    done = prepare(manifest, plan, out, workers=workers)
    for case, reason in done.failed.items():
        warnings.warn(f"{case} was left out: {reason}", stacklevel=2)
    for case, reason in done.unlabelled.items():
        warnings.warn(f"{case} has no label: {reason}", stacklevel=2)
    return done.folder


def plan_for_training(plan: Plan, overrides: dict[str, Any], data: str | Path) -> Plan:
    """The plan of prepared data with the downsampling of training settings.

    The downsampling concerns the model alone and needs no new preparation; all other values must be
    those that the data were prepared with.

    Args:
        plan: of the prepared data.
        overrides: values of the plan, such as `TokenizerSettings.plan`.
        data: the folder, for the error message.

    Raises:
        MedarError: the data were prepared with another value.
    """
    changed = from_dict(Plan, {**to_dict(plan), **overrides}, "plan")
    for name in overrides:
        if name != "downsampling" and getattr(changed, name) != getattr(plan, name):
            raise MedarError(
                f"{data}: was prepared with {name} {to_dict(plan)[name]}, but the configuration "
                f"sets {to_dict(changed)[name]}; prepare the data again, or change plan.{name}"
            )
    return changed

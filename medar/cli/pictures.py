"""What `medar data show` draws: a file, a case of a data set, a prepared case and its inverse."""

from pathlib import Path
from typing import Literal

import numpy as np

from medar.data.cases import read_image, read_label
from medar.data.manifest import Case, Manifest
from medar.data.preparation import restore_image, restore_label
from medar.data.prepare import CASES_FILE, MANIFEST_FILE
from medar.data.prepared import Prepared
from medar.errors import MedarError
from medar.report.orthoslices import display_range, save_orthoslices
from medar.volume import ReadOptions, Volume

Range = tuple[float, float]


def draw_case(
    case: str,
    *,
    data: Path | None,
    label: Path | None,
    out: Path | None,
    inverse: bool,
    window: Range | None,
    modality: Literal["CT", "MR"] | None,
    options: ReadOptions,
) -> Path:
    """Draw what the arguments of `medar data show` ask for; returns the PNG's path.

    Raises:
        MedarError: no such file or case, or a round trip without a prepared data set.
    """
    prepared = data is not None and (data / CASES_FILE).exists()
    if inverse and not prepared:
        raise MedarError(f"--inverse: --data {data} is no folder that `medar data prepare` filled")
    if data is None:
        if not Path(case).exists():
            raise MedarError(f"{case}: no such file; for the id of a case give --data")
        one = Case(id="volume", images=(Path(case),), label=label, modality=modality)
        target = out or Path(Path(case).name.split(".")[0] + ".png")
        _draw_original(one, case, target, {}, window, options)
        return target
    target = out or Path(f"{case}.png")
    if prepared:
        _draw_prepared(Prepared(data), case, target, inverse, window)
    else:
        from medar.data.sources import read_manifest

        manifest = read_manifest(data, modality=modality)
        _draw_original(manifest[case], case, target, manifest.labels, window, options)
    return target


def _draw_original(
    case: Case,
    title: str,
    target: Path,
    names: dict[int, str],
    window: Range | None,
    options: ReadOptions,
) -> None:
    image = read_image(case, options)
    label = read_label(case, options, image)
    save_orthoslices(target, [image], titles=[title], label=label, names=names, windows=[window])


def _draw_prepared(
    prepared: Prepared, name: str, target: Path, inverse: bool, window: Range | None
) -> None:
    """The prepared case in its own units; or the original, the way back, and what was lost."""
    case = prepared.find(name)
    trace = prepared.trace(case)
    array = prepared.image(case)
    values = prepared.label(case)
    names = prepared.plan.labels
    if not inverse:
        shown = np.stack([w.restore(c) for w, c in zip(trace.windows, array, strict=True)])
        volume = Volume(array=shown, affine=trace.target.affine, modality=trace.modality)
        label = Volume(array=values, affine=trace.target.affine) if values is not None else None
        save_orthoslices(
            target,
            [volume],
            titles=[f"{name}, prepared"],
            label=label,
            names=names,
            windows=[window],
        )
        return
    manifest = Manifest.load(prepared.folder / MANIFEST_FILE)
    original = read_image(manifest[name], prepared.plan.reading)
    back = restore_image(array, trace)
    label = restore_label(values, trace) if values is not None else None
    difference = original.with_array(np.abs(back.array - original.array))
    window = window or display_range(original)
    error = float(difference.array.mean())
    save_orthoslices(
        target,
        [original, back, difference],
        titles=[name, "prepared and taken back", f"difference, mean {error:.3g}"],
        label=label,
        names=names,
        windows=[window, window, (0.0, (window[1] - window[0]) / 2)],
    )

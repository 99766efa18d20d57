"""What `medar data show` draws: a file, a case of a data set, a prepared case and its inverse."""

from pathlib import Path
from typing import Literal

import numpy as np

from medar.data.manifest import Case, Manifest
from medar.data.preparation import restore_image, restore_label
from medar.data.prepared import CASES_FILE, MANIFEST_FILE, Prepared
from medar.data.reading import read_image, read_label, reading_for
from medar.errors import MedarError
from medar.report.orthoslices import save_orthoslices
from medar.volume import ReadOptions, Volume
from medar.volume.display import Range, display_range


def draw_case(
    case: str | None,
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
        MedarError: no such file or case, an empty window, a round trip without a prepared data
            set, or options that its plan has settled.
    """
    prepared = data is not None and (data / CASES_FILE).exists()
    if window is not None and not window[0] < window[1]:
        raise MedarError(f"--window {window[0]:g} {window[1]:g}: black must lie below white")
    if inverse and not prepared:
        found = f"{data} is none" if data is not None else "give one with --data"
        raise MedarError(f"--inverse needs a folder that `medar data prepare` filled; {found}")
    if label is not None and data is not None:
        raise MedarError("--label goes with a volume file; the cases of --data have their own")
    if prepared and (modality is not None or options != ReadOptions()):
        raise MedarError(f"{data} is prepared: how its files are read is said by its plan")
    if data is None:
        return _draw_file(case, label, out, window, modality, options)
    if prepared:
        cases = Prepared(data)
        name = case or cases[0].id
        target = out or Path(f"{name}.png")
        _draw_prepared(cases, name, target, inverse, window)
        return target
    from medar.data.sources import read_manifest

    manifest = read_manifest(data, modality=modality)
    name = case or manifest.cases[0].id
    target = out or Path(f"{name}.png")
    options = reading_for(manifest, options)
    _draw_original(manifest[name], name, target, manifest.labels, window, options)
    return target


def _draw_file(
    name: str | None,
    label: Path | None,
    out: Path | None,
    window: Range | None,
    modality: Literal["CT", "MR"] | None,
    options: ReadOptions,
) -> Path:
    """A volume file and, if given, its label map."""
    if name is None:
        raise MedarError("nothing to show; give a volume file, or a data set with --data")
    if not Path(name).exists():
        raise MedarError(f"{name}: no such file; for a case of a data set give --data")
    case = Case(id="volume", images=(Path(name),), label=label, modality=modality)
    target = out or Path(Path(name).name.split(".")[0] + ".png")
    _draw_original(case, Path(name).name, target, {}, window, options)
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

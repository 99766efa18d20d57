"""`medar data show`: pictures of a file, of a case, or of a prepared case and its inverse."""

from pathlib import Path
from typing import Literal

import numpy as np

from medar.data.manifest import Case, Manifest
from medar.data.preparation import restore_image, restore_label
from medar.data.prepared import CASES_FILE, MANIFEST_FILE, Prepared
from medar.data.reading import read_image, read_label, reading_for
from medar.data.segments import joined_names
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
    """Draw the picture that `medar data show` was called for; returns the path of the PNG.

    Args:
        case: a volume file, or with `data` the id of a case; default the first case.
        data: a data set or a prepared data set.
        label: label map of a volume file.
        out: the PNG; default NAME.png in the working directory.
        inverse: draw the original, the round trip through the prepared case, and the difference.
        window: display range; default `display_range`.
        modality: modality of files that do not state it.
        options: how files are read.

    Raises:
        MedarError: there is no such file or case, the window is empty, `inverse` is set without a
            prepared data set, or options conflict with its plan.
    """
    prepared = data is not None and (data / CASES_FILE).exists()
    if window is not None and not window[0] < window[1]:
        raise MedarError(f"--window {window[0]:g} {window[1]:g}: black must be below white")
    if inverse and not prepared:
        hint = f"{data} is not one" if data is not None else "pass one with --data"
        raise MedarError(f"--inverse needs a folder that `medar data prepare` wrote; {hint}")
    if label is not None and data is not None:
        raise MedarError(
            "--label goes with a volume file; the cases of --data have label maps of their own"
        )
    if prepared and (modality is not None or options != ReadOptions()):
        raise MedarError(
            f"{data} is prepared: its plan determines how files are read; drop these options"
        )
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
    """A volume file, optionally with a label map."""
    if name is None:
        raise MedarError("nothing to show; pass a volume file, or a data set with --data")
    if not Path(name).exists():
        raise MedarError(f"{name}: no such file; for a case of a data set, pass --data")
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
    label = read_label(case, options, image, names)
    names = names or joined_names([case.labels])
    save_orthoslices(target, [image], titles=[title], label=label, names=names, windows=[window])


def _draw_prepared(
    prepared: Prepared, name: str, target: Path, inverse: bool, window: Range | None
) -> None:
    """The prepared case in its own units; or the original, the round trip and the difference."""
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
        titles=[name, "round trip", f"difference, mean {error:.3g}"],
        label=label,
        names=names,
        windows=[window, window, (0.0, (window[1] - window[0]) / 2)],
    )

"""Examining one case: its headers and, in a deep check, its voxels. Errors become problems."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.case import Case, shown
from medar.data.label_outliers import LabelFacts, measure_labels
from medar.data.problems import Problem, problem
from medar.data.segments import read_label_header
from medar.errors import MedarError, OffGridError, one_line
from medar.volume import Header, ReadOptions, Shape3, Spacing, load_volume, read_header
from medar.volume.read import as_labels, fractions_of

SAMPLE = 2**20
"""Number of voxels, evenly spaced, from which intensity percentiles are computed."""

FEW_VALUES, VOXELS_PER_VALUE = 32, 50
"""Largest number of values, all of them whole, at which an image may be a label map; small images
have fewer anyway."""

SOME = 2**12
"""Number of voxels, evenly spaced, that have more values in most images."""


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """Properties of the data set that the examination of a case depends on."""

    root: Path
    labelled: bool
    """Whether any case of the data set has a label."""
    labels: dict[int, str]
    ignore_label: int | None
    channels: int
    """Expected channels per case; 0 if unknown."""
    deep: bool
    options: ReadOptions


@dataclass(kw_only=True)
class Facts:
    """Results of examining a case; kept small, as they pass between processes."""

    case: str
    problems: list[Problem] = field(default_factory=list)
    shape: Shape3 | None = None
    """Along R, A and S, like the spacing."""
    spacing: Spacing | None = None
    orientation: str | None = None
    """As stored."""
    dtype: str | None = None
    channels: int = 0
    modality: str | None = None
    digest: str | None = None
    """Of voxels and affine; only in a deep check."""
    high: float | None = None
    """The 99.5th percentile of the first channel."""
    low: float | None = None
    """The 0.5th percentile of the first channel."""
    labels: tuple[int, ...] | None = None
    """Label values that have voxels, without background."""
    label_facts: dict[int, LabelFacts] = field(default_factory=dict)
    """Measurements of each label; only in a deep check."""

    def add(self, code: str, message: str, path: str = "") -> None:
        """Add a problem."""
        self.problems.append(problem(code, message, case=self.case, path=path))


def examine(case: Case, context: CheckContext) -> Facts:
    """Examine the headers of a case and, in a deep check, its voxels.

    At most one volume is in memory at a time. No exception is raised: an error becomes a problem
    of the case with the code "unreadable".
    """
    facts = Facts(case=case.id, modality=case.modality)
    try:
        _examine(case, context, facts)
    except Exception as error:
        facts.add("unreadable", f"{type(error).__name__}: {one_line(error)}")
    return facts


def _examine(
    case: Case,
    context: CheckContext,
    facts: Facts,
) -> None:
    if case.missing_label is not None:
        named = shown(case.missing_label, context.root)
        facts.add(
            "missing-label-file", f"{named} does not exist; the case counts as unlabelled", named
        )
    elif case.label is None and context.labelled:
        facts.add("missing-label", "no label; usable only without labels")
    several = len(case.images) == 1 and context.channels > 1
    options = replace(context.options, channels=True) if several else context.options
    headers = [_header(path, options, context, facts) for path in case.images]
    plain = replace(context.options, channels=False)
    images = [header for header in headers if header is not None]
    label = None
    if case.label:
        first = images[0].provenance if images else None

        def read(_: Path, options: ReadOptions) -> Header:
            return read_label_header(case.labels, options, first, context.labels)

        label = _header(case.label, plain, context, facts, read)
    if images:
        _describe(images[0], shown(images[0].path, context.root), facts)
        facts.channels = sum(header.channels for header in images)
        _compare_channels(images, len(headers), context, facts)
        if label is not None:
            _compare_grids(images[0], label, "label", context, facts)
    if context.deep:
        digest = hashlib.blake2b(digest_size=16)
        whole = [_voxels(h, n, options, context, facts, digest) for n, h in enumerate(images)]
        if images and len(images) == len(headers) and all(whole):
            facts.digest = digest.hexdigest()
        if label is not None:
            _label_voxels(label, case, context, facts)


def _header(
    path: Path,
    options: ReadOptions,
    context: CheckContext,
    facts: Facts,
    read: Callable[[Path, ReadOptions], Header] | None = None,
) -> Header | None:
    """The header of a file; None if it cannot be read, which becomes a problem."""
    name = shown(path, context.root)
    if not path.exists():
        facts.add("missing-file", f"{name} does not exist", name)
        return None
    try:
        header = (read or read_header)(path, options)
    except OffGridError as error:
        facts.add("affine-mismatch", f"label: {_reason(error, path)}", name)
        return None
    except Exception as error:
        facts.add("unreadable", _reason(error, path), name)
        return None
    for note in header.notes:
        facts.add("geometry", note, name)
    return header


def _describe(
    header: Header,
    name: str,
    facts: Facts,
) -> None:
    grid = header.grid.to_ras()
    facts.shape, facts.spacing = grid.shape, grid.spacing
    facts.orientation, facts.dtype = header.grid.orientation, header.dtype
    if header.modality and facts.modality and header.modality != facts.modality:
        facts.add(
            "modality-mismatch",
            f"{header.modality} in the file, {facts.modality} in the data set",
            name,
        )
    facts.modality = facts.modality or header.modality


def _compare_channels(
    images: list[Header], files: int, context: CheckContext, facts: Facts
) -> None:
    """Check the number of channels, and that they lie on the same grid."""
    complete = len(images) == files
    if complete and context.channels and facts.channels != context.channels:
        facts.add(
            "channel-mismatch",
            f"{facts.channels} channels, the data set has {context.channels}",
            shown(images[0].path, context.root),
        )
    for number, header in enumerate(images[1:], 1):
        _compare_grids(images[0], header, f"channel {number}", context, facts)


def _compare_grids(
    image: Header, other: Header, what: str, context: CheckContext, facts: Facts
) -> None:
    """Check that two files of a case have the same shape and position."""
    name = shown(other.path, context.root)
    mine, its = image.grid.to_ras(), other.grid.to_ras()
    if mine.shape != its.shape:
        sides = "x".join(map(str, its.shape)), "x".join(map(str, mine.shape))
        facts.add("shape-mismatch", f"{what} of {sides[0]} voxels, image of {sides[1]}", name)
    elif not mine.matches(its):
        facts.add(
            "affine-mismatch", f"{what} is {mine.distance(its):.3g} mm away from the image", name
        )


def _voxels(
    header: Header,
    number: int,
    options: ReadOptions,
    context: CheckContext,
    facts: Facts,
    digest: Any,
) -> bool:
    """Examine the voxels of an image; False if they cannot be read."""
    name = shown(header.path, context.root)
    try:
        volume = load_volume(header, replace(options, nonfinite="keep"))
    except Exception as error:
        facts.add("unreadable", _reason(error, header.path), name)
        return False
    array = volume.array
    digest.update(repr((array.shape, (np.round(volume.affine, 3) + 0.0).tolist())).encode())
    for channel in array:
        digest.update(np.ascontiguousarray(channel, dtype="<f4").data)
    nonfinite = array.size - int(np.isfinite(array).sum())
    if nonfinite and context.options.nonfinite == "error":
        facts.add(
            "nonfinite",
            f"{nonfinite} of {array.size} voxels are NaN or Inf; give a replacement (--nonfinite)",
            name,
        )
    for channel in array:
        _intensities(channel, name, header.channels > 1, facts)
    if number == 0:
        sample = _sample(array[0])
        if sample.size:
            facts.low, facts.high = (float(q) for q in np.percentile(sample, (0.5, 99.5)))
    return True


def _intensities(
    channel: npt.NDArray[Any],
    name: str,
    several: bool,
    facts: Facts,
) -> None:
    """Check that the values of a channel are plausible."""
    finite = channel if np.isfinite(channel).all() else channel[np.isfinite(channel)]
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    what = "a channel" if several else "the image"
    if low == high:
        facts.add("constant", f"all voxels of {what} are {low:g}", name)
    elif values := _few_values(finite):
        facts.add(
            "few-values",
            f"only {len(values)} values, {low:g} to {high:g}, all of them whole numbers: is it a "
            "label map?",
            name,
        )
    elif facts.modality == "CT" and not (low < 0 and high > 1):
        facts.add(
            "intensity-range",
            f"values from {low:g} to {high:g} are unlikely to be HU, in which air is near -1000",
            name,
        )


def _few_values(finite: npt.NDArray[Any]) -> set[float]:
    """The values of a channel that is like a label map: whole numbers, and few; else none."""
    most = min(FEW_VALUES, finite.size // VOXELS_PER_VALUE)
    flat = finite.reshape(-1)
    # Images have more values in a few voxels already; to sort all of them takes seconds.
    for voxels in (flat[:: max(1, flat.size // SOME)], flat):
        values = np.unique(voxels)
        if len(values) > most or (values != np.rint(values)).any():
            return set()
    return set(values.tolist())


def _label_voxels(
    label: Header,
    case: Case,
    context: CheckContext,
    facts: Facts,
) -> None:
    """Examine a label map: its values, and whether they are named and annotated."""
    name = shown(label.path, context.root)
    try:
        array = label.load()
        if _has_fractions(array, label):
            facts.add("non-integer-label", "NaN or fractions; labels must be integers", name)
            return
        array = as_labels(array, label.path, label.step)
    except Exception as error:
        facts.add("unreadable", _reason(error, label.path), name)
        return
    facts.label_facts = measure_labels(array, label.grid)
    values = {int(value) for value in np.unique(array)} - {0}
    facts.labels = tuple(sorted(values))
    if not values:
        facts.add("empty-label", "the label map contains only background", name)
    named = set(context.labels) | ({context.ignore_label} - {None})
    unnamed = sorted(values - named) if context.labels else []
    if unnamed:
        facts.add(
            "unexpected-label",
            f"values {', '.join(map(str, unnamed))} have no name; "
            f"named: {', '.join(map(str, sorted(context.labels)))}",
            name,
        )
    if case.annotated is not None:
        others = sorted((values & set(context.labels)) - set(case.annotated))
        if others:
            names = ", ".join(context.labels[value] for value in others)
            facts.add("not-annotated-present", f"voxels of {names}, which is not annotated", name)


def _has_fractions(array: npt.NDArray[Any], label: Header) -> bool:
    if array.dtype.kind != "f":
        return False
    return not np.isfinite(array).all() or bool(fractions_of(array, label.step).size)


def _sample(channel: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = channel.reshape(-1)[:: max(1, channel.size // SAMPLE)]
    return np.asarray(flat[np.isfinite(flat)])


def _reason(error: Exception, path: Path) -> str:
    """The error without the leading path, as the problem names the file."""
    text = str(error) if isinstance(error, MedarError) else one_line(error)
    return text.removeprefix(f"{path}: ")

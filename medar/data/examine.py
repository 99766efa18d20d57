"""Examining one case: its headers, and its voxels where asked. Nothing it meets stops the check."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.case import Case, shown
from medar.data.problems import Problem, problem
from medar.errors import MedarError, one_line
from medar.volume import Header, ReadOptions, Shape3, Spacing, load_volume, read_header
from medar.volume.read import as_labels

SAMPLE = 2**20
"""Voxels of which intensity quantiles are taken: evenly spaced ones of a larger volume."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What examining a case needs to know of its data set."""

    root: Path
    labelled: bool
    """Whether the data set has labels at all."""
    labels: dict[int, str]
    ignore_label: int | None
    channels: int
    """Channels that each case should have; 0: unknown."""
    deep: bool
    options: ReadOptions


@dataclass(kw_only=True)
class Facts:
    """What was found out about a case. Small: it travels between processes."""

    case: str
    problems: list[Problem] = field(default_factory=list)
    shape: Shape3 | None = None
    """Along R, A and S, as is the spacing."""
    spacing: Spacing | None = None
    orientation: str | None = None
    """As stored."""
    dtype: str | None = None
    channels: int = 0
    modality: str | None = None
    digest: str | None = None
    """Of voxels and affine; a deep check's only."""
    high: float | None = None
    """The 99.5th percentile of the first channel."""
    low: float | None = None
    """The 0.5th percentile of the first channel."""
    labels: tuple[int, ...] | None = None
    """Label values that have voxels, without background."""

    def add(self, code: str, message: str, path: str = "") -> None:
        """Note a problem."""
        self.problems.append(problem(code, message, case=self.case, path=path))


def examine(case: Case, setting: Setting) -> Facts:
    """What is known about a case after its headers, and in a deep check its voxels, were read.

    At most one volume is in memory at a time. No exception leaves this function: whatever goes
    wrong with a case becomes an "unreadable" problem of it.
    """
    facts = Facts(case=case.id, modality=case.modality)
    try:
        _examine(case, setting, facts)
    except Exception as error:
        facts.add("unreadable", f"{type(error).__name__}: {one_line(error)}")
    return facts


def _examine(case: Case, setting: Setting, facts: Facts) -> None:
    if case.missing_label is not None:
        named = shown(case.missing_label, setting.root)
        facts.add(
            "missing-label-file", f"{named} is named but does not exist; taken as unlabelled", named
        )
    elif case.label is None and setting.labelled:
        facts.add("missing-label", "no label; usable wherever none is needed")
    several = len(case.images) == 1 and setting.channels > 1
    options = replace(setting.options, channels=True) if several else setting.options
    headers = [_header(path, options, setting, facts) for path in case.images]
    plain = replace(setting.options, channels=False)
    label = _header(case.label, plain, setting, facts) if case.label else None
    images = [header for header in headers if header is not None]
    if images:
        _describe(images[0], shown(images[0].path, setting.root), facts)
        facts.channels = sum(header.channels for header in images)
        _compare_channels(images, len(headers), setting, facts)
        if label is not None:
            _compare_grids(images[0], label, "label", setting, facts)
    if setting.deep:
        digest = hashlib.blake2b(digest_size=16)
        whole = [_voxels(h, n, options, setting, facts, digest) for n, h in enumerate(images)]
        if images and len(images) == len(headers) and all(whole):
            facts.digest = digest.hexdigest()
        if label is not None:
            _label_voxels(label, case, setting, facts)


def _header(path: Path, options: ReadOptions, setting: Setting, facts: Facts) -> Header | None:
    """The header of a file, or None once the reason is noted."""
    name = shown(path, setting.root)
    if not path.exists():
        facts.add("missing-file", f"{name} does not exist", name)
        return None
    try:
        header = read_header(path, options)
    except Exception as error:
        facts.add("unreadable", _reason(error, path), name)
        return None
    for note in header.notes:
        facts.add("geometry", note, name)
    return header


def _describe(header: Header, name: str, facts: Facts) -> None:
    grid = header.grid.to_ras()
    facts.shape, facts.spacing = grid.shape, grid.spacing
    facts.orientation, facts.dtype = header.grid.orientation, header.dtype
    if header.modality and facts.modality and header.modality != facts.modality:
        facts.add(
            "modality-mismatch",
            f"the file says {header.modality}, the data set {facts.modality}",
            name,
        )
    facts.modality = facts.modality or header.modality


def _compare_channels(images: list[Header], files: int, setting: Setting, facts: Facts) -> None:
    """Whether the channels are as many as they should be, and lie on one grid."""
    complete = len(images) == files
    if complete and setting.channels and facts.channels != setting.channels:
        facts.add(
            "channel-mismatch",
            f"{facts.channels} channels where the data set has {setting.channels}",
            shown(images[0].path, setting.root),
        )
    for number, header in enumerate(images[1:], 1):
        _compare_grids(images[0], header, f"channel {number}", setting, facts)


def _compare_grids(image: Header, other: Header, what: str, setting: Setting, facts: Facts) -> None:
    """Whether two files of a case have the same shape, and the same place in space."""
    name = shown(other.path, setting.root)
    mine, its = image.grid.to_ras(), other.grid.to_ras()
    if mine.shape != its.shape:
        sides = "x".join(map(str, its.shape)), "x".join(map(str, mine.shape))
        facts.add("shape-mismatch", f"{what} of {sides[0]} voxels, image of {sides[1]}", name)
    elif not mine.matches(its):
        facts.add("affine-mismatch", f"{what} lies {mine.distance(its):.3g} mm off the image", name)


def _voxels(
    header: Header, number: int, options: ReadOptions, setting: Setting, facts: Facts, digest: Any
) -> bool:
    """Read the voxels of an image; whether that worked."""
    name = shown(header.path, setting.root)
    try:
        volume = load_volume(header, replace(options, nonfinite="keep"))
    except Exception as error:
        facts.add("unreadable", _reason(error, header.path), name)
        return False
    array = volume.array
    digest.update(repr((array.shape, (np.round(volume.affine, 3) + 0.0).tolist())).encode())
    for channel in array:
        digest.update(np.ascontiguousarray(channel, dtype="<f4").data)
    odd = array.size - int(np.isfinite(array).sum())
    if odd and setting.options.nonfinite == "error":
        facts.add(
            "nonfinite",
            f"{odd} of {array.size} voxels are NaN or Inf; say what replaces them (--nonfinite)",
            name,
        )
    for channel in array:
        _intensities(channel, name, header.channels > 1, facts)
    if number == 0:
        sample = _sample(array[0])
        if sample.size:
            facts.low, facts.high = (float(q) for q in np.percentile(sample, (0.5, 99.5)))
    return True


def _intensities(channel: npt.NDArray[Any], name: str, several: bool, facts: Facts) -> None:
    """Whether the values of a channel can be what they should be."""
    finite = channel if np.isfinite(channel).all() else channel[np.isfinite(channel)]
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    what = "a channel" if several else "the image"
    if low == high:
        facts.add("constant", f"all voxels of {what} are {low:g}", name)
    elif facts.modality == "CT" and not (low < 0 and high > 1):
        facts.add(
            "intensity-range",
            f"values from {low:g} to {high:g} are hardly HU, in which air is near -1000",
            name,
        )


def _label_voxels(label: Header, case: Case, setting: Setting, facts: Facts) -> None:
    """Which labels a label map holds, and whether it may."""
    name = shown(label.path, setting.root)
    try:
        array = label.load()
        if _has_fractions(array):
            facts.add("non-integer-label", "NaN or fractions; labels are whole numbers", name)
            return
        array = as_labels(array, label.path)
    except Exception as error:
        facts.add("unreadable", _reason(error, label.path), name)
        return
    found = {int(value) for value in np.unique(array)} - {0}
    facts.labels = tuple(sorted(found))
    if not found:
        facts.add("empty-label", "the label map holds background only", name)
    known = set(setting.labels) | ({setting.ignore_label} - {None})
    odd = sorted(found - known) if setting.labels else []
    if odd:
        facts.add(
            "unexpected-label",
            f"values {', '.join(map(str, odd))} have no name; "
            f"named: {', '.join(map(str, sorted(setting.labels)))}",
            name,
        )
    if case.annotated is not None:
        unasked = sorted((found & set(setting.labels)) - set(case.annotated))
        if unasked:
            names = ", ".join(setting.labels[value] for value in unasked)
            facts.add("not-annotated-present", f"voxels of {names}, not annotated here", name)


def _has_fractions(array: npt.NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return False
    return not (np.isfinite(array).all() and (array == np.rint(array)).all())


def _sample(channel: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = channel.reshape(-1)[:: max(1, channel.size // SAMPLE)]
    return np.asarray(flat[np.isfinite(flat)])


def _reason(error: Exception, path: Path) -> str:
    """The error without the path that it begins with; the problem names the file already."""
    text = str(error) if isinstance(error, MedarError) else one_line(error)
    return text.removeprefix(f"{path}: ")

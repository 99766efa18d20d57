"""`decode_file`: a token pyramid's file to a volume, on its case's own grid if available."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medar.data.plan import Plan, Window
from medar.data.preparation import Trace, restore_image, restore_label
from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.tokenizer.detail import Detail
from medar.tokenizer.inference import (
    UNITS,
    DecodedArrays,
    decoded_arrays,
)
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TOKENIZER, TokenFile
from medar.volume import Grid, Volume

Target = Literal["prepared", "source"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedFile:
    """A decoded pyramid file."""

    image: Volume
    label: Volume | None
    """None without a label head."""
    grid: Target
    """"source": the grid and intensities of the case's own file."""
    notes: tuple[str, ...]
    """Assumptions about values that the file does not state."""


def decode_file(
    path: str | Path,
    *,
    model: str | Path | None = None,
    upto: int | None = None,
    variant: int = 0,
    grid: Target | None = None,
    modality: str | None = None,
    detail: Detail = "auto",
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    precision: InferencePrecision = "auto",
) -> DecodedFile:
    """Decode one pyramid of a file.

    Args:
        path: a file of `encode_data_set`, or any `TokenPyramid` on disk.
        model: the tokenizer's folder; default: the one beside the tokens.
        upto: use the coarsest `upto` scales only.
        variant: which pyramid, if the file holds several.
        grid: "source" is the grid of the case's own file, "prepared" the plan's; default: "source"
            if the file lies in a tokens folder.
        modality: "CT" or "MR", where nothing else determines which of the plan's rules restores
            intensities.
        detail: number of steps of the detail decoder; see `Tokenizer.detail_steps`.
        seed: of the detail.
        device: see `Tokenizer.from_pretrained`.
        precision: of decoder and detail decoder.

    Raises:
        MedarError: no pyramid, no tokenizer or another one, no such variant, `upto` beyond the
            scales, an unknown source grid, a modality without a rule, or steps without a detail
            decoder.
    """
    file = TokenFile.find(path)
    pyramid = TokenPyramid.load(path)
    if not 0 <= variant < len(pyramid):
        raise MedarError(f"{path}: no variant {variant}; available: 0 to {len(pyramid) - 1}")
    if grid == "source" and file.trace is None:
        raise MedarError(
            f"{path}: the grid of its case is unknown, as the file is not in a tokens folder that "
            "names it; use --grid prepared"
        )
    tokenizer = Tokenizer.from_pretrained(_model_folder(file, model), device)
    plan = tokenizer.require_plan()
    decoded = tokenizer.decode_map(pyramid[variant : variant + 1], upto, precision=precision)
    drawn = tokenizer.add_detail(decoded.volume, [seed], detail, precision=precision)
    arrays = decoded_arrays(decoded._replace(volume=drawn), plan)
    if file.trace is not None and grid != "prepared":
        label = None if arrays.label is None else restore_label(arrays.label, file.trace)
        image = restore_image(arrays.image, file.trace)
        return DecodedFile(image=image, label=label, grid="source", notes=())
    windows, notes = windows_of(file.trace, plan, modality)
    target = file.trace.target if file.trace else own_grid(plan)
    image, label = on_grid(target, arrays, windows)
    return DecodedFile(image=image, label=label, grid="prepared", notes=notes)


def _model_folder(file: TokenFile, model: str | Path | None) -> Path:
    if model is not None:
        return Path(model)
    if file.folder is None:
        raise MedarError(
            f"{file.path}: is not in a tokens folder, so its tokenizer is unknown; name its folder "
            "with --model"
        )
    return file.folder / TOKENIZER


def on_grid(
    grid: Grid, arrays: DecodedArrays, windows: tuple[Window, ...], modality: str | None = None
) -> tuple[Volume, Volume | None]:
    """A decoded volume on a grid, in units of intensity, and its label map if there is one.

    Args:
        grid: the grid of the arrays.
        arrays: the decoded arrays.
        windows: the intensity window of each channel.
        modality: the image's modality, if known.
    """
    channels = zip(windows, arrays.image, strict=True)
    array = np.stack([window.restore(channel) for window, channel in channels])
    image = Volume(array=array, affine=grid.affine, modality=modality)
    label = None if arrays.label is None else Volume(array=arrays.label, affine=grid.affine)
    return image, label


def own_grid(plan: Plan) -> Grid:
    """The plan's grid without a patient: the first voxel at the scanner's origin."""
    return Grid(shape=plan.size, affine=np.diag([*plan.spacing, 1.0]))


def windows_of(
    trace: Trace | None, plan: Plan, modality: str | None = None
) -> tuple[tuple[Window, ...], tuple[str, ...]]:
    """The intensity window of each channel, and notes on assumptions.

    Args:
        trace: of the volume, if there is one.
        plan: its rules apply without a trace.
        modality: whose rule applies; default: the only one in the plan.

    Raises:
        MedarError: the plan has no rule for the modality, or several and no modality is given.
    """
    if trace is not None:
        return trace.windows, ()
    rules = plan.rules(len(plan.channels) or 1, modality or plan.sole_modality)
    windows = tuple(
        Window(low=rule.low, high=rule.high) if rule.kind == "window" else UNITS for rule in rules
    )
    if all(rule.kind == "window" for rule in rules):
        return windows, ()
    note = (
        "the plan measures intensities on each volume and there is none: values run from "
        f"{UNITS.low:g} to {UNITS.high:g}, without units"
    )
    return windows, (note,)

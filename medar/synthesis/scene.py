"""`Scene`: where samples lie, in which intensities, and which tokens are given.

Three kinds: nothing given but the plan (`plain`), all but a region of a volume (`inpainting`), the
coarse scales of a volume of low resolution (`upscaling`). All go the same way afterwards: tokens
are sampled, decoded, and put where the scene says.

B batch, L tokens over all scales, X Y Z voxels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.data.preparation import (
    Trace,
    prepare_image,
    prepare_label,
    restore_image,
    restore_label,
    target_grid,
)
from medar.devices import device_of
from medar.errors import MedarError
from medar.generator.known import KnownTokens
from medar.generator.maps import UNKNOWN, label_classes, one_hot
from medar.generator.settings import ConditionConfig
from medar.tokenizer.decoding import on_grid, own_grid, windows_of
from medar.tokenizer.inference import Array, DecodedArrays, Labels
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Grid, Volume

Placed = tuple[Volume, Volume | None]
"""An image and, with a label head or a mask, its label map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What all samples of a request share."""

    grid: Grid
    """The plan's grid, in the patient's space where a volume is given."""
    place: Callable[[DecodedArrays], Placed]
    """From what was decoded on that grid to the result."""
    known: KnownTokens | None = None
    """Tokens that are given, of a batch of one."""
    given: Volume | None = None
    """The volume that results are, but for a part: they keep its grid and voxel type on disk."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was given, for the record."""
    notes: tuple[str, ...] = ()


def plain(plan: Plan, modality: str | None, mask: Volume | None = None) -> Scene:
    """On the plan's grid: around the middle of a mask, where there is one.

    Raises:
        MedarError: the plan has no intensity rule for the modality, or several and none is named.
    """
    windows, notes = windows_of(None, plan, modality)
    grid = own_grid(plan) if mask is None else target_grid(mask, whole(plan, centre="image"))
    modality = modality or plan.sole_modality
    place = partial(on_grid, grid, windows=windows, modality=modality)
    return Scene(grid=grid, place=place, notes=notes)


def mask_on(condition: ConditionConfig, plan: Plan, mask: Volume, grid: Grid) -> Labels:
    """A label map that a model is to follow, on the scene's grid: (1, X, Y, Z), the plan's values.

    Args:
        condition: of the model.
        plan: names the labels.
        mask: on any grid.
        grid: the scene's.

    Raises:
        MedarError: a model without maps or with other labels, a value that the plan lacks, or
            labels of which none lies on the grid.
    """
    name = name_of(mask, "mask")
    if condition.map != "label":
        raise MedarError(f"{name}: this generator was trained without label maps; leave it out")
    if condition.map_channels != 1 + len(plan.labels):
        raise MedarError(
            f"{name}: the generator takes maps of {condition.map_channels - 1} labels, its plan "
            f"names {len(plan.labels)}; its tokenizer is another model's"
        )
    if not mask.is_label:
        raise MedarError(f"{name}: {mask} is no label map; whole numbers are needed")
    try:
        labels = prepare_label(mask, grid, plan)
    except MedarError as error:
        raise MedarError(f"{name}: {error}") from error
    if mask.array.any() and not labels.any():
        raise MedarError(
            f"{name}: none of its labels lies within the samples' grid; is it drawn on another "
            "volume?"
        )
    return labels


def map_of(condition: ConditionConfig, plan: Plan, labels: Labels) -> Tensor:
    """What `mask_on` gave as the model takes it, (1, M, X, Y, Z)."""
    if plan.ignore_label is not None:
        labels = np.where(labels == plan.ignore_label, UNKNOWN, labels)
    classes = label_classes(torch.from_numpy(np.ascontiguousarray(labels)), tuple(plan.labels))
    return one_hot(classes, condition.map_channels)


def restored(inferred: DecodedArrays, trace: Trace) -> Placed:
    """What was decoded on a trace's target grid, back on its source grid."""
    label = None if inferred.label is None else restore_label(inferred.label, trace)
    return restore_image(inferred.image, trace), label


@torch.no_grad()
def latent_of(tokenizer: Tokenizer, array: Array) -> Tensor:
    """The encoder's latent of a prepared volume, (C, X, Y, Z): (1, D, x, y, z)."""
    latent: Tensor = tokenizer.encoder(
        torch.from_numpy(array.copy())[None].to(device_of(tokenizer))
    )
    return latent


def whole(plan: Plan, **changes: Any) -> Plan:
    """The plan that brings a volume to one array of its size, whatever its mode."""
    return replace(plan, mode="volume", **changes)


def as_image(volume: Volume, name: str, modality: str | None) -> Volume:
    """A volume that can be prepared: an image that says what it is.

    Raises:
        MedarError: a label map.
    """
    if volume.is_label:
        raise MedarError(f"{name_of(volume, name)}: {volume} is a label map; an image is needed")
    return replace(volume, modality=volume.modality or modality)


def prepared(volume: Volume, plan: Plan, name: str) -> tuple[Array, Trace]:
    """A volume in the plan's form, see `prepare_image`.

    Raises:
        MedarError: it cannot be brought there; the message names the file.
    """
    try:
        return prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{name_of(volume, name)}: {error}") from error


def name_of(volume: Volume, otherwise: str) -> str:
    """The file that a volume came from."""
    return volume.provenance.path if volume.provenance else otherwise


def identity(volume: Volume, otherwise: str) -> dict[str, str]:
    """Which volume was given: its file, and a hash of voxels and affine."""
    content = blake2b(np.ascontiguousarray(volume.array).tobytes(), digest_size=16)
    content.update(volume.affine.tobytes())
    return {"file": name_of(volume, otherwise), "digest": content.hexdigest()}

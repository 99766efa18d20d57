"""`SynthesisJob`: common data of the samples of one request.

Jobs start in one of four ways: from the plan alone (`plain_job`), from a volume except for a
region (`medar.synthesis.inpainting`), from a volume of low resolution
(`medar.synthesis.upscaling`), or from one to translate (`medar.synthesis.translation`).
`Synthesizer.job` then adds condition, sampling settings and label map. All jobs are run alike:
tokens are sampled, decoded on the job's grid, and restored to the result.

B batch, L tokens over all scales, C channels, M channels of a map, X Y Z voxels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from medar.devices import device_of, without_tf32
from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.known import KnownTokens
from medar.generator.maps import UNKNOWN, label_classes, one_hot
from medar.generator.settings import ConditionConfig, SamplingSettings
from medar.synthesis.request import Request
from medar.tokenizer.decoding import on_grid, own_grid, windows_of
from medar.tokenizer.inference import Array, DecodedArrays, Labels
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Grid, Volume

Restore = Callable[[Array, Labels | None], tuple[Volume, Volume | None]]
"""From a decoded image and label map on a job's grid to those of the result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SynthesisJob:
    """Common data of the samples of a request."""

    grid: Grid
    """The plan's grid, in the patient's space if a volume is given."""
    restore: Restore
    condition: Condition = field(default_factory=lambda: Condition(attributes=torch.empty(1, 0)))
    """Of a batch of one, on the model's device."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    known: KnownTokens | None = None
    """Tokens that are given, of a batch of one."""
    until: int | None = None
    """Number of scales to draw, for drafts; default: all."""
    begun: Mapping[int, TokenPyramid] = field(default_factory=dict)
    """By seed: the first scales of a draft that the sample continues."""
    mask: Labels | None = None
    """The label map that samples follow, on `grid`, in the plan's values."""
    source: Volume | None = None
    """The volume that is filled: results keep its grid, and its voxel type on disk."""
    record: dict[str, Any] = field(default_factory=dict)
    """Entries of every sample's record."""
    request: Request | None = None
    """What it was made of, for other processes."""
    notes: tuple[str, ...] = ()
    """Assumptions that were made."""

    def about(self, seed: int) -> dict[str, Any]:
        """The record of the sample of a seed; equal for equal samples."""
        record = {**self.record, "seed": seed, "notes": list(self.notes)}
        if seed in self.begun:
            record["begun"] = begun_with(self.begun[seed])
        return record


def plain_job(plan: Plan, modality: str | None, mask: Volume | None = None) -> SynthesisJob:
    """A job on the plan's grid, around the centre of a mask if there is one.

    Raises:
        MedarError: the plan has no intensity rule for the modality, or several and none is named.
    """
    windows, notes = windows_of(None, plan, modality)
    grid = own_grid(plan) if mask is None else target_grid(mask, whole(plan, centre="image"))
    modality = modality or plan.sole_modality

    def restore(image: Array, label: Labels | None) -> tuple[Volume, Volume | None]:
        return on_grid(grid, DecodedArrays(image, label), windows, modality)

    return SynthesisJob(grid=grid, restore=restore, notes=notes)


def label_map(condition: ConditionConfig, plan: Plan, mask: Volume, grid: Grid) -> Labels:
    """A label map for a generator to follow, on a job's grid: (1, X, Y, Z), the plan's values.

    Args:
        condition: of the generator.
        plan: names the labels.
        mask: on any grid.
        grid: the job's.

    Raises:
        MedarError: the generator has no maps or other labels, a value is not in the plan, or no
        label
            lies on the grid.
    """
    name = name_of(mask, "mask")
    if condition.map != "label":
        raise MedarError(f"{name}: this generator was trained without label maps; leave it out")
    if condition.map_channels != 1 + len(plan.labels):
        raise MedarError(
            f"{name}: the generator takes maps of {condition.map_channels - 1} labels, but its "
            f"plan names {len(plan.labels)}; its tokenizer is another model's"
        )
    if not mask.is_label:
        raise MedarError(f"{name}: {mask} is no label map; its values must be integers")
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


def as_condition(condition: ConditionConfig, plan: Plan, labels: Labels) -> Tensor:
    """What `label_map` returned, as `Condition.map`: (1, M, X, Y, Z)."""
    if plan.ignore_label is not None:
        labels = np.where(labels == plan.ignore_label, UNKNOWN, labels)
    classes = label_classes(torch.from_numpy(np.ascontiguousarray(labels)), tuple(plan.labels))
    return one_hot(classes, condition.map_channels)


def restored(image: Array, label: Labels | None, trace: Trace) -> tuple[Volume, Volume | None]:
    """Image and label map on a trace's target grid, brought back to its source grid."""
    return restore_image(image, trace), None if label is None else restore_label(label, trace)


@torch.no_grad()
def latent_of(tokenizer: Tokenizer, array: Array) -> Tensor:
    """The encoder's latent of a prepared volume, (C, X, Y, Z): (1, D, x, y, z)."""
    volume = torch.from_numpy(array.copy())[None].to(device_of(tokenizer))
    with without_tf32():
        latent: Tensor = tokenizer.encoder(volume)
    return latent


def whole(plan: Plan, **changes: Any) -> Plan:
    """The plan that prepares a volume as one array of its size, whatever its mode."""
    return replace(plan, mode="volume", **changes)


def as_image(volume: Volume, name: str, modality: str | None) -> Volume:
    """An image with its modality.

    Raises:
        MedarError: the volume is a label map.
    """
    if volume.is_label:
        raise MedarError(f"{name_of(volume, name)}: {volume} is a label map, not an image")
    return replace(volume, modality=volume.modality or modality)


def prepared(volume: Volume, plan: Plan, name: str) -> tuple[Array, Trace]:
    """A volume in the plan's form, see `prepare_image`.

    Raises:
        MedarError: it cannot be prepared; the message names the file.
    """
    try:
        return prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{name_of(volume, name)}: {error}") from error


def name_of(volume: Volume, otherwise: str) -> str:
    """The file that a volume was read from."""
    return volume.provenance.path if volume.provenance else otherwise


def begun_with(tokens: TokenPyramid) -> dict[str, Any]:
    """The number of scales of a draft, and a hash of its tokens."""
    content = blake2b(tokens.flatten().cpu().numpy().tobytes(), digest_size=16)
    return {"scales": len(tokens.indices), "digest": content.hexdigest()}


def identity(volume: Volume, otherwise: str) -> dict[str, str]:
    """A volume's file, and a hash of its voxels and affine."""
    content = blake2b(np.ascontiguousarray(volume.array).tobytes(), digest_size=16)
    content.update(volume.affine.tobytes())
    return {"file": name_of(volume, otherwise), "digest": content.hexdigest()}

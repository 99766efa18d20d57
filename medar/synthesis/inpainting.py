"""Filling a region of a volume: the sites beyond it are known, those in it are sampled.

The volume without the region's content goes to the plan's grid and through the encoder. Sites that
the region touches are sampled, on coarse grids those that it takes more than a quarter of; at all
others each scale takes the code that is nearest to what is left of the latent there, given the
scales before it. The decoded
volume goes back to the volume's own grid and is taken within the region alone: every voxel beyond
it stays what it was, bit for bit.

X Y Z voxels of the volume's own grid.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from medar.data.plan import Plan
from medar.data.preparation import Trace
from medar.devices import device_of
from medar.errors import MedarError
from medar.generator.known import KnownTokens, known_outside
from medar.synthesis.region import Box, Mask, Region, region_of, without
from medar.synthesis.scene import Placed, Scene, as_image, identity, latent_of, prepared, restored
from medar.tokenizer.inference import Array, DecodedArrays, field_of_view
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Shape3, Volume, resample
from medar.volume.resample import crop_or_pad

TOUCHED = 0.01
"""Share of a plan's voxel from which on the region counts as touching it."""


def inpainting(
    tokenizer: Tokenizer, volume: Volume, region: Region, modality: str | None = None
) -> Scene:
    """The scene of a volume that is known but for a region.

    Args:
        tokenizer: with its plan.
        volume: an image on any grid.
        region: what is to be filled, see `region_of`.
        modality: what the volume is, where it does not say.

    Raises:
        MedarError: no image, an empty region or one on another grid, or one that reaches beyond
            the model's field of view.
    """
    plan = tokenizer.require_plan()
    volume = as_image(volume, "inpaint", modality)
    hole = region_of(volume, region)
    array, trace = prepared(without(volume, hole), plan, "inpaint")
    if plan.mode == "patch":
        array, trace = _window_around(array, trace, hole, plan)
    beyond = int((hole & ~field_of_view(trace)).sum())
    if beyond:
        raise MedarError(
            f"region: {beyond} of its {int(hole.sum())} voxels lie beyond the model's field of "
            f"view of {' x '.join(f'{side:g}' for side in trace.target.extent)} mm; choose a "
            "smaller one, or crop the volume around it"
        )
    touched = resample(_image(hole, volume), trace.target, fill=0.0).array > TOUCHED
    mask = known_outside(torch.from_numpy(touched), tokenizer.config.schedule)
    drawn = str(region) if isinstance(region, Box) else identity(region, "region")
    return Scene(
        grid=trace.target,
        place=partial(_pasted, volume=volume, hole=hole, trace=trace),
        known=KnownTokens(mask=mask, latent=latent_of(tokenizer, array)).to(device_of(tokenizer)),
        given=volume,
        about={"inpaint": identity(volume, "volume"), "region": drawn},
    )


def _pasted(inferred: DecodedArrays, *, volume: Volume, hole: Mask, trace: Trace) -> Placed:
    """The volume with what was decoded in the hole; the label map is all of what was decoded."""
    image, label = restored(inferred, trace)
    return volume.with_array(np.where(hole, image.array, volume.array)), label


def _window_around(array: Array, trace: Trace, hole: Mask, plan: Plan) -> tuple[Array, Trace]:
    """The plan's window around the middle of a region, in patch mode, within the volume."""
    middle = np.mean(np.argwhere(hole), axis=0)
    place = np.linalg.solve(trace.target.affine, trace.source.affine @ np.append(middle, 1.0))[:3]
    start = np.rint(place - (np.asarray(plan.size) - 1) / 2).astype(int)
    start = np.clip(start, 0, np.maximum(0, np.asarray(trace.target.shape) - plan.size))
    first: Shape3 = (int(start[0]), int(start[1]), int(start[2]))
    window = replace(trace, target=trace.target.window(first, plan.size))
    return crop_or_pad(array, first, plan.size, -1.0), window


def _image(mask: Mask, like: Volume) -> Volume:
    return Volume(array=mask[None].astype(np.float32), affine=like.affine)

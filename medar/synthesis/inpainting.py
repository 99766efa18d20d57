"""Inpainting: the tokens outside a region are known, those inside it are sampled.

The volume without the region's content is brought to the plan's grid and encoded. Tokens whose
cells the region touches are sampled; on coarse grids, those covered by it to more than a quarter.
At all other sites each scale takes the code nearest to the remaining latent, given
the coarser scales. The decoded volume is brought back to the volume's own grid and used within the
region only: every voxel outside stays as it was, bit for bit.

X Y Z voxels of the volume's own grid.
"""

from dataclasses import replace

import numpy as np
import torch

from medar.data.plan import Plan
from medar.data.preparation import Trace
from medar.devices import device_of
from medar.errors import MedarError
from medar.generator.known import KnownTokens, known_outside
from medar.synthesis.job import (
    SynthesisJob,
    as_image,
    identity,
    latent_of,
    prepared,
    restored,
)
from medar.synthesis.region import Box, Mask, Region, region_of, without
from medar.tokenizer.inference import Array, Labels, field_of_view
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Shape3, Volume, resample
from medar.volume.resample import crop_or_pad

TOUCHED = 0.01
"""Fraction of a plan's voxel from which on the region counts as touching it."""


def inpainting_job(
    tokenizer: Tokenizer, volume: Volume, region: Region, modality: str | None = None
) -> SynthesisJob:
    """A job that fills a region of a volume.

    Args:
        tokenizer: with its plan.
        volume: an image on any grid.
        region: to be filled, see `region_of`.
        modality: of the volume, if its file does not state it.

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

    def restore(array: Array, labels: Labels | None) -> tuple[Volume, Volume | None]:
        image, label = restored(array, labels, trace)
        return volume.with_array(np.where(hole, image.array, volume.array)), label

    return SynthesisJob(
        grid=trace.target,
        restore=restore,
        known=KnownTokens(mask=mask, latent=latent_of(tokenizer, array)).to(device_of(tokenizer)),
        source=volume,
        record={"inpaint": identity(volume, "volume"), "region": drawn},
    )


def _window_around(array: Array, trace: Trace, hole: Mask, plan: Plan) -> tuple[Array, Trace]:
    """In patch mode, the plan's window around the centre of a region, within the volume."""
    centre = np.mean(np.argwhere(hole), axis=0)
    index = np.linalg.solve(trace.target.affine, trace.source.affine @ np.append(centre, 1.0))[:3]
    start = np.rint(index - (np.asarray(plan.size) - 1) / 2).astype(int)
    start = np.clip(start, 0, np.maximum(0, np.asarray(trace.target.shape) - plan.size))
    first: Shape3 = (int(start[0]), int(start[1]), int(start[2]))
    window = replace(trace, target=trace.target.window(first, plan.size))
    return crop_or_pad(array, first, plan.size, -1.0), window


def _image(mask: Mask, like: Volume) -> Volume:
    return Volume(array=mask[None].astype(np.float32), affine=like.affine)

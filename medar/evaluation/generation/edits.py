"""Partially known volumes, as input of a generator, and baselines that know no anatomy.

A box is removed, or the resolution is lowered. The rest is encoded and marked as known by the
functions of `medar synthesize`. Baselines are the mean around the box, the smoothest interpolation
into it, and trilinear interpolation.

C channels, X Y Z voxels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import convolve, generate_binary_structure
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from medar.generator.known import KnownTokens, known_outside, known_scales
from medar.synthesis.job import latent_of
from medar.synthesis.region import Box, Mask, without
from medar.synthesis.upscaling import agreeing
from medar.tokenizer.inference import Array
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume, resample

ITERATIONS = 500
"""Of averaging: converges in holes of up to about 30 voxels per side."""


class Edit(NamedTuple):
    """A partially known volume."""

    known: KnownTokens
    """Of a batch of one."""
    part: tuple[slice, ...]
    """Of (..., X, Y, Z): the part that is compared with the real volume."""
    baselines: dict[str, Tensor]
    """Whole volumes, (C, X, Y, Z), by name."""
    finish: Callable[[Tensor], Tensor]
    """Post-processing of a decoded volume, (C, X, Y, Z)."""


def box_removed(tokenizer: Tokenizer, real: Tensor, fraction: float, seed: list[int]) -> Edit:
    """A volume without a box at a random position.

    Args:
        tokenizer: encodes the rest of the volume.
        real: (C, X, Y, Z) in [-1, 1].
        fraction: the box's sides, as a fraction of the volume's.
        seed: of the position.
    """
    random = np.random.default_rng(seed)
    sides = [max(1, round(n * fraction)) for n in real.shape[1:]]
    start = [int(random.integers(n - m + 1)) for n, m in zip(real.shape[1:], sides, strict=True)]
    volume = Volume(array=real.numpy(), affine=np.eye(4))
    x, y, z = start
    low, high = (x, y, z), (x + sides[0], y + sides[1], z + sides[2])
    hole = Box(low=low, high=high, unit="voxel").mask(volume.grid)
    array = without(volume, hole).array.copy()
    mask = known_outside(torch.from_numpy(hole)[None], tokenizer.config.schedule)
    return Edit(
        known=KnownTokens(mask=mask, latent=latent_of(tokenizer, array).cpu()),
        part=tuple(slice(a, b) for a, b in zip(low, high, strict=True)),
        baselines={
            "mean filling": torch.from_numpy(array),
            "smooth filling": torch.from_numpy(smooth_filling(array, hole)),
        },
        finish=lambda decoded: decoded,
    )


def lowered(tokenizer: Tokenizer, real: Tensor, factor: int, scales: int) -> Edit:
    """Reduce a volume to the means over blocks of `factor`^3 voxels.

    Args:
        tokenizer: with its plan; encodes the reduced volume.
        real: (C, X, Y, Z) in [-1, 1].
        factor: by which the resolution is lowered along each axis.
        scales: number of known scales.
    """
    low = avg_pool3d(real, factor)
    trilinear = interpolate(low[None], scale_factor=factor, mode="trilinear")[0]
    affine = np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] = (factor - 1) / 2
    fine = Volume(array=real.numpy(), affine=np.eye(4)).grid
    kind = tokenizer.require_plan().interpolation
    coarse = Volume(array=low.numpy(), affine=affine)
    array = resample(coarse, fine, interpolation=kind).array.clip(-1.0, 1.0)
    latent = latent_of(tokenizer, array).cpu()
    agree = partial(agreeing, given=low.numpy(), fine=fine, coarse=coarse.grid)
    return Edit(
        known=KnownTokens(mask=known_scales(tokenizer.config.schedule, scales), latent=latent),
        part=(slice(None),) * 3,
        baselines={"trilinear": trilinear},
        finish=lambda decoded: torch.from_numpy(agree(decoded.numpy())),
    )


def smooth_filling(array: Array, hole: Mask) -> Array:
    """The volume with a hole filled by the solution of Laplace's equation.

    Args:
        array: (C, X, Y, Z), with a first guess inside the hole.
        hole: (X, Y, Z).
    """
    box = tuple(slice(max(0, int(a.min()) - 1), int(a.max()) + 2) for a in np.nonzero(hole))
    neighbours = generate_binary_structure(3, 1).astype(np.float32)
    neighbours[1, 1, 1] = 0.0
    filled, inside = array.copy(), hole[box]
    for channel in filled:
        part = channel[box]
        for _ in range(ITERATIONS):
            part[inside] = convolve(part, neighbours / 6, mode="nearest")[inside]
    return filled

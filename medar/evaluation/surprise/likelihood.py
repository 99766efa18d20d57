"""`measure`: how likely a generator finds a volume, and what its tokens leave out.

    volume -> prepared x -> tokens -> cross-entropy of each token given those of coarser scales
                                   -> D(z) -> |x - D(z)|

Likelihood as a measure of normality is that of Pinaya et al. (Medical Image Analysis 79, 2022),
whose transformers predict tokens one by one; here a whole scale is predicted at once.

L tokens over all scales, K scales, X Y Z voxels of the plan's size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from medar.data.case import Case
from medar.data.preparation import Trace, prepare_image
from medar.devices import device_of, without_tf32
from medar.errors import MedarError
from medar.finite import check_finite
from medar.generator.attributes import case_values
from medar.generator.conditions import Condition
from medar.generator.objective import token_losses
from medar.synthesis import Synthesizer
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Volume, resample

LOWEST = 1e-6
"""Smallest residual, so that its logarithm is finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood:
    """How likely a volume is, token by token."""

    losses: npt.NDArray[np.float32]
    """(L,) cross-entropy of each token, in nats."""
    residual: float
    """Mean absolute difference of the prepared volume, in [-1, 1], and its reconstruction without
    detail."""
    trace: Trace
    """Of the preparation, to lead maps back to the volume's own grid."""

    @property
    def features(self) -> npt.NDArray[np.float64]:
        """What cases are compared by: mean cross-entropy, and the logarithm of the residual."""
        return np.array([self.losses.mean(dtype=float), np.log(max(self.residual, LOWEST))])


def check_scorable(synthesizer: Synthesizer) -> None:
    """Refuse a generator of patches: where a patch lies in the body is unknown to it.

    Raises:
        MedarError: its plan is in patch mode.
    """
    if synthesizer.plan.mode != "volume":
        raise MedarError(
            "this generator was trained on patches, so that no volume as a whole has a likelihood; "
            "use one whose plan has `mode: volume`"
        )


@torch.no_grad()
def measure(synthesizer: Synthesizer, volume: Volume, case: Case) -> Likelihood:
    """How likely a generator finds a volume, given the attributes of its case.

    Args:
        synthesizer: generator and tokenizer.
        volume: as read from a file.
        case: states the attributes; those that the generator has not learnt count as unknown.

    Raises:
        MedarError: see `prepare_image`; or a cross-entropy that is not finite.
    """
    model, tokenizer = synthesizer.model, synthesizer.tokenizer
    array, trace = prepare_image(volume, synthesizer.plan)
    batch = torch.from_numpy(array.copy())[None].to(device_of(tokenizer))
    values = [case_values(model.config.condition.attributes, case)]
    condition = Condition(attributes=torch.tensor(values, device=batch.device).reshape(1, -1))
    with without_tf32():
        pyramid = tokenizer.encode(batch)
        tokens = torch.cat(pyramid.indices, dim=1)
        losses = token_losses(model(tokens, condition), tokens)[0]
        check_finite(losses, "the losses of the tokens")
        reconstruction = tokenizer.decode_map(pyramid, precision="fp32").volume.clamp(-1.0, 1.0)
    residual = (batch - reconstruction).abs().mean()
    return Likelihood(losses=losses.cpu().numpy(), residual=float(residual), trace=trace)


def surprise_map(excess: npt.NDArray[np.float32], schedule: ScaleSchedule, trace: Trace) -> Volume:
    """Where a volume is unlikely, on its own grid, (1, X, Y, Z) of float32.

    A token's excess is spread over the sites of the finest grid that it covers, by linear
    interpolation, and the scales are added: the mean of the map over the plan's field of view is
    the sum of all excesses, divided by the tokens of the finest scale.

    Args:
        excess: (L,) cross-entropy of each token less its usual one, in nats.
        schedule: of the tokenizer.
        trace: of the volume's preparation.
    """
    total = torch.zeros(1, 1, *schedule.latent)
    parts = schedule.split(torch.from_numpy(excess)[None])
    for part, grid in zip(parts, schedule.grids, strict=True):
        density = part.reshape(1, 1, *grid) * (part.numel() / schedule.tokens[-1])
        total += interpolate(density, schedule.latent, mode="trilinear", align_corners=False)
    # The sites of the finest grid, each as large as the voxels that it stands for.
    step = np.asarray(trace.target.shape) / np.asarray(schedule.latent)
    to_voxels: npt.NDArray[Any] = np.diag([*step, 1.0])
    to_voxels[:3, 3] = (step - 1) / 2
    sites = Volume(array=total[0].numpy(), affine=trace.target.affine @ to_voxels)
    moved = resample(sites, trace.source, fill=0.0, antialias=False)
    return Volume(array=moved.array, affine=trace.source.affine, provenance=trace.provenance)

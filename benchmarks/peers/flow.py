"""A latent diffusion model from MONAI: DiffusionModelUNet, rectified flow, 30 steps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import RFlowScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad

from peers.latents import SecondStage

STEPS = 30


class FlowTask(SecondStage):
    """The squared error of the velocity from noise to latent, at random times.

    Args:
        model: a network with the channels of the latents.
        train: (variants, N, C, x, y, z) latents with even sides and standard deviation 1.
        validation: (N, C, x, y, z), evaluated with fixed noise and times.
        batch_size: cases per step.
        seed: of order and variants.
    """

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean error of the batch."""
        times = scheduler().sample_timesteps(batch)
        return self._error(batch, torch.randn_like(batch), times), {}

    def evaluate(self) -> dict[str, float]:
        """The mean error of the validation cases, at four times each."""
        random, total = torch.Generator().manual_seed(0), 0.0
        device = next(self.model.parameters()).device
        latents = self.validation.repeat(4, *[1] * (self.validation.ndim - 1))
        for part in latents.split(self.batch_size):
            noise = torch.randn(part.shape, generator=random)
            times = torch.randint(scheduler().num_train_timesteps, (len(part),), generator=random)
            error = self._error(part.to(device), noise.to(device), times.to(device))
            total += float(error) * len(part)
        return {"loss": total / len(latents)}

    def _error(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        mixed = scheduler().add_noise(original_samples=latent, noise=noise, timesteps=times)
        velocity = self.model(mixed, timesteps=times.float())
        return mse_loss(velocity.float(), latent - noise)


def unet(size: int, channels: int) -> DiffusionModelUNet:
    """Two levels with `size` and 2 * `size` channels, attention in the second."""
    return DiffusionModelUNet(
        spatial_dims=3, in_channels=channels, out_channels=channels, num_res_blocks=2,
        channels=(size, 2 * size), attention_levels=(False, True), norm_num_groups=4,
        num_head_channels=(0, 2 * size), use_flash_attention=True,
    )  # fmt: skip


def scheduler() -> RFlowScheduler:
    """With integer times, since MONAI rounds the next time down."""
    return RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=True)


def pad_to_even(latent: Tensor) -> Tensor:
    """Pad odd sides of (..., x, y, z) with zeros, since the network halves them once."""
    x, y, z = (side % 2 for side in latent.shape[-3:])
    return pad(latent, (0, z, 0, y, 0, x))


@torch.no_grad()
def sample(
    model: nn.Module, first: Any, shape: Sequence[int], scale: float, seeds: Sequence[int]
) -> Tensor:
    """Sample one volume per seed.

    Args:
        model: predicts the velocity.
        first: the first stage.
        shape: (C, x, y, z) of a latent, without padding.
        scale: factor of the latents in training.
        seeds: of the noise.
    """
    device, steps = next(model.parameters()).device, scheduler()
    noise = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
    latent = pad_to_even(torch.stack(noise)).to(device)
    steps.set_timesteps(STEPS, device=device)
    for now, after in pairwise([*steps.timesteps, torch.zeros_like(steps.timesteps[0])]):
        velocity = model(latent, timesteps=now.expand(len(latent)).float())
        latent, _ = steps.step(velocity, now, latent, after)
    x, y, z = shape[1:]
    volumes: Tensor = first.decode_stage_2_outputs(latent[..., :x, :y, :z] / scale)
    return volumes

"""`DetailDecoder`: draws the fine detail that tokens do not hold, given the decoded volume D(z).

    noise, D(z) -> fold, stem -> U-Net -> head, unfold -> velocity -> next step -> ... -> residual
    D(z) + scale(D(z)) * residual -> volume

Tokens hold what can be told apart; noise and fine texture cannot, and a decoder trained with L1
answers with their average. The detail decoder draws them instead. It is a rectified flow
(arXiv 2209.03003) from noise to the residual x - D(z), conditioned on D(z), as in SSDD (arXiv
2510.04961), and needs neither latent nor tokens: whatever was decoded, by whatever windows, gets
its detail afterwards, in one piece or slab by slab.

The residual is measured in units of its expected size at each voxel, which a small network predicts
from D(z): in air, where D(z) is exact, nothing is added. The noise is white, or correlated as
residuals are (`medar.tokenizer.noise`). The network predicts the velocity, or the residual, from
which the velocity follows: a network with fewer features than its folded input has channels loses
part of the noise that a velocity contains, which shows as grain (arXiv 2511.13720).

A flow takes several steps. In the last part of its training the network learns to draw in one
(`medar.tokenizer.energy_score`): from noise at time 1 straight to a residual.

B batch, C channels, X Y Z voxels, P voxels of a folded patch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medar.devices import InferencePrecision, inference_autocast, memory_budget
from medar.errors import MedarError
from medar.finite import check_finite
from medar.settings import PositiveInt, Width, settings
from medar.tokenizer.convolution import Convolution
from medar.tokenizer.detail_layers import (
    TIME_FEATURES,
    ScaleNetwork,
    TimedBlock,
    time_features,
)
from medar.tokenizer.network import ChannelNorm, Fold, NetworkConfig, Repeat, Unfold
from medar.tokenizer.noise import WHITE, Correlation, draw_noise
from medar.tokenizer.slabs import Layer, Residual, by_slabs, chained, each, fitting, layer_of
from medar.volume import Shape3

SPREAD = 1.25
"""Standard deviation of a residual, in multiples of its expected size: that of a normal
distribution."""

EARLIEST = 0.1
"""Least time by which the difference between a point and its predicted residual is divided."""

KEPT = 210
"""Rows of features at the finest level that the layers of two strides keep between slabs, with what
the last slab needs more."""

Widths = Annotated[tuple[Width, ...], Field(min_length=1)]


Prediction = Literal["velocity", "residual"]
"""What a network predicts: noise minus residual, or the residual, from which the former follows."""

Method = Literal["one_step", "multistep", "euler"]
"""How noise becomes a residual: in one step, for which the network was trained; or along the flow,
by the two-step Adams-Bashforth method, of second order, or by Euler's."""

Detail = PositiveInt | Literal["auto", "none"]
"""Steps of the detail decoder; "none": D(z) alone; "auto": the decoder's own number of steps, or
none if there is no detail decoder."""


@settings
class DetailConfig:
    """Sizes of a detail decoder."""

    channels: PositiveInt = 1
    """C, channels of the volume."""
    fold: Shape3 = (2, 2, 2)
    """Voxels along each axis that are folded into the channels of one site."""
    strides: tuple[Shape3, ...] = ((2, 2, 2), (2, 2, 2))
    """Strides between levels; with `fold` at most the tokenizer's downsampling."""
    widths: Widths = (24, 48, 72)
    """Features of each level, finest first: one more than there are strides."""
    steps: PositiveInt = 4
    """Steps from noise to residual, if no other number is requested."""
    correlation: Correlation = WHITE
    """Of the noise, between neighbouring voxels along each axis; see `medar.tokenizer.noise`."""
    prediction: Prediction = "velocity"
    """What the network predicts."""
    method: Method = "euler"
    """How noise becomes a residual."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.strides) + 1:
            raise MedarError(
                f"widths must be one more than the {len(self.strides)} strides, got "
                f"{len(self.widths)}"
            )
        if not all(0 <= r < 1 for r in self.correlation):
            raise MedarError(
                f"correlation must be at least 0 and less than 1, got {list(self.correlation)}"
            )
        self.check_steps(self.steps)

    def check_steps(self, steps: int) -> None:
        """Refuse a number of steps that the method cannot take.

        Raises:
            MedarError: fewer than one, or several for a network that draws in one.
        """
        if steps < 1 or (steps > 1 and self.method == "one_step"):
            allowed = "1: this decoder draws in one" if self.method == "one_step" else "at least 1"
            raise MedarError(f"detail steps must be {allowed}, got {steps}")

    @property
    def alignment(self) -> Shape3:
        """Voxels along each axis that one site of the coarsest level covers."""
        x, y, z = (prod(step[axis] for step in (self.fold, *self.strides)) for axis in range(3))
        return x, y, z

    @classmethod
    def for_network(
        cls,
        network: NetworkConfig,
        widths: Widths,
        steps: int,
        correlation: Correlation = WHITE,
        prediction: Prediction = "velocity",
        method: Method = "euler",
    ) -> "DetailConfig":
        """The sizes for volumes of a tokenizer: its channels, fold and first strides.

        Widths of levels beyond its downsampling are left out.
        """
        strides = network.strides[: len(widths) - 1]
        return cls(
            channels=network.channels,
            fold=network.fold,
            strides=strides,
            widths=widths[: len(strides) + 1],
            steps=steps,
            correlation=correlation,
            prediction=prediction,
            method=method,
        )


class DetailDecoder(nn.Module):
    """Draws detail for decoded volumes; see the module's description."""

    def __init__(self, config: DetailConfig) -> None:
        super().__init__()
        self.config = config
        patch, widths = config.channels * prod(config.fold), config.widths
        self.fold, self.unfold = Fold(config.fold), Unfold(config.fold)
        self.scale = ScaleNetwork(patch, widths[0])
        width = 4 * TIME_FEATURES
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.stem = Convolution(3 * patch, widths[0])
        self.first = TimedBlock(widths[0], width)
        self.halving, self.down = nn.ModuleList(), nn.ModuleList()
        self.doubling, self.up = nn.ModuleList(), nn.ModuleList()
        for stride, before, after in zip(config.strides, widths[:-1], widths[1:], strict=True):
            self.halving.append(nn.Conv3d(before, after, kernel_size=stride, stride=stride))
            self.down.append(TimedBlock(after, width))
            narrow = nn.Conv3d(after, before, kernel_size=1)
            self.doubling.insert(0, nn.Sequential(narrow, Repeat(stride)))
            self.up.insert(0, TimedBlock(before, width))
        self.norm = ChannelNorm(widths[0])
        self.head = Convolution(widths[0], patch)
        nn.init.zeros_(self.head.weight)

    def forward(self, residual: Tensor, decoded: Tensor, log_size: Tensor, time: Tensor) -> Tensor:
        """The velocity, noise minus residual, at a point between residual and noise.

        Args:
            residual: (B, C, X, Y, Z), in units of its expected deviation: residual at time 0, noise
                at time 1.
            decoded: (B, C, X, Y, Z), D(z).
            log_size: (B, C, X, Y, Z), of the same volumes.
            time: (B,).
        """
        return self._velocity(residual, self.predict(residual, decoded, log_size, time), time)

    def in_one_step(self, noise: Tensor, decoded: Tensor, log_size: Tensor) -> Tensor:
        """The residual that one step leads to from noise, all (B, C, X, Y, Z)."""
        time = torch.ones(len(noise), device=noise.device)
        velocity: Tensor = self(noise, decoded, log_size, time)
        return noise - velocity.float()

    def predict(self, residual: Tensor, decoded: Tensor, log_size: Tensor, time: Tensor) -> Tensor:
        """What the network predicts there (`DetailConfig.prediction`), (B, C, X, Y, Z)."""
        embedded = self.time(time_features(time).to(residual.dtype))
        x = self.stem(self.fold(torch.cat([residual, decoded, log_size], 1)))
        x = self.first(x, embedded)
        skips = []
        for halve, block in zip(self.halving, self.down, strict=True):
            skips.append(x)
            x = block(halve(x), embedded)
        for double, block in zip(self.doubling, self.up, strict=True):
            x = block(double(x) + skips.pop(), embedded)
        predicted: Tensor = self.unfold(self.head(functional.silu(self.norm(x))))
        return predicted

    def _velocity(self, point: Tensor, predicted: Tensor, time: Tensor) -> Tensor:
        """The velocity at a point between residual and noise, from what the network predicts."""
        if self.config.prediction == "velocity":
            return predicted
        return (point - predicted.float()) / time.clamp(min=EARLIEST)[:, None, None, None, None]

    def log_size(self, decoded: Tensor) -> Tensor:
        """Logarithm of the residual's expected size at each voxel, (B, C, X, Y, Z) float32."""
        size: Tensor = self.unfold(self.scale(self.fold(decoded)))
        return size

    @torch.no_grad()
    def draw(
        self,
        decoded: Tensor,
        seeds: Sequence[int],
        steps: int | None = None,
        budget: int | None = None,
        precision: InferencePrecision = "auto",
    ) -> Tensor:
        """Draw detail for decoded volumes.

        Each volume depends on its own seed only: the noise of the whole grid is drawn from it on
        the CPU, so that neither batch nor slabs nor device change it.

        Args:
            decoded: (B, C, X, Y, Z), D(z), of any size; clipped to [-1, 1], as in training.
            seeds: one per volume.
            steps: from noise to residual; default: the config's.
            budget: bytes that a pass of the network may take; more is computed slab by slab.
                Default: the device's `memory_budget`.
            precision: of the network.

        Returns:
            (B, C, X, Y, Z), within [-1, 1] as volumes are.

        Raises:
            MedarError: see `DetailConfig.check_steps`, or a result that is NaN or infinite.
        """
        steps = self.config.steps if steps is None else steps
        self.config.check_steps(steps)
        x, y, z = decoded.shape[2:]
        correlation = self.config.correlation
        noise = torch.stack([draw_noise(seed, decoded.shape[1:], correlation) for seed in seeds])
        base, residual = self._padded(decoded.clamp(-1.0, 1.0)), self._padded(noise.to(decoded))
        budget = memory_budget(base.device) if budget is None else budget
        over = partial(self._over, budget=budget // len(base), precision=precision)
        log_size = over(self.log_size, self._size_layer, base)
        before: Tensor | None = None
        for step in range(steps):
            time = torch.full((len(base),), 1 - step / steps, device=base.device)
            layer = partial(self._prediction_layer, time=time)
            predicted = over(partial(self.predict, time=time), layer, residual, base, log_size)
            velocity = self._velocity(residual, predicted, time)
            ahead = velocity
            if before is not None and self.config.method == "multistep":
                ahead = 1.5 * velocity - 0.5 * before
            residual, before = residual - ahead / steps, velocity
        volume = base + SPREAD * log_size.exp() * residual
        check_finite(volume, "the volumes with detail")
        return volume.clamp(-1.0, 1.0)[:, :, :x, :y, :z]

    def _padded(self, volume: Tensor) -> Tensor:
        """The volume with its last voxels repeated, up to whole sites of the coarsest level."""
        sides = zip(volume.shape[2:], self.config.alignment, strict=True)
        x, y, z = (-n % align for n, align in sides)
        return functional.pad(volume, (0, z, 0, y, 0, x), mode="replicate")

    def _over(
        self,
        network: Callable[..., Tensor],
        layer: Callable[[int], Layer],
        *volumes: Tensor,
        budget: int,
        precision: InferencePrecision,
    ) -> Tensor:
        """A network from volumes to one of their shape, in one piece or slab by slab."""
        first, config = volumes[0], self.config
        axis = max((2, 3, 4), key=lambda axis: first.shape[axis])
        height, patch = config.alignment[axis - 2], config.fold[axis - 2]
        across = first[0, 0].numel() // first.shape[axis] * patch // prod(config.fold)
        row = across * config.widths[0] * 4
        sites = fitting(first.shape[axis] // height, row * height // patch, KEPT * row, budget)
        with inference_autocast(first.device, precision):
            if sites * height >= first.shape[axis]:
                whole: Tensor = network(*volumes)
                return whole.to(first.dtype)
            result, low = torch.empty_like(first), 0
            parts = zip(
                *(torch.split(volume, sites * height, axis) for volume in volumes), strict=True
            )
            for made in by_slabs(layer(axis), (torch.cat(part, 1) for part in parts)):
                result.narrow(axis, low, made.shape[axis]).copy_(made)
                low += made.shape[axis]
        return result

    def _size_layer(self, axis: int) -> Layer:
        """`log_size` over slabs."""
        scale = layer_of(self.scale.layers, axis)
        return chained([each(self.fold), scale, each(self.scale.logarithm), each(self.unfold)])

    def _prediction_layer(self, axis: int, time: Tensor) -> Layer:
        """`predict` over slabs of its three volumes, joined along the channels."""
        embedded = self.time(time_features(time))
        over: Callable[[nn.Module], Layer] = partial(layer_of, axis=axis)

        def timed(block: nn.Module) -> Layer:
            assert isinstance(block, TimedBlock)
            return block.over_slabs(embedded, axis)

        inner: list[Layer] = []
        levels = zip(
            self.halving, self.down, reversed(self.doubling), reversed(self.up), strict=True
        )
        for halve, down, double, up in reversed(list(levels)):
            below = chained([over(halve), timed(down), *inner, over(double)])
            inner = [Residual(below, axis), timed(up)]
        before = [each(self.fold), over(self.stem), timed(self.first)]
        after = [over(module) for module in (self.norm, nn.SiLU(), self.head, self.unfold)]
        return chained([*before, *inner, *after])

"""Mamba-2 over the tokens of all scales, in one sequence from coarse to fine.

Where VAR attends to all earlier tokens, M-VAR (arXiv 2411.10433) has a linear-time block between
scales. This is the same idea, with the block of Mamba-2 (arXiv 2405.21060):

    z, u, b, c, dt = in(x)          u, b, c = silu(conv(u, b, c))
    y = scan(u, softplus(dt), a, b, c) + d u          out(norm(y silu(z)))

The state is that of the scan and the last inputs of the convolution; its size does not depend on
the grids. The order of tokens within a scale is arbitrary, so every other layer reads each scale
backwards; the scales stay in order, and finer ones never influence coarser ones.

B batch, L tokens over all scales, T tokens of one scale, E width, I inner channels, H heads, P
width of a head, N state.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from medar.generator.mixers.base import Mixer, MixerSettings, State
from medar.generator.mixers.ssd import scan
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule

STEPS = (0.001, 0.1)
"""Initial range of dt, log-uniform over the heads (as in Mamba)."""
RATES = (1.0, 16.0)
"""Initial range of -a, uniform (as in Mamba-2)."""


class MambaMixer(Mixer):
    """A Mamba-2 block that can stop after each scale and continue.

    Args:
        settings: `state_dim`, `expand`, `conv_kernel` and `chunk_size` are used.
        width: E, a multiple of `heads`.
        heads: of the generator; with `expand` inner channels per feature there are `expand` times
            as many here, each of the same width.
        schedule: the grids.
        layer: odd ones read each scale backwards.
    """

    order: Tensor

    def __init__(
        self, settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.settings = settings
        self.reverse = layer % 2 == 1
        self.inner = settings.expand * width
        self.heads = settings.expand * heads
        self.convolved = self.inner + 2 * settings.state_dim
        self.into = nn.Linear(width, self.inner + self.convolved + self.heads, bias=False)
        self.conv = nn.Conv1d(
            self.convolved, self.convolved, settings.conv_kernel, groups=self.convolved
        )
        self.dt_bias = nn.Parameter(inverse_softplus(draw_steps(self.heads, *STEPS)))
        self.log_rate = nn.Parameter(torch.empty(self.heads).uniform_(*RATES).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm = Norm(self.inner, eps=1e-5)
        self.out = nn.Linear(self.inner, width, bias=False)
        backwards = [part.flip(1) for part in schedule.split(torch.arange(schedule.length)[None])]
        self.register_buffer("order", torch.cat(backwards, dim=1)[0], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same."""
        if not self.reverse:
            return self._run(x, self.start(x))[0]
        order = self.order[: x.shape[1]]  # its own inverse
        return self._run(x[:, order], self.start(x))[0][:, order]

    def start(self, like: Tensor) -> State:
        """Zeros: the scan's state (B, H, P, N) float32 and the convolution's last inputs."""
        shape = (len(like), self.heads, self.inner // self.heads, self.settings.state_dim)
        return {
            "scan": like.new_zeros(shape, dtype=torch.float32),
            "conv": like.new_zeros(len(like), self.settings.conv_kernel - 1, self.convolved),
        }

    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k, (B, T, E), after the scales in `state`."""
        if not self.reverse:
            return self._run(x, state)
        y, state = self._run(x.flip(1), state)
        return y.flip(1), state

    @property
    def state_size(self) -> int:
        """I N of the scan and (conv_kernel - 1) (I + 2 N) of the convolution, for any grids."""
        return (
            self.inner * self.settings.state_dim + (self.settings.conv_kernel - 1) * self.convolved
        )

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens in reading order, (B, T, E)."""
        sizes = [self.inner, self.convolved, self.heads]
        z, fed, dt = torch.split(self.into(x), sizes, dim=-1)
        fed, tail = self._convolve(fed, state["conv"])
        sizes = [self.inner, self.settings.state_dim, self.settings.state_dim]
        u, b, c = torch.split(fed, sizes, dim=-1)
        u = rearrange(u, "B T (H P) -> B T H P", H=self.heads)
        dt = softplus(dt.float() + self.dt_bias.float())
        rates = -self.log_rate.float().exp()
        y, last = scan(u, dt, rates, b, c, self.settings.chunk_size, state["scan"])
        y = (y.float() + self.skip[:, None] * u.float()).flatten(2)
        return self.out(self.norm(y * silu(z))), {"scan": last, "conv": tail}

    def _convolve(self, fed: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve each token with those before it; also the last inputs, for the next tokens."""
        fed = torch.cat([before.to(fed.dtype), fed], dim=1)
        tail = fed[:, fed.shape[1] - (self.settings.conv_kernel - 1) :]
        return silu(self.conv(fed.transpose(1, 2))).transpose(1, 2), tail


def draw_steps(heads: int, low: float, high: float) -> Tensor:
    """Log-uniform steps between two bounds, (heads,)."""
    return torch.empty(heads).uniform_(math.log(low), math.log(high)).exp()


def inverse_softplus(values: Tensor) -> Tensor:
    """The inverse of softplus; values must be above 0."""
    return values + torch.log(-torch.expm1(-values))

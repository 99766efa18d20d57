"""A selective state-space recurrence along the scales, at each site separately.

The other mixers arrange the tokens of all scales in one sequence. Here the sequence is the scales:
a site of grid k starts from the state of grid k - 1 interpolated to it, U h, and follows dh/ds = b
u - h for a time dt set by the token (selection, arXiv 2312.00752), which gives exactly

    h_k = a U h_(k-1) + (1 - a) b_k u_k       a = exp(-dt_k)        y_k = c_k . h_k + d u_k
    out(norm(y silu(z)))

K steps for all sites at once, independent of the order of tokens within a scale. U interpolates
linearly between the centres of cells: its weights are not negative and sum to 1, so that h is a
weighted mean of b u along the scales and cannot grow. docs/explanation/mixers.md has the
derivation.

The state is large: N numbers per channel and site. So it stays on a coarse grid
(`state_max_side`): finer sites read it interpolated to them, and update it together, by the
averages of their u, b and dt over each of its cells.

B batch, L tokens over all scales, T tokens of one scale, E width, I inner channels, H heads, P
width of a head, N state, K scales.
"""

from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, silu, softplus

from medar.generator.mixers.base import Mixer, MixerSettings, State
from medar.generator.mixers.mamba import draw_steps, inverse_softplus
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.upsampling import resize
from medar.volume import Shape3


class _Inputs(NamedTuple):
    """Inputs of the recurrence from a scale's tokens; float32."""

    u: Tensor
    """(B, T, I)"""
    b: Tensor
    """(B, T, N)"""
    c: Tensor
    """(B, T, N)"""
    dt: Tensor
    """(B, T, H)"""


class ScaleSSM(Mixer):
    """A recurrence from scale to scale at each site.

    Args:
        settings: `state_dim`, `state_max_side` and `expand` are used.
        width: E, a multiple of `heads`.
        heads: of the generator; with `expand` inner channels per feature there are `expand` times
            as many here. The channels of a head share one step dt.
        schedule: the grids.
        layer: not used.
    """

    def __init__(
        self, settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
    ) -> None:
        super().__init__()
        self.schedule = schedule
        small = (k for k, g in enumerate(schedule.grids) if max(g) <= settings.state_max_side)
        finest = max(small, default=0)
        self.state_grids = tuple(schedule.grids[min(k, finest)] for k in range(len(schedule)))
        """Grid of the state after each scale."""
        self.inner = settings.expand * width
        self.heads = settings.expand * heads
        self.state_dim = settings.state_dim
        self.into = nn.Linear(width, 2 * self.inner + 2 * self.state_dim + self.heads, bias=False)
        # From a head that remembers all K scales to one that remembers about one.
        steps = draw_steps(self.heads, 1 / len(schedule), 1.0)
        self.dt_bias = nn.Parameter(inverse_softplus(steps))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.norm = Norm(self.inner, eps=1e-5)
        self.out = nn.Linear(self.inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same, in a loop over the scales."""
        z, inputs = self._project(x)
        split = [self.schedule.split(one) for one in inputs]
        state, mixed = self.start(x)["h"], []
        for k, parts in enumerate(zip(*split, strict=True)):
            y, state = self._recur(k, _Inputs(*parts), state)
            mixed.append(y)
        return self._finish(torch.cat(mixed, dim=1), z)

    def start(self, like: Tensor) -> State:
        """Zeros on the first grid, {"h": (B, x, y, z, N, I)} float32."""
        shape = (len(like), *self.schedule.grids[0], self.state_dim, self.inner)
        return {"h": like.new_zeros(shape, dtype=torch.float32)}

    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k, (B, T, E), after scale k - 1."""
        z, inputs = self._project(x)
        y, h = self._recur(k, inputs, state["h"])
        return self._finish(y, z), {"h": h}

    @property
    def state_size(self) -> int:
        """I N numbers per site of the state's last grid."""
        *before, _ = (self.state_grids[0], *self.state_grids)
        return self.inner * self.state_dim * prod(before[-1])

    def _project(self, x: Tensor) -> tuple[Tensor, _Inputs]:
        """The gate (B, T, I) and the inputs of the recurrence."""
        sizes = [self.inner, self.inner, self.state_dim, self.state_dim, self.heads]
        z, u, b, c, dt = torch.split(self.into(x), sizes, dim=-1)
        steps = softplus(dt.float() + self.dt_bias.float())
        return z, _Inputs(u=silu(u).float(), b=b.float(), c=c.float(), dt=steps)

    def _recur(self, k: int, inputs: _Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scale k: y, (B, T, I), and the state after it; the last scale does not compute one.

        y comes from the state before, U h, and the token: c . h_k = (a c) . U h + (1 - a)(c . b) u.
        The new state is computed only if a later scale reads it, and the backward pass keeps only
        U h.
        """
        grid, held = self.schedule.grids[k], self.state_grids[k]
        u, b, c, decay, gain = self._terms(inputs)
        raised = upsample(state, grid)
        y = (decay * c * self._by_site(raised)).sum(2, keepdim=True)
        y = (y + gain * (b * c).sum(2, keepdim=True) * u).flatten(2) + self.skip.float() * inputs.u
        if k < len(self.schedule) - 1:
            if held != grid:
                raised = state
                u, b, _, decay, gain = self._terms(
                    _Inputs(*(average(one, grid, held) for one in inputs))
                )
            written = torch.addcmul(decay * self._by_site(raised), gain * b, u)
            state = written.reshape(raised.shape)
        return y, state

    def _terms(self, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u, b, c, a and 1 - a, each to be broadcast to (B, T, N, H, P)."""
        u = rearrange(inputs.u, "B T (H P) -> B T 1 H P", H=self.heads)
        b, c = (rearrange(one, "B T N -> B T N 1 1") for one in (inputs.b, inputs.c))
        dt = rearrange(inputs.dt, "B T H -> B T 1 H 1")
        return u, b, c, torch.exp(-dt), -torch.expm1(-dt)

    def _by_site(self, state: Tensor) -> Tensor:
        """(B, x, y, z, N, I) to (B, T, N, H, P)."""
        return rearrange(state, "B x y z N (H P) -> B (x y z) N H P", H=self.heads)

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, norm and output, (B, T, I) to (B, T, E)."""
        gated: Tensor = self.out(self.norm(y * silu(z)))
        return gated


def average(x: Tensor, grid: Shape3, coarse: Shape3) -> Tensor:
    """(B, T, C) of the sites of a grid, averaged to the sites of a coarser one."""
    cells = adaptive_avg_pool3d(x.mT.reshape(len(x), -1, *grid), coarse)
    return cells.flatten(2).mT


def upsample(state: Tensor, grid: Shape3) -> Tensor:
    """(B, x, y, z, N, I) on a finer grid, linear between the centres of cells."""
    return resize(state.flatten(4), grid).reshape(len(state), *grid, *state.shape[4:])

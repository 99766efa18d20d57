"""No mixer: the next scale knows the earlier ones through the reconstruction so far alone.

The reconstruction of all earlier scales is the input of each scale, so that nothing is hidden from
it (a Markov chain over scales, as in HMAR, arXiv 2506.04421, and Switti, arXiv 2412.01819). A block
with this mixer has no such layer at all.
"""

from torch import Tensor

from medar.generator.mixers.base import Mixer, State


class NoMixer(Mixer):
    """Passes on what comes in, and nothing from scale to scale."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E), as it is."""
        return x

    def start(self, like: Tensor) -> State:
        """Nothing."""
        return {}

    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, T, E), as it is."""
        return x, state

    @property
    def state_size(self) -> int:
        """0."""
        return 0

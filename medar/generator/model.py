"""`TokenModel`: what training and sampling know of a generator, whatever its order of tokens.

Training gives all tokens of a volume and gets logits for each of them (teacher forcing). Sampling
gets logits for one part of the tokens after the other - a scale, or a single token - and says which
were chosen. The two agree: a test holds every model to it.

B batch, L tokens over all scales, T tokens of one part, V codes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from medar.generator.conditions import Condition
from medar.generator.config import GeneratorConfig
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Tokens that are given rather than sampled, from a volume of which a part is known."""

    mask: Tensor
    """(B, L) bool: which tokens are given."""
    latent: Tensor
    """(B, D, x, y, z): the encoded volume that they come from, right where `mask` says so."""

    def to(self, device: Any) -> "Known":
        """The same on a device."""
        return Known(mask=self.mask.to(device), latent=self.latent.to(device))


class TokenModel(nn.Module, ABC):
    """A model of token pyramids, given conditions."""

    config: GeneratorConfig
    quantiser: MultiScaleQuantiser
    """The tokenizer's, frozen."""
    schedule: ScaleSchedule
    codes: int
    """V."""
    sees_known: ClassVar[bool] = True
    """Whether `forward` makes use of `known`; without, training marks nothing as known."""

    @property
    @abstractmethod
    def parts(self) -> tuple[int, ...]:
        """Tokens that each step of sampling predicts; they sum to L."""

    @abstractmethod
    def forward(self, tokens: Tensor, condition: Condition, known: Tensor | None = None) -> Tensor:
        """Logits of every token given those before it, (B, L, V).

        Args:
            tokens: (B, L) int64, what the model sees.
            condition: what the volumes are.
            known: (B, L) bool, tokens that are given beforehand and seen everywhere; default none.
        """

    @abstractmethod
    def begin(self, condition: Condition, known: Known | None = None) -> Any:
        """What sampling a batch starts from: an object that `step` and `take` are given."""

    @abstractmethod
    def step(self, memory: Any) -> Tensor:
        """Logits of the next part, (B, T, V)."""

    @abstractmethod
    def take(self, memory: Any, tokens: Tensor) -> Tensor:
        """Go on with the tokens that were chosen for the part, (B, T) int64.

        Known tokens take the place of those that were chosen.

        Returns:
            (B, T), the part's tokens as they are now.
        """

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Numbers that sampling carries from part to part for one volume, at most."""

"""`FrozenTokenizer`: a trained tokenizer that pretext tasks learn from.

    volumes -> latent -> tokens of each scale
    tokens of the scales up to k -> the volume that they decode to, k chosen per item

It is not a module, since it is not trained, averaged or saved; it moves to the volumes' device.

B batch, C channels, X Y Z voxels, D code width, x y z sites of the latent, T tokens of one scale,
K scales.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.devices import device_of, send, without_tf32
from medar.errors import MedarError
from medar.settings import to_dict
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Shape3

SHARED = ("channels", "spacing", "size", "intensity")
"""Keys in which the plans of tokenizer and data must agree."""


class FrozenTokenizer:
    """A tokenizer for the volumes of prepared data.

    Args:
        tokenizer: with the plan that it was trained with.
        plan: that the data were prepared with.
        name: for messages.

    Raises:
        MedarError: the plans differ, naming the first difference; or the tokenizer has a single
            scale.
    """

    def __init__(self, tokenizer: Tokenizer, plan: Plan, name: str = "tokenizer") -> None:
        theirs, own = to_dict(tokenizer.require_plan()), to_dict(plan)
        for key in SHARED:
            if theirs[key] != own[key]:
                raise MedarError(
                    f"{name}: its plan has {key} {theirs[key]}, the data were prepared with "
                    f"{own[key]}; prepare them with the tokenizer's plan, or use another tokenizer"
                )
        if len(tokenizer.config.schedule) < 2:
            raise MedarError(f"{name}: must have several scales, got {tokenizer.config.schedule}")
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.digest = tokenizer.digest

    @classmethod
    def load(cls, folder: str, plan: Plan) -> "FrozenTokenizer":
        """Load the tokenizer of a model folder or a training run.

        Raises:
            MedarError: the folder has no tokenizer, or see above.
        """
        return cls(Tokenizer.from_pretrained(folder, "cpu"), plan, folder)

    @property
    def schedule(self) -> ScaleSchedule:
        """The grids of its scales."""
        return self.tokenizer.config.schedule

    @property
    def width(self) -> int:
        """D."""
        return self.tokenizer.config.network.code_width

    @property
    def factors(self) -> Shape3:
        """Voxels per site of the finest grid, along each axis."""
        return self.tokenizer.config.network.downsampling

    @torch.no_grad()
    def latent(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, D, x, y, z), in float32 as for a generator."""
        if device_of(self.tokenizer) != volumes.device:
            self.tokenizer.to(volumes.device)
        with without_tf32(), torch.autocast(volumes.device.type, enabled=False):
            latent: Tensor = self.tokenizer.encoder(volumes.float())
        return latent

    @torch.no_grad()
    def tokens(self, latent: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 of each scale."""
        with without_tf32():
            return self.tokenizer.quantiser.encode(latent)

    @torch.no_grad()
    def sums(self, tokens: Sequence[Tensor], scales: Sequence[int]) -> Tensor:
        """(B, D, x, y, z): the latent of the first `scales` scales of each item."""
        most, quantiser = max(scales), self.tokenizer.quantiser
        requested = send(torch.tensor(scales), tokens[0].device).view(-1, 1, 1, 1, 1)
        running = enumerate(accumulate(quantiser.contributions(tokens[:most])), start=1)
        _, chosen = next(running)
        for k, total in running:
            chosen = torch.where(requested >= k, total, chosen)
        return chosen

    @torch.no_grad()
    def prefix(self, tokens: Sequence[Tensor], scales: Sequence[int]) -> Tensor:
        """(B, C, X, Y, Z): the volumes decoded from the first scales of each item.

        Args:
            tokens: (B, T) of each scale; later scales are ignored.
            scales: how many of each item, at least 1.
        """
        volumes: Tensor = self.tokenizer.decoder(self.sums(tokens, scales)).volume
        return volumes.float()

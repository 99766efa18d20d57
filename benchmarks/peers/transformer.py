"""MONAI's DecoderOnlyTransformer over the indices of its VQVAE, sampled by its own inferer."""

from collections.abc import Sequence

import torch
from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils.ordering import Ordering
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from peers.latents import SecondStage


class TransformerTask(SecondStage):
    """Cross-entropy of each index given those before it, in raster order.

    Args:
        model: with one token more than there are codes; the last one starts a sequence.
        train: (variants, N, x, y, z) indices.
        validation: (N, x, y, z) indices.
        batch_size: cases per step.
        seed: of order and variants.
    """

    def __init__(
        self, model: DecoderOnlyTransformer, train: Tensor, validation: Tensor, batch_size: int,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, train, validation, batch_size, seed)
        self.order = torch.as_tensor(raster(validation.shape[1:]).get_sequence_ordering())

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross-entropy of the tokens."""
        return self._entropy(batch), {}

    def evaluate(self) -> dict[str, float]:
        """The mean cross-entropy of the validation cases."""
        device = next(self.model.parameters()).device
        parts = self.validation.to(device).split(self.batch_size)
        sums = [float(self._entropy(part)) * len(part) for part in parts]
        return {"loss": sum(sums) / len(self.validation)}

    def _entropy(self, indices: Tensor) -> Tensor:
        tokens = indices.flatten(1)[:, self.order].long()
        given = pad(tokens, (1, 0), value=self.model.num_tokens - 1)[:, :-1]
        return cross_entropy(self.model(given).float().flatten(0, 1), tokens.flatten())


def transformer(size: int, depth: int, codes: int, tokens: int) -> DecoderOnlyTransformer:
    """The network, with `depth` heads of `size` features."""
    return DecoderOnlyTransformer(
        num_tokens=codes + 1, max_seq_len=tokens, attn_layers_dim=size * depth,
        attn_layers_depth=depth, attn_layers_heads=depth, use_flash_attention=True,
    )  # fmt: skip


def raster(grid: Sequence[int]) -> Ordering:
    """The order of indices on a grid."""
    return Ordering("raster_scan", spatial_dims=3, dimensions=(1, *grid))


@torch.no_grad()
def sample(
    model: DecoderOnlyTransformer, first: VQVAE, grid: Sequence[int], seeds: Sequence[int]
) -> Tensor:
    """Sample one volume per seed; only the first seed is used for the whole batch."""
    torch.manual_seed(seeds[0])
    device = next(model.parameters()).device
    start = torch.full((len(seeds), 1), first.num_embeddings, device=device)
    volumes: Tensor = VQVAETransformerInferer().sample(
        latent_spatial_dim=tuple(grid), starting_tokens=start, vqvae_model=first,
        transformer_model=model, ordering=raster(grid), verbose=False,
    )  # fmt: skip
    return volumes

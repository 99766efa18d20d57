"""Next-scale prediction as a pretext task, after VAR (arXiv 2404.02905).

    volume -> tokens -> the volume that scales 1 to k decode to -> backbone -> tokens of scale k + 1

Every prefix of a medar tokenizer's scales decodes to a volume, from a blur to the full detail. The
backbone is shown one, k drawn for each item, and says at each site of the next grid which token
comes: what is where at the next finer resolution. A generator is trained on the same question, with
the prefix as features of its tokens; here it is a volume again, as fine-tuning gives one, so that
any segmentation backbone can answer. The decoder is trained too: tokens are read from its output.

B batch, C channels, X Y Z voxels, K scales.
"""

from typing import ClassVar

from torch import Tensor

from medar.segmentation.pretext.base import Generators
from medar.segmentation.pretext.tokens import (
    TokenPretext,
    TokenView,
    draw_scale,
    later,
    weights_of,
)


class NextScalePretext(TokenPretext):
    """From the scales up to k to the tokens of scale k + 1; see `TokenPretext`."""

    hides: ClassVar[bool] = False

    def view(self, volumes: Tensor, random: Generators) -> TokenView:
        """(B, C, X, Y, Z) as their first scales show them; one more scale is to be predicted."""
        balance, schedule = self.settings.balance, self.schedule
        tokens = self.tokenizer.tokens(self.tokenizer.latent(volumes))
        scales = [draw_scale(schedule, balance, one) for one in random]
        wanted = [later(schedule, k, k + 1) for k in scales]
        return TokenView(
            seen=self.tokenizer.prefix(tokens, scales),
            tokens=tokens,
            weights=weights_of(wanted, balance),
        )

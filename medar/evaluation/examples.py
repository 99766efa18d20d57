"""Cases for a picture: the original and what each prefix of scales makes of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.evaluation.realism import spread
from medar.evaluation.reconstruction import check_fit
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One case before and after, in the volume's own units."""

    name: str
    original: Volume
    prefixes: tuple[Volume, ...]
    """From the coarsest 1, 2 ... K scales; the last is the full reconstruction."""


@torch.no_grad()
def make_examples(
    tokenizer: Tokenizer, prepared: str | Path, split: Split = "test", *, cases: int = 4
) -> list[Example]:
    """Reconstruct some cases, spread evenly over a split, from every prefix of scales.

    Args:
        tokenizer: in evaluation mode; its device is used.
        prepared: a folder that `prepare` filled, of the tokenizer's size.
        split: where the cases are from.
        cases: how many, at most.

    Raises:
        MedarError: the folder does not fit the tokenizer, or has no case of the split.
    """
    dataset = PreparedDataset(prepared, split=split)
    check_fit(tokenizer, dataset)
    chosen = spread(dataset, cases)
    return [
        _example(tokenizer, dataset, chosen[place]["image"], chosen[place]["index"])
        for place in range(len(chosen))
    ]


def _example(tokenizer: Tokenizer, dataset: PreparedDataset, image: Tensor, index: int) -> Example:
    case = dataset.prepared[index]
    trace = dataset.prepared.trace(case)

    def restored(array: Tensor) -> Volume:
        pairs = zip(trace.windows, array.float().cpu().numpy(), strict=True)
        channels = np.stack([window.restore(channel) for window, channel in pairs])
        return Volume(array=channels, affine=trace.target.affine, modality=trace.modality)

    batch = image[None].to(next(tokenizer.parameters()).device)
    pyramid = tokenizer.encode(batch)
    scales = range(1, len(pyramid.schedule) + 1)
    return Example(
        name=case.id,
        original=restored(image),
        prefixes=tuple(restored(tokenizer.decode(pyramid, upto).volume[0]) for upto in scales),
    )

"""Prepared cases for a tokenizer: which are taken, whether they fit, examples for a picture.

B batch, C channels, X Y Z voxels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from medar.data.loading import Item, PreparedDataset
from medar.devices import device_of
from medar.errors import MedarError
from medar.tokenizer.detail import Detail
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume

EvaluatedSplit = Literal["train", "val", "test", "held-out"]
"""Cases that models are evaluated on; "held-out" is every case that is not of the train split."""


def evenly_spaced(dataset: PreparedDataset, limit: int | None) -> Subset[Item]:
    """At most `limit` items of a data set, evenly spaced in its order; None takes all."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    return Subset(dataset, indices.tolist())


def cases_of(prepared: str | Path, split: EvaluatedSplit, limit: int | None = None) -> Subset[Item]:
    """The cases of a split, or all but those of the train split; at most `limit`, evenly spaced.

    Raises:
        MedarError: the folder is not a prepared data set, or has no such case.
    """
    if split != "held-out":
        return evenly_spaced(PreparedDataset(prepared, split=split), limit)
    dataset = PreparedDataset(prepared)
    splits = [dataset.prepared[index].split for index in range(len(dataset))]
    indices = [index for index, one in enumerate(splits) if one != "train"]
    if not indices:
        raise MedarError(f"{prepared}: has no held-out cases: all are in the train split")
    count = len(indices) if limit is None else min(limit, len(indices))
    chosen = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return Subset(dataset, [indices[k] for k in chosen])


def check_fit(tokenizer: Tokenizer, dataset: PreparedDataset) -> None:
    """Check that prepared cases have the size, channels and labels of a tokenizer.

    Raises:
        MedarError: they do not.
    """
    plan, network = dataset.plan, tokenizer.config.network
    pairs = [
        ("size", list(plan.size), list(tokenizer.config.size)),
        ("channels", len(plan.channels) or 1, network.channels),
        ("labels", len(plan.labels), network.labels or len(plan.labels)),
    ]
    for name, actual, expected in pairs:
        if actual != expected:
            raise MedarError(
                f"{dataset.prepared.folder}: {name} {actual}, but the tokenizer was trained for "
                f"{expected}; prepare the data with the tokenizer's own plan"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One case before and after reconstruction, in the volume's own units."""

    name: str
    original: Volume
    prefixes: tuple[Volume, ...]
    """From the coarsest 1, 2 ... K scales; the last is the full reconstruction."""
    detailed: Volume | None = None
    """The full reconstruction with detail; None without a detail decoder."""


@torch.no_grad()
def make_examples(
    tokenizer: Tokenizer,
    prepared: str | Path,
    split: EvaluatedSplit = "test",
    *,
    cases: int = 4,
    detail: Detail = "auto",
) -> list[Example]:
    """Reconstruct some cases, evenly spaced over a split, from every prefix of scales.

    Args:
        tokenizer: in evaluation mode; its device is used.
        prepared: a folder that `prepare` filled, of the tokenizer's size.
        split: where the cases come from.
        cases: maximum number of cases.
        detail: steps of the detail decoder.

    Raises:
        MedarError: the folder does not fit the tokenizer, or has no case of the split.
    """
    subset = cases_of(prepared, split, cases)
    dataset = subset.dataset
    assert isinstance(dataset, PreparedDataset)
    check_fit(tokenizer, dataset)
    items = [subset[index] for index in range(len(subset))]
    steps = tokenizer.detail_steps(detail)
    return [_example(tokenizer, dataset, item["image"], item["index"], steps) for item in items]


def _example(
    tokenizer: Tokenizer, dataset: PreparedDataset, image: Tensor, index: int, detail_steps: int
) -> Example:
    case = dataset.prepared[index]
    trace = dataset.prepared.trace(case)

    def restored(array: Tensor) -> Volume:
        pairs = zip(trace.windows, array.float().cpu().numpy(), strict=True)
        channels = np.stack([window.restore(channel) for window, channel in pairs])
        return Volume(array=channels, affine=trace.target.affine, modality=trace.modality)

    pyramid = tokenizer.encode(image[None].to(device_of(tokenizer)))
    scales = range(1, len(pyramid.schedule) + 1)
    prefixes = [tokenizer.decode(pyramid, upto).volume for upto in scales]
    detailed = None
    if detail_steps:
        detailed = restored(tokenizer.add_detail(prefixes[-1], [index], detail_steps)[0])
    return Example(
        name=case.id,
        original=restored(image),
        prefixes=tuple(restored(prefix[0]) for prefix in prefixes),
        detailed=detailed,
    )

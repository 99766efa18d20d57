"""Tiny tokenizers and pretext tasks, for the volumes of `small_segmenters`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from small_segmenters import make_plan, smooth
from torch import Tensor

from medar.data.plan import Plan
from medar.segmentation.backbones import BackboneSettings, make_backbone
from medar.segmentation.pretext import FrozenTokenizer, Pretext, PretextSettings, make_pretext
from medar.segmentation.pretext.settings import PretrainSettings
from medar.settings import from_dict
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig

GRIDS = {
    (16, 12, 8): ((1, 1, 1), (2, 2, 2), (4, 3, 2)),
    (8, 8, 8): ((1, 1, 1), (2, 2, 2)),
    (40, 32, 32): ((1, 1, 1), (10, 8, 8)),
}
"""By the size of volumes; 4 voxels a site."""


def make_tokenizer(plan: Plan | None = None, *, codebook: str = "ema", size: int = 11) -> Tokenizer:
    """A tokenizer with random weights, whose codes and gains were fitted to volumes."""
    plan = plan or make_plan()
    torch.manual_seed(1)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=GRIDS[plan.size]),
        network=NetworkConfig(
            width=4, width_multipliers=(1, 2), code_width=8, downsampling=(4, 4, 4)
        ),
        codebook=CodebookSettings(kind=codebook, size=size, width=8),  # type: ignore[arg-type]
    )
    tokenizer = Tokenizer(config, plan)
    tokenizer(volumes(plan))
    return tokenizer.eval()


def volumes(plan: Plan | None = None, number: int = 3) -> Tensor:
    """(B, 1, X, Y, Z) in [-1, 1]."""
    size = (plan or make_plan()).size
    return torch.from_numpy(np.stack([smooth(*size, seed=n) for n in range(number)]))[:, None]


def generators(seed: int = 0, number: int = 3) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, n]) for n in range(number)]


def make_small(
    kind: str,
    plan: Plan | None = None,
    backbone: BackboneSettings | None = None,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Pretext:
    """A pretext task of a kind on a tiny backbone, in training mode."""
    plan = plan or make_plan()
    chosen = from_dict(
        PretextSettings, {"kind": kind, "mask_block_size": [4, 4, 4], **changes}, "pretext"
    )
    frozen = FrozenTokenizer(tokenizer or make_tokenizer(plan), plan)
    torch.manual_seed(2)
    made = make_backbone(backbone or BackboneSettings(width=4), plan)
    return make_pretext(chosen, made, plan, frozen)


def pretrain_settings(tokenizer: object, **changes: Any) -> PretrainSettings:
    """Settings of a few steps; changes as `section__key`."""
    values: dict[str, dict[str, Any]] = {
        "backbone": {"width": 4},
        "pretext": {"tokenizer": str(tokenizer), "mask_block_size": [4, 4, 4]},
        "data": {"batch_size": 2},
        "training": {"steps": 4, "precision": "fp32", "device": "cpu", "log_every": 1},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section] = {**values[section], key: value}
    return from_dict(PretrainSettings, values, "tiny")


def weighted_sites(weights: Sequence[Tensor | None]) -> list[list[int]]:
    """Number of tokens to predict per scale and item; [] for scales without any."""
    return [[] if weight is None else (weight > 0).sum(1).tolist() for weight in weights]

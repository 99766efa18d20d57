"""A tiny tokenizer with its plan, and volumes for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.intensity import IntensityRule
from medar.data.plan import Plan
from medar.settings import from_dict, to_dict
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Volume, write_nifti

MakeTokenizer = Callable[..., Tokenizer]
Write = Callable[..., Path]


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """A tokenizer of 8x8x8 voxels with random weights; keywords change its plan."""

    def make(*, seed: int = 0, **changes: Any) -> Tokenizer:
        values: dict[str, Any] = {
            "spacing": (1.0, 1.0, 1.0),
            "mode": "volume",
            "size": (8, 8, 8),
            "downsampling": (2, 2, 2),
            "intensity": {"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
        }
        plan = from_dict(Plan, to_dict(Plan(**{**values, **changes})), "plan")
        torch.manual_seed(seed)
        config = TokenizerConfig(
            schedule=ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (4, 4, 4))),
            network=NetworkConfig(
                width=4, growth=(1,), code_width=4, downsampling=(2, 2, 2), labels=len(plan.labels)
            ),
            codebook=CodebookSettings(size=16, width=4),
        )
        tokenizer = Tokenizer(config, plan)
        tokenizer(torch.rand(4, 1, 8, 8, 8) * 2 - 1)  # the codebook starts
        return tokenizer.eval()

    return make


@pytest.fixture
def model(tmp_path: Path, make_tokenizer: MakeTokenizer) -> Callable[..., Path]:
    """The folder of such a tokenizer, below `tmp_path`."""

    def save(name: str = "model", **changes: Any) -> Path:
        make_tokenizer(**changes).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a small CT below `tmp_path`: a seed's noise of some shape, on some affine."""

    def write_one(
        name: str, shape: tuple[int, int, int] = (8, 8, 8), affine: Any = None, seed: int = 0
    ) -> Path:
        voxels = np.random.default_rng(seed).uniform(-900, 900, shape).astype(np.float32)
        matrix = np.eye(4) if affine is None else affine
        volume = Volume.from_array(voxels, matrix)
        write_nifti(tmp_path / name, volume)
        return tmp_path / name

    return write_one

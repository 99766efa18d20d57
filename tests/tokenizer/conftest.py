"""A tiny tokenizer with its plan, volumes for it, and settings and data to train one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.phantoms import write_phantoms
from medar.data.plan import IntensityRule, Plan
from medar.data.planning import plan_data_set
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.settings import from_dict, to_dict
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.settings import TokenizerSettings
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
                width=4,
                width_multipliers=(1,),
                code_width=4,
                downsampling=(2, 2, 2),
                labels=len(plan.labels),
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
    """Write a small CT below `tmp_path`: seeded noise with the given shape and affine."""

    def write_one(
        name: str, shape: tuple[int, int, int] = (8, 8, 8), affine: Any = None, seed: int = 0
    ) -> Path:
        voxels = np.random.default_rng(seed).uniform(-900, 900, shape).astype(np.float32)
        matrix = np.eye(4) if affine is None else affine
        volume = Volume.from_array(voxels, matrix)
        write_nifti(tmp_path / name, volume)
        return tmp_path / name

    return write_one


torch.set_num_threads(1)  # the networks here are too small for two

SETTINGS: dict[str, Any] = {
    "model": {
        "width": 4, "width_multipliers": [1, 2], "scales": 2,
        "codebook": {"kind": "ema", "size": 16, "width": 8},
    },
    "data": {"batch_size": 2},
    "training": {
        "steps": 4, "precision": "fp32", "device": "cpu", "ema_decay": 0.9, "log_every": 1,
        "evaluate_every": 2, "save_every": 1, "keep_checkpoints": 9, "learning_rate": 0.01,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantoms of 16 x 16 x 16 voxels with labels, prepared."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "raw", n=10, spacing=20.0)
    manifest = read_manifest(folder / "raw", fractions=(0.6, 0.2, 0.2))
    overrides = {"size": (16, 16, 16), "downsampling": (4, 4, 4), "mode": "volume"}
    plan = plan_data_set(manifest, folder / "prepared", overrides=overrides, workers=1)
    prepare(manifest, plan, folder / "prepared", workers=1)
    return folder / "prepared"


@pytest.fixture
def settings() -> Callable[..., TokenizerSettings]:
    """Tiny settings, changed by `section__key=value` or whole sections."""

    def make(**changes: Any) -> TokenizerSettings:
        values = {name: dict(section) for name, section in SETTINGS.items()}
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                values.setdefault(section, {})[key] = value
            else:
                values[section] = value
        return from_dict(TokenizerSettings, values, "test")

    return make

"""Tiny prepared volumes and tiny settings for the tests of tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medar.data.phantoms import write_phantoms
from medar.data.planning import plan_data_set
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.settings import from_dict
from medar.tokenizer.settings import TokenizerSettings

torch.set_num_threads(1)  # the networks here are too small for two

SETTINGS: dict[str, Any] = {
    "model": {
        "width": 4, "growth": [1, 2], "scales": 2,
        "codebook": {"kind": "ema", "size": 16, "width": 8},
    },
    "data": {"batch_size": 2},
    "training": {
        "steps": 4, "precision": "fp32", "device": "cpu", "ema": 0.9, "log_every": 1,
        "evaluate_every": 2, "save_every": 1, "keep": 9, "learning_rate": 0.01,
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

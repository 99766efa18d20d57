"""Tiny plans, settings and smooth volumes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from medar.data.plan import IntensityRule, Plan
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.settings import from_dict


def smooth(*sides: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(X, Y, Z) of blurred noise in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=sides)
    blurred = gaussian_filter(noise, 1.0)
    return np.clip(blurred / blurred.std() / 2, -1, 1).astype(np.float32)


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "spacing": (1.0, 1.0, 1.0),
        "mode": "volume",
        "size": (16, 12, 8),
        "downsampling": (4, 4, 4),
        "intensity": {"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
        "labels": {3: "liver", 7: "spleen"},
    }
    return Plan(**{**values, **changes})


def make_segmenter(plan: Plan | None = None, *, mirrors: tuple[str, ...] = ()) -> Segmenter:
    """A tiny network with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    return Segmenter(BackboneSettings(width=4), plan or make_plan(), mirrors).eval()


def make_settings(**changes: Any) -> SegmentationSettings:
    """Settings of two steps; changes as `section` or `section__key`."""
    values: dict[str, dict[str, Any]] = {
        "backbone": {"width": 4},
        "training": {"steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section] = {**values.get(section, {}), key: value} if key else value
    return from_dict(SegmentationSettings, values, "tiny")

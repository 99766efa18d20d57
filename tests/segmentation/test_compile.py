"""Segmentation networks and pretext tasks are compiled as one graph, and once."""

from pathlib import Path
from typing import Any

import pytest
from small_pretexts import pretrain_settings
from small_segmenters import make_settings

from medar.segmentation import training
from medar.segmentation.pretext.training import make_task

from ..compiling import compiled_steps


@pytest.mark.parametrize(
    ("kind", "levels"), [("dynunet", 0), ("dynunet", 1), ("segresnet", 0), ("trunk", 0)]
)
def test_one_graph(kind: str, levels: int, prepared: Path) -> None:
    backbone: dict[str, Any] = {"kind": kind, "width": 8}
    if kind == "trunk":
        backbone["trunk"] = {"depth": 2}  # tracing further blocks takes seconds each
    settings = make_settings(backbone=backbone, loss__deep_supervision_levels=levels)
    assert compiled_steps(training.make_task(settings, prepared), [0.0, 0.5, 0.9]) == (1, [])


def test_the_backbone_of_a_pretext_task(prepared: Path, tmp_path: Path) -> None:
    settings = pretrain_settings(tmp_path, pretext__kind="masked")
    assert compiled_steps(make_task(settings, prepared), [0.0, 0.5, 0.9]) == (1, [])

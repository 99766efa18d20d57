"""Training of segmentation networks and pretext tasks never makes the host wait for the device."""

from pathlib import Path

import pytest
from small_pretexts import make_tokenizer, pretrain_settings
from small_segmenters import make_settings

from medar.segmentation import training
from medar.segmentation.pretext.training import make_task

from ..fake_cuda import waits_of_a_step


@pytest.mark.parametrize("kind", ["dynunet", "segresnet", "trunk"])
def test_a_segmentation_step(
    kind: str, prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = make_settings(
        backbone={"kind": kind, "width": 8},
        loss__deep_supervision_levels=1 if kind == "dynunet" else 0,
        training__steps=100,
        training__log_every=99,
    )
    task = training.make_task(settings, prepared)
    assert not waits_of_a_step(task, settings.training, monkeypatch, tmp_path)


@pytest.mark.parametrize("kind", ["next_scale", "mixture", "semantic_order", "masked"])
def test_a_pretext_step(
    kind: str, prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(folder)
    settings = pretrain_settings(
        folder, pretext__kind=kind, training__steps=100, training__log_every=99
    )
    task = make_task(settings, prepared)
    frozen = getattr(task.model, "tokenizer", None)
    networks = [frozen.tokenizer] if frozen else []
    assert not waits_of_a_step(task, settings.training, monkeypatch, tmp_path, networks)

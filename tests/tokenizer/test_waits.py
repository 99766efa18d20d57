"""Training of a tokenizer and of a detail decoder never makes the host wait for the device."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medar.settings import from_dict
from medar.tokenizer import detail_training, training
from medar.tokenizer.settings import DetailSettings, TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer

from ..fake_cuda import waits_of_a_step

RARE = {"steps": 100, "log_every": 99, "evaluate_every": 99, "save_every": 99, "device": "cpu"}
TEXTURE = {"adversarial": {"layers": 2}, "frequency_weight": 0.1, "texture_start_fraction": 0.5}


@pytest.mark.parametrize("codebook", ["ema", "gradient", "fsq"])
def test_a_tokenizer_step(
    codebook: str,
    prepared: Path,
    settings: Callable[..., TokenizerSettings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    chosen = settings(
        model__codebook={"kind": codebook, "size": 16, "width": 4},
        model__quantiser={"bypass_probability": 0.2},
        model__label_head=True,
        loss=TEXTURE,
        training=RARE,
    )
    task = training.make_task(chosen, prepared)
    assert not waits_of_a_step(task, chosen.training, monkeypatch, tmp_path)


@pytest.mark.parametrize("progress", [0.0, 0.2])
def test_a_step_while_quantiser_or_discriminator_rest(
    progress: float,
    prepared: Path,
    settings: Callable[..., TokenizerSettings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    chosen = settings(model__quantiser={"start_fraction": 0.1}, loss=TEXTURE, training=RARE)
    task = training.make_task(chosen, prepared)
    found = waits_of_a_step(task, chosen.training, monkeypatch, tmp_path, progress=progress)
    assert not found


@pytest.mark.parametrize(("progress", "cached"), [(0.2, False), (0.8, True)])
def test_a_detail_step(
    progress: float,
    cached: bool,
    prepared: Path,
    settings: Callable[..., TokenizerSettings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    values = {"model": {"widths": [4, 4]}, "data": {"batch_size": 2}, "training": RARE}
    chosen = from_dict(DetailSettings, values, "test")
    plan = training.make_task(settings(), prepared).train.plan
    tokenizer = Tokenizer(settings().model.config(plan), plan).eval()
    if not cached:
        monkeypatch.setattr(detail_training, "CACHE_FRACTION", 0)
    task = detail_training.make_task(chosen, tokenizer, prepared)
    found = waits_of_a_step(
        task, chosen.training, monkeypatch, tmp_path, [tokenizer], progress=progress, start=False
    )
    assert not found

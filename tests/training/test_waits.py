"""No training step makes the host wait for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Toy, settings

from ..fake_cuda import waits_of_a_step


def test_the_loop_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rare = settings(log_every=99, evaluate_every=99, save_every=99, accumulation_steps=2)
    assert waits_of_a_step(Toy(noise=0.1), rare, monkeypatch, tmp_path) == []


@pytest.mark.parametrize("how", ["item", "tolist", "copy", "unpinned", "made"])
def test_waits_are_found(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Waiting(Toy):
        def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Any]:
            loss, metrics = super().loss(batch, step)
            if how == "item":
                float(loss.detach())
            elif how == "tolist":
                batch[0].tolist()
            elif how == "copy":
                loss.cpu()
            elif how == "unpinned":
                torch.zeros(3).to(loss.device, non_blocking=True)
            elif loss.device.type == "cuda":
                torch.as_tensor(0.5, device=loss.device)
            return loss, metrics

    rare = settings(log_every=99, evaluate_every=99, save_every=99)
    assert waits_of_a_step(Waiting(), rare, monkeypatch, tmp_path)

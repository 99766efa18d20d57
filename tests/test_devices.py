"""Devices by name, and memory."""

import pytest
import torch
from torch import nn

from medar.devices import device_of, free_memory, resolve_device, to_device
from medar.errors import MedarError


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto") == torch.device(expected)
        assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(MedarError, match="device 'cuda' is not available here; use 'cpu' or"):
        resolve_device("cuda")


def test_a_module_is_moved_to_a_device() -> None:
    module = to_device(nn.Linear(2, 2), "cpu")
    assert device_of(module) == torch.device("cpu")


def test_free_memory_is_reported() -> None:
    assert free_memory(torch.device("cpu")) > 1 << 20

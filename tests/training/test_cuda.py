"""What differs in a training on CUDA."""

import os
from typing import Any

import pytest
import torch
from torch import nn
from toy import Toy, settings

from medar.training import distributed
from medar.training.distributed import Ranks, data_parallel
from medar.training.precision import ALLOCATOR, choose_precision, fast_convolutions


def test_convolutions_are_measured_on_cuda_only() -> None:
    assert not torch.backends.cudnn.benchmark
    for name, expected in (("cuda", True), ("cpu", False)):
        with fast_convolutions(torch.device(name)):
            assert torch.backends.cudnn.benchmark is expected
        assert not torch.backends.cudnn.benchmark


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CUDA device, for what asks only about it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that the test's end restores it
        monkeypatch.delenv(name)


@pytest.mark.parametrize("own", ALLOCATOR)
def test_segments_grow_unless_the_user_configured_the_allocator(
    own: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_precision(settings(device="cpu"))
    assert not any(name in os.environ for name in ALLOCATOR)
    monkeypatch.setenv(own, "max_split_size_mb:64")
    choose_precision(settings(device="cuda"))
    assert [os.environ.get(name) for name in ALLOCATOR if name != own] == [None]
    monkeypatch.delenv(own)
    choose_precision(settings(device="cuda"))
    assert os.environ[ALLOCATOR[0]] == "expandable_segments:True"


@pytest.mark.parametrize("unused", [True, False])
def test_processes_search_for_unused_parameters_only_if_the_task_has_some(
    unused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def noted(module: nn.Module, **options: Any) -> nn.Module:
        given.update(options)
        return module

    monkeypatch.setattr(distributed, "DistributedDataParallel", noted)
    task = Toy()
    task.unused_parameters = unused
    data_parallel(task, Ranks(0, 2, 0), torch.device("cuda", 0))
    assert given == {
        "device_ids": [0], "broadcast_buffers": False, "find_unused_parameters": unused,
    }  # fmt: skip

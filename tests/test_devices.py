"""Devices by name, and memory."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from medar.devices import (
    CPU_BUDGET,
    CUDA_BUDGET,
    KEPT,
    MMAP_MAX,
    MMAP_THRESHOLD,
    TRIM_THRESHOLD,
    _glibc,
    device_of,
    free_memory,
    inference_autocast,
    inference_precision,
    memory_budget,
    resolve_device,
    reused_memory,
    send,
    to_device,
    use_huge_pages,
    without_tf32,
)
from medar.errors import MedarError


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto") == torch.device(expected)
        assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(MedarError, match="device 'cuda' is not available here; use 'cpu' or"):
        resolve_device("cuda")


def test_bf16_is_the_default_where_the_device_has_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, product = torch.device("cpu"), torch.ones(2, 2)
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("medar.devices.has_bf16", lambda device, native=native: native)
        assert inference_precision(cpu) == expected
        assert inference_precision(cpu, "fp32") == "fp32"
        assert inference_precision(cpu, "bf16") == "bf16"
        with inference_autocast(cpu):
            dtype = torch.bfloat16 if native else torch.float32
            assert (product @ product).dtype == dtype
            with inference_autocast(cpu, "fp32"):
                assert (product @ product).dtype == torch.float32


def test_a_module_is_moved_to_a_device() -> None:
    module = to_device(nn.Linear(2, 2), "cpu")
    assert device_of(module) == torch.device("cpu")


def test_free_memory_is_reported() -> None:
    assert free_memory(torch.device("cpu")) > 1 << 20


def test_a_budget_is_a_fraction_of_the_free_memory_with_a_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for free, expected in (((1 << 30), (1 << 29,) * 2), (1 << 40, (CPU_BUDGET, CUDA_BUDGET))):
        monkeypatch.setattr("medar.devices.free_memory", lambda device, free=free: free)
        assert (memory_budget(cpu), memory_budget(cuda)) == expected
    monkeypatch.setattr("medar.devices.free_memory", lambda device: 1000)
    assert memory_budget(cpu, 0.25) == 250


def test_free_memory_of_cuda_includes_what_torch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (500, 900)), ("memory_reserved", 70)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_memory(torch.device("cuda")) == 540


def test_tf32_is_off_inside_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        with pytest.raises(KeyError), without_tf32():
            assert not any(place.allow_tf32 for place in places)
            raise KeyError
        assert all(place.allow_tf32 for place in places)
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def test_what_is_sent_is_pinned_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def to(self: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        sent.append(f"{device} {non_blocking}")
        return self

    def pin(self: torch.Tensor) -> torch.Tensor:
        sent.append("pinned")
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    send(torch.zeros(1), torch.device("cpu"))
    send(torch.zeros(1), torch.device("cuda"))
    assert sent == ["cpu True", "pinned", "cuda True"]


def test_huge_pages_are_asked_for_where_they_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variable, there = "THP_MEM_ALLOC_ENABLE", tmp_path / "enabled"
    monkeypatch.setattr("medar.devices.HUGE_PAGES", there)
    monkeypatch.setenv(variable, "0")
    monkeypatch.delenv(variable)
    use_huge_pages()
    assert variable not in os.environ
    there.touch()
    use_huge_pages()
    assert os.environ[variable] == "1"
    monkeypatch.setenv(variable, "0")
    use_huge_pages()
    assert os.environ[variable] == "0", "the user's choice stands"


def test_glibc_keeps_memory_inside_the_block_and_not_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, ...]] = []

    class Library:
        def mallopt(self, *call: int) -> None:
            calls.append(call)

        def malloc_trim(self, *call: int) -> None:
            calls.append(call)

    monkeypatch.setattr("medar.devices._glibc", Library)
    with pytest.raises(ValueError, match="inside"), reused_memory():
        with reused_memory():
            assert calls == [(MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT)]
        assert len(calls) == 2, "kept until the outer block ends"
        raise ValueError("inside")
    assert dict(call for call in calls[2:] if len(call) == 2) == {
        MMAP_MAX: 65536,
        MMAP_THRESHOLD: 32 << 20,
        TRIM_THRESHOLD: 64 << 20,
    }
    assert calls[-1] == (0,), "free memory is returned"


def test_the_users_settings_of_glibc_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.platform", "darwin")
    assert _glibc() is None
    monkeypatch.setattr("sys.platform", "linux")
    if library := _glibc():
        assert library.mallopt(MMAP_MAX, 65536) == 1, "glibc accepts the setting"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert _glibc() is None

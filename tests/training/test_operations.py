"""Operations of a training and the ceiling of its device."""

from pathlib import Path

import pytest
import torch
from conftest import read_metrics
from torch import nn
from toy import Toy, settings

from medar.training import fit
from medar.training.operations import Counter, Operations, gemm_ceiling
from medar.training.precision import Precision

CPU = torch.device("cpu")


def operations() -> Operations:
    return Operations(Precision(device=CPU, dtype=torch.float32, compile=False, why=""))


def step(one: Operations, amount: int = 16) -> None:
    layer, given = nn.Linear(8, 4, bias=False), torch.ones(16, 8)
    with one.counting(amount):
        layer(given).sum().backward()


def test_operations_are_counted_once_per_unit() -> None:
    counted = operations()
    assert counted.fraction(100.0) is None
    step(counted, 100)  # may be unlike all others
    step(counted, 0)
    assert counted.per_unit is None
    step(counted)
    # Forward, and the gradient of the weights; the input needs none.
    assert counted.per_unit == 2 * 2 * 8 * 4
    step(counted, 1)
    assert counted.per_unit == 2 * 2 * 8 * 4


def test_attention_on_a_cpu_is_counted() -> None:
    queries, keys, values = (torch.rand(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    with Counter() as forward:
        made = nn.functional.scaled_dot_product_attention(queries, keys, values)
    assert forward.flops == 4 * 2 * 3 * 5 * 7 * 8
    with Counter() as backward:
        made.sum().backward()
    assert backward.flops == 10 * 2 * 3 * 5 * 7 * 8


def test_the_fraction_is_that_of_the_measured_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = operations()
    step(counted)
    step(counted)
    monkeypatch.setattr("medar.training.operations.gemm_ceiling", lambda device, dtype: 12_800.0)
    assert counted.fraction(10.0) == pytest.approx(0.1)


def test_the_ceiling_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gemm_ceiling.cache_clear()
    assert gemm_ceiling(CPU, torch.float32) > 1e8
    assert torch.equal(torch.rand(3), expected)


def test_counting_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(Toy(noise=0.1), settings(steps=3), tmp_path / "a")
    monkeypatch.setattr(Operations, "counting", lambda self, amount: torch.enable_grad())
    fit(Toy(noise=0.1), settings(steps=3), tmp_path / "b")
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")
    files = [tmp_path / name / "model" / "model.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()

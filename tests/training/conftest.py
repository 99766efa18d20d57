"""Makes the toy task of this folder importable; fixtures to compare two runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)  # the toy is too small for two

TIMES = ("seconds", "steps_per_second", "numbers_per_second", "gemm_fraction")


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for name in a:
            assert_same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{number}]")
    else:
        assert a == b, where


def read_metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture
def same_runs() -> Callable[[Path, Path], None]:
    """Check that two folders contain the same run bit for bit, except for times."""

    def compare(a: Path, b: Path) -> None:
        assert read_metrics(a) == read_metrics(b)
        names = sorted(path.name for path in (a / "checkpoints").iterdir())
        assert names == sorted(path.name for path in (b / "checkpoints").iterdir())
        for name in names:
            first, second = (
                torch.load(out / "checkpoints" / name, weights_only=True) for out in (a, b)
            )
            for content in (first, second):
                del content["state"]["elapsed"]
            assert_same(first, second, name)
        model = "model/model.safetensors"
        assert (a / model).read_bytes() == (b / model).read_bytes()

    return compare


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """Read the metrics of a run, without times."""
    return read_metrics

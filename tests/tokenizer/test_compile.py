"""A tokenizer's encoder and decoder are compiled once, and quantisation starts without more."""

from collections.abc import Callable
from pathlib import Path

from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.training import make_task

from ..compiling import compiled_steps


def test_one_graph_each(prepared: Path, settings: Callable[..., TokenizerSettings]) -> None:
    chosen = settings(
        model__quantiser={"start_fraction": 0.3},
        loss={"adversarial": {"layers": 2}, "texture_start_fraction": 0.6},
    )
    task = make_task(chosen, prepared)
    assert compiled_steps(task, [0.0, 0.1, 0.4, 0.5, 0.7, 0.8]) == (2, [])

"""Training of a generator never makes the host wait for the device."""

from pathlib import Path

import pytest

from medar.generator.training import make_task

from ..fake_cuda import waits_of_a_step
from ..synthesis.tiny import tiny_tokenizer
from .toy_tokens import settings, write_tokens


@pytest.mark.parametrize("mixer", ["none", "attention", "mamba", "scale_ssm"])
def test_a_generator_step(mixer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With known boxes and scales, corrupted and revealed tokens, attributes and label maps."""
    tokens = write_tokens(tmp_path / "tokens", tiny_tokenizer(), maps=True)
    chosen = settings(
        model__mixer={"kind": mixer},
        condition={"attributes": ["class"], "map": "label", "map_width": 4},
        objective={
            "corrupted_token_fraction": 0.5,
            "known_box_fraction": 0.3,
            "known_scale_fraction": 0.3,
            "refinement_fraction": 0.5,
        },
        training={"steps": 100, "log_every": 99, "evaluate_every": 99, "save_every": 99},
    )
    task = make_task(chosen, tokens)
    assert not waits_of_a_step(task, chosen.training, monkeypatch, tmp_path / "out")

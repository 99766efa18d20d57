"""Floors: the counted operations are those of the networks."""

import json

import floors
import pytest
import torch

from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule
from medar.training.operations import Counter


def test_operations_of_a_generator_are_those_of_its_forward_pass() -> None:
    settings = CodebookSettings(size=64, width=8)
    schedule = ScaleSchedule(grids=((1, 1, 1), (3, 3, 3), (5, 5, 5)))
    model = ModelSettings(depth=2, head_width=64)
    network = Generator(
        GeneratorConfig(model=model), MultiScaleQuantiser(make_codebook(settings), schedule)
    ).eval()
    tokens = torch.randint(64, (1, schedule.length))
    with Counter() as counter, torch.no_grad():
        network(tokens, Condition(attributes=torch.zeros(1, 0)))
    blocks = sum(floors.forward_flop(model, schedule, k) for k in range(3))
    expected = blocks + 2 * schedule.length * model.width * 64
    assert expected == pytest.approx(counter.flops, rel=0.05)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    floors.main(["--tiny", "--device", "cpu", "--presets", "mr_96"])
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(printed[-1])
    rows = {row["what"]: row for row in found["rows"]}
    assert list(rows) == ["train tokenizer", "train generator", "sample", "decode"]
    for row in rows.values():
        assert row["floor_s"] == max(row["operations_s"], row["bytes_s"]) > 0
    # Ten TFLOP for a batch of eight, and a third of a step's work per pass.
    assert rows["train tokenizer"]["flop"] == pytest.approx(10.3e12 / 8, rel=0.1)
    assert rows["train generator"]["flop"] == pytest.approx(38e12 / 16, rel=0.3)
    assert rows["decode"]["flop"] < rows["train tokenizer"]["flop"] / 3
    assert "| mr_96 | decode |" in "\n".join(printed)

"""The benchmark of codebooks on fixed latents: rows, training, and the table."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codebooks import entropy, fit, line, parsed

from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser, QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 3, 2)))


def test_a_row_names_codebook_and_grids() -> None:
    config = SimpleNamespace(codebook=CodebookSettings(width=4), schedule=SCHEDULE)
    tokenizer: Any = SimpleNamespace(config=config)
    codebook, schedule = parsed("product:16", tokenizer)
    assert (codebook.kind, codebook.size, codebook.width) == ("product", 16, 4)
    assert schedule == SCHEDULE
    _, schedule = parsed("ema:8@1x1x1,2x3x2,2x3x2", tokenizer)
    assert schedule.grids == ((1, 1, 1), (2, 3, 2), (2, 3, 2))


def test_training_leaves_less_variance_and_more_codes_less_still() -> None:
    torch.manual_seed(0)
    latents = torch.randn(40, 4, 2, 3, 2)
    left = {}
    for size, steps in ((16, 1), (16, 40), (256, 40)):
        settings = CodebookSettings(kind="product", size=size, width=4)
        quantiser = MultiScaleQuantiser(
            make_codebook(settings), SCHEDULE, QuantiserSettings(scale_dropout=0.0)
        )
        fit(quantiser, latents[:30], steps, batch_size=8)
        cells = line("name", quantiser, latents[:30], latents[30:]).split("|")
        assert [cell.strip() for cell in cells[1:3]] == ["name", "13"]
        left[size, steps] = float(cells[4])
    assert left[256, 40] < left[16, 40] < left[16, 1]


def test_entropy_is_in_bits() -> None:
    assert entropy(torch.arange(8).repeat(3, 1)) == pytest.approx(3)
    assert entropy(torch.zeros(2, 5)) == 0

"""Usage and perplexity per scale, and the warning text."""

import pytest
import torch

from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.codebooks.base import BUILTIN
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.validation import CodeUsage

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (4, 4, 4)))


def count(*fine: torch.Tensor, codes: int = 32) -> CodeUsage:
    usage = CodeUsage(SCHEDULE, codes)
    for indices in fine:
        usage.update((torch.zeros(len(indices), 1, dtype=torch.int64), indices))
    return usage


def test_usage_and_perplexity_over_batches() -> None:
    low, high = torch.arange(16).repeat(1, 4), torch.arange(16, 32).repeat(2, 4)
    usage = count(low, low, high)
    assert usage.usage == [1 / 32, 1.0]
    assert usage.total_usage == 1.0
    assert usage.perplexity == pytest.approx([1.0, 32.0])
    assert count(low).usage == [1 / 32, 0.5]
    assert CodeUsage(SCHEDULE, 32).perplexity == [1.0, 1.0]


def test_a_collapsed_scale_gives_a_warning() -> None:
    (sentence,) = count(torch.arange(4).repeat(2, 16)).warnings("enable restarts")
    assert sentence.startswith("scale 1 (4x4x4, 64 tokens) uses 4 of 32 codes (12%)")
    assert sentence.endswith("has collapsed; enable restarts, or reduce the codebook size")
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", BUILTIN)
def test_the_advice_depends_on_the_codebook_kind(kind: str) -> None:
    advice = make_codebook(CodebookSettings(kind=kind, size=16, width=4)).collapse_advice
    assert ("restart_dead_codes" in advice) == (kind in ("ema", "product"))


def test_healthy_codebooks_give_no_warning() -> None:
    assert count(torch.arange(8).repeat(1, 8)).warnings("") == []
    assert CodeUsage(SCHEDULE, 32).warnings("") == []
    assert count(torch.arange(64)[None], codes=4096).warnings("") == []

"""Usage and perplexity by scale, and the warning in words."""

import typing

import pytest
import torch

from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.usage import CodeUsage

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (4, 4, 4)))


def count(*fine: torch.Tensor, codes: int = 32) -> CodeUsage:
    usage = CodeUsage(SCHEDULE, codes)
    for one in fine:
        usage.update((torch.zeros(len(one), 1, dtype=torch.int64), one))
    return usage


def test_shares_and_perplexity_over_batches() -> None:
    low, high = torch.arange(16).repeat(1, 4), torch.arange(16, 32).repeat(2, 4)
    usage = count(low, low, high)
    assert usage.usage == [1 / 32, 1.0]
    assert usage.total_usage == 1.0
    assert usage.perplexity == pytest.approx([1.0, 32.0])
    assert count(low).usage == [1 / 32, 0.5]
    assert CodeUsage(SCHEDULE, 32).perplexity == [1.0, 1.0]


def test_a_collapsed_scale_is_told_in_a_sentence() -> None:
    (told,) = count(torch.arange(4).repeat(2, 16)).warnings()
    assert told.startswith("scale 1 (4x4x4, 64 tokens) uses 4 of 32 codes (12%)")
    assert "restarts" in told
    assert "\n" not in told


@pytest.mark.parametrize("kind", typing.get_args(typing.get_type_hints(CodebookSettings)["kind"]))
def test_the_advice_is_of_the_codebook_s_kind(kind: str) -> None:
    (told,) = count(torch.arange(4).repeat(2, 16)).warnings(kind)
    assert ("restarts" in told) == (kind == "ema")
    assert told.endswith("fewer codes")


def test_no_warning_without_reason() -> None:
    assert count(torch.arange(8).repeat(1, 8)).warnings() == []
    assert CodeUsage(SCHEDULE, 32).warnings() == []
    assert count(torch.arange(64)[None], codes=4096).warnings() == []

"""Errors injected into prefixes, and the targets that correct them."""

import pytest
import torch
from torch import Tensor

from medar.generator.objective import corrupt
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
CODES = 11


@pytest.fixture(scope="module")
def quantiser() -> MultiScaleQuantiser:
    """A codebook trained on random latents."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    codebook = make_codebook(CodebookSettings(kind="ema", size=CODES, width=3))
    made = MultiScaleQuantiser(codebook, SCHEDULE)
    for _ in range(20):
        made(torch.randn(8, 3, *SCHEDULE.latent))
    return made.eval()


@pytest.fixture(scope="module")
def tokens(quantiser: MultiScaleQuantiser) -> Tensor:
    """Tokens (64, L) of 64 latents."""
    torch.manual_seed(1)
    return torch.cat(quantiser.encode(torch.randn(64, 3, *SCHEDULE.latent)), dim=1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_without_errors_nothing_changes(quantiser: MultiScaleQuantiser, tokens: Tensor) -> None:
    for share, items in ((0.0, 1.0), (0.5, 0.0)):
        seen, targets = corrupt(quantiser, tokens, share, seeded(), items=items)
        assert torch.equal(seen, tokens)
        assert torch.equal(targets, tokens)


def test_the_error_rate_is_as_requested(quantiser: MultiScaleQuantiser, tokens: Tensor) -> None:
    seen, targets = corrupt(quantiser, tokens, 0.3, seeded())
    wrong = seen != targets
    assert wrong.float().mean() == pytest.approx(0.3, abs=0.04)
    assert seen.dtype == targets.dtype == torch.int64
    assert int(seen.min()) == 0
    assert int(seen.max()) == CODES - 1
    assert torch.unique((seen - targets)[wrong] % CODES).tolist() == list(range(1, CODES))
    half, aims = corrupt(quantiser, tokens, 1.0, seeded(), items=0.5)
    erred = half != aims
    assert torch.equal(erred.all(dim=1), erred.any(dim=1))
    assert 0.3 < erred.float().mean() < 0.7


def test_targets_change_only_after_the_first_error(
    quantiser: MultiScaleQuantiser, tokens: Tensor
) -> None:
    seen, targets = corrupt(quantiser, tokens, 0.05, seeded())
    wrong = torch.stack([part.any(1) for part in SCHEDULE.split(seen != targets)], dim=1)
    before = wrong.int().cumsum(1) - wrong.int() == 0
    kept = torch.stack([part.all(1) for part in SCHEDULE.split(targets == tokens)], dim=1)
    assert bool(kept[before].all())
    assert not bool(kept[~before].all())
    clean = ~wrong.any(dim=1)
    assert 5 < int(clean.sum()) < 59
    assert torch.equal(seen[clean], tokens[clean])


def test_targets_aim_at_the_latent(quantiser: MultiScaleQuantiser, tokens: Tensor) -> None:
    """With errors in the first scale only, predicting the targets brings the latent closer."""
    aim = quantiser.decode(SCHEDULE.split(tokens))
    first = SCHEDULE.tokens[0]
    known = torch.ones_like(tokens, dtype=torch.bool)
    known[:, :first] = False
    seen, targets = corrupt(quantiser, tokens, 1.0, seeded(), known=known)
    assert bool((seen[:, :first] != tokens[:, :first]).all())
    assert torch.equal(seen[:, first:], targets[:, first:])
    stubborn = torch.cat([seen[:, :first], tokens[:, first:]], dim=1)
    mended, left = (
        (quantiser.decode(SCHEDULE.split(path)) - aim).square().flatten(1).mean(1)
        for path in (seen, stubborn)
    )
    assert mended.mean() < 0.9 * left.mean()


def test_the_targets_match_a_plain_implementation(
    quantiser: MultiScaleQuantiser, tokens: Tensor
) -> None:
    seen, targets = corrupt(quantiser, tokens, 0.5, seeded())
    shown, aims = SCHEDULE.split(seen), SCHEDULE.split(targets)
    aim = quantiser.decode(SCHEDULE.split(tokens))
    erred = (shown[0] != aims[0]).any(dim=1)
    rest = aim - quantiser.decode(shown[:1])
    assert torch.equal(aims[1][erred], quantiser.encode_scale(1, rest)[erred])


def test_seeded_errors_are_reproducible(quantiser: MultiScaleQuantiser, tokens: Tensor) -> None:
    first, second = (corrupt(quantiser, tokens, 0.2, seeded()) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    third = corrupt(quantiser, tokens, 0.2, torch.Generator().manual_seed(3))
    assert not torch.equal(first[0], third[0])


def test_known_tokens_are_never_corrupted(quantiser: MultiScaleQuantiser, tokens: Tensor) -> None:
    known = torch.rand(tokens.shape, generator=seeded()) < 0.5
    seen, targets = corrupt(quantiser, tokens, 0.9, seeded(), known=known)
    assert torch.equal(seen[known], targets[known])
    assert bool((seen != targets)[~known].float().mean() > 0.8)

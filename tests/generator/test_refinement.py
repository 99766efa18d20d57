"""Refinement: drawing the tokens of a scale in several passes."""

import math

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.generator import Generator, SamplingState
from medar.generator.known import KnownTokens
from medar.generator.objective import token_losses
from medar.generator.refinement import (
    auto_passes,
    chain_draws,
    draw_orders,
    draw_revealed,
    passes_by_scale,
    ranks,
    reveal,
)
from medar.generator.sampling import choose, draw_numbers, sample
from medar.generator.settings import SamplingSettings
from medar.tokenizer.schedule import ScaleSchedule

from .conftest import CODES, SCHEDULE, MakeModel

NEVER = -1e4
"""A logit of a code that is never drawn; infinite ones are refused."""

MIXERS = ("none", "attention", "mamba", "scale_ssm", "none+1")
HIPPOCAMPUS = ScaleSchedule(
    grids=(
        (1, 1, 1), (1, 2, 1), (2, 3, 2), (3, 4, 3), (4, 5, 4), (4, 6, 4), (5, 6, 5), (5, 7, 5)
    )
)  # fmt: skip
MANY = SamplingSettings(passes=(1, 8, 5))


def test_small_scales_take_many_passes_by_default() -> None:
    assert auto_passes(HIPPOCAMPUS) == (1, 2, 12, 6, 4, 2, 2, 1)
    assert auto_passes(ScaleSchedule(grids=((2, 2, 2),))) == (8,)
    assert passes_by_scale(SamplingSettings(), SCHEDULE, True) == (1, 8, 1)
    assert passes_by_scale(SamplingSettings(), SCHEDULE, False) == (1, 1, 1)
    assert passes_by_scale(SamplingSettings(passes=9), SCHEDULE, True) == (1, 8, 9)
    assert passes_by_scale(SamplingSettings(passes=(3, 2, 1)), SCHEDULE, True) == (1, 2, 1)


@pytest.mark.parametrize(("tokens", "passes"), [(12, 12), (36, 6), (80, 4), (7, 1), (5, 3)])
def test_every_pass_reveals_some_tokens_in_order(tokens: int, passes: int) -> None:
    order = torch.rand(2, tokens)
    masks = [*reveal(order, passes), torch.ones(2, tokens, dtype=torch.bool)]
    assert len(masks) == passes
    before = torch.zeros(2, tokens, dtype=torch.bool)
    for i, mask in enumerate(masks):
        assert bool((mask >= before).all())
        assert bool((mask.sum(1) > before.sum(1)).all())
        for row, numbers in zip(mask, order, strict=True):
            assert not row.any() or row.all() or numbers[row].max() < numbers[~row].min()
        hidden = tokens - int(mask[0].sum())
        cosine = math.floor(tokens * math.cos(math.pi * (i + 1) / (2 * passes)))
        assert hidden <= max(cosine, 0)
        assert hidden == cosine or passes == tokens or hidden == tokens - int(before[0].sum()) - 1
        before = mask


def test_known_tokens_are_not_counted_and_drawing_ends_early() -> None:
    known = torch.tensor([6 * [False], 5 * [True] + [False], 6 * [True]])
    masks = reveal(torch.rand(3, 6), 4, known)
    assert not any((mask & known).any() for mask in masks)
    assert [int(mask[1].sum()) for mask in masks] == [1, 1, 1]
    assert [int(mask[0].sum()) for mask in masks] == [1, 2, 4]


def test_one_scale_reveals_any_number_of_tokens() -> None:
    random = torch.Generator().manual_seed(0)
    revealed = draw_revealed(SCHEDULE, 6000, 0.5, random)
    parts = SCHEDULE.split(revealed)
    touched = torch.stack([part.any(dim=1) for part in parts], dim=1)
    assert int(touched.sum(1).max()) == 1
    assert not touched[:, 0].any()  # the only token of a scale always stays hidden
    several = torch.tensor(auto_passes(SCHEDULE)) > 1
    weights = torch.tensor(SCHEDULE.tokens).sqrt() * several
    assert not touched[:, ~several].any()
    for k in several.nonzero()[:, 0].tolist():
        tokens = SCHEDULE.tokens[k]
        items = 6000 * 0.5 * float(weights[k] / weights.sum())
        counts = torch.bincount(parts[k].sum(1), minlength=tokens + 1)[1:].float()
        assert counts[-1] == 0
        assert float((counts[:-1] - items / tokens).abs().max()) < 5 * (items / tokens) ** 0.5
        each = parts[k][touched[:, k]].float().mean(0)  # half on average
        torch.testing.assert_close(each, each.new_full((tokens,), 0.5), atol=0.07, rtol=0)
    assert not draw_revealed(SCHEDULE, 50, 0.0, random).any()


def some_revealed(batch: int) -> Tensor:
    """(B, L): a random part of the tokens of each scale."""
    masks, _ = next(chain_draws(SCHEDULE, range(batch), 1))
    return masks


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_hidden_tokens_never_leak(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    model = make_model(mixer=mixer)
    revealed = some_revealed(3)
    start, end = SCHEDULE.offsets[1], SCHEDULE.offsets[2]
    before = model(tokens, condition, revealed)
    for change, same in ((~revealed, True), (revealed, False)):
        other = tokens.clone()
        other[:, start:end] = ((tokens + change.long()) % CODES)[:, start:end]
        after = model(other, condition, revealed)
        assert torch.equal(before[:, :end], after[:, :end]) == same
        assert torch.equal(before[:, :start], after[:, :start])  # nor does a finer scale


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_passes_equal_teacher_forcing(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    """Earlier passes leave no trace; the last one is what finer scales see."""
    model = make_model(mixer=mixer)
    revealed = some_revealed(3)
    state, logits = model.start(condition), []
    for own, mask in zip(SCHEDULE.split(tokens), SCHEDULE.split(revealed), strict=True):
        first = model.next_logits(state, advance=False)
        again = model.next_logits(state, own, torch.zeros_like(mask), advance=False)
        assert torch.equal(first, again)
        hidden = torch.where(mask, own, (own + 1) % CODES)
        logits.append(model.next_logits(state, hidden, mask))
        model.append(state, own)
    torch.testing.assert_close(
        torch.cat(logits, dim=1), model(tokens, condition, revealed), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mixer", ["none", "mamba"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_one_pass_is_plain_sampling(
    make_model: MakeModel, condition: Condition, mixer: str, guidance: float
) -> None:
    """Bit for bit what a plain loop over the scales gives."""
    model = make_model(mixer=mixer)
    settings = SamplingSettings(guidance_scale=guidance, passes=1)
    made = sample(model, condition, [1, 2, 3], settings)
    numbers = SCHEDULE.split(draw_numbers([1, 2, 3], SCHEDULE.length))
    with torch.no_grad():
        state, without = model.start(condition), model.start(condition.nothing())
        for k in range(len(SCHEDULE)):
            logits, free = model.next_logits(state), model.next_logits(without)
            if guidance:
                logits = logits + settings.guidance_at(k, len(SCHEDULE)) * (logits - free)
            tokens = model.append(state, choose(logits, numbers[k], settings, k, len(SCHEDULE)))
            model.append(without, tokens)
    assert torch.equal(made.tokens, state.tokens)
    assert torch.equal(made.latent, state.latent)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_seed_gives_the_same_tokens_in_any_batch(
    make_model: MakeModel, condition: Condition, mixer: str, guidance: float
) -> None:
    model = make_model(mixer=mixer)
    settings = SamplingSettings(passes=(1, 8, 5), guidance_scale=guidance)
    # The second item has fewer tokens to draw than there are passes.
    mask = torch.zeros(3, SCHEDULE.length, dtype=torch.bool)
    mask[1, 3:] = True
    given = KnownTokens(mask=mask, latent=torch.randn(3, 4, *SCHEDULE.latent))
    for known in (None, given):
        whole = sample(model, condition, [7, 8, 9], settings, known=known).tokens
        again = sample(model, condition, [7, 8, 9], settings, known=known).tokens
        assert torch.equal(whole, again)
        for i in range(3):
            part = slice(i, i + 1)
            alone = sample(model, condition[part], [7 + i], settings, known=known and known[part])
            assert torch.equal(whole[part], alone.tokens)
    one = sample(model, condition, [7, 8, 9], SamplingSettings(passes=1)).tokens
    many = sample(model, condition, [7, 8, 9], SamplingSettings(passes=(1, 8, 5))).tokens
    assert torch.equal(one[:, :1], many[:, :1])
    assert not torch.equal(one, many)


def test_known_tokens_are_kept_and_seen_in_every_pass(
    make_model: MakeModel, tokens: Tensor, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(mixer="attention")
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    known = KnownTokens(mask=mask, latent=model.quantiser.decode(SCHEDULE.split(tokens)))
    seen: list[tuple[Tensor, Tensor]] = []
    embed = model._embed_known
    monkeypatch.setattr(model, "_embed_known", lambda *args: seen.append(args) or embed(*args))
    made = sample(model, condition, [1, 2, 3], MANY, known=known).tokens
    assert len(seen) == 1 + 8 + 5
    total = torch.zeros_like(known.latent)
    for k, passes in enumerate((1, 8, 5)):
        own, given = SCHEDULE.split(made)[k], SCHEDULE.split(mask)[k]
        nearest = model.quantiser.encode_scale(k, known.latent - total)
        assert torch.equal(own[given], nearest[given])
        total = total + model.quantiser.contribution(k, own)
        for shown, visible in seen[:passes]:
            assert bool(visible[given].all())
            assert torch.equal(shown[visible], own[visible])  # what was drawn stays
        del seen[:passes]


def test_mixers_advance_once_per_scale(
    make_model: MakeModel, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(mixer="mamba")
    plain, calls = model.next_logits, []

    def noted(state: SamplingState, *given: Tensor | None, advance: bool = True) -> Tensor:
        before = [dict(mixer) for mixer in state.mixers]
        logits = plain(state, *given, advance=advance)
        moved = any(
            a[name] is not b[name] for a, b in zip(before, state.mixers, strict=True) for name in a
        )
        calls.append((len(state.scales), moved))
        return logits

    monkeypatch.setattr(model, "next_logits", noted)
    sample(model, condition, [1, 2, 3], MANY)
    expected = [(k, i == n - 1) for k, n in enumerate((1, 8, 5)) for i in range(n)]
    assert calls == expected


class Copies(Generator):
    """Predicts the tokens revealed in the scale; if none is, each code of half of them."""

    def next_logits(
        self,
        state: SamplingState,
        tokens: Tensor | None = None,
        revealed: Tensor | None = None,
        *,
        advance: bool = True,
    ) -> Tensor:
        k = len(state.scales)
        batch, sites = len(state.context), self.schedule.tokens[k]
        logits = torch.full((batch, sites, self.codebook_size), NEVER)
        logits[..., :2] = 0
        if tokens is not None and revealed is not None and revealed.any():
            for row, shown, mask in zip(logits, tokens, revealed, strict=True):
                row[:] = NEVER
                row[:, shown[mask].unique()] = 0
        return logits


def test_one_by_one_draws_from_the_joint_distribution(
    make_model: MakeModel, condition: Condition
) -> None:
    """All tokens of a scale are 0, or all are 1; drawn at once, they are a mixture."""
    model = make_model()
    model.__class__ = Copies
    found = {}
    for passes in (1, 18):
        made = [
            sample(model, condition, [i, i + 1, i + 2], SamplingSettings(passes=passes)).tokens
            for i in range(0, 60, 3)
        ]
        last = SCHEDULE.split(torch.cat(made))[-1].float()
        found[passes] = last
    assert bool((found[18] == found[18][:, :1]).all())
    assert not bool((found[1] == found[1][:, :1]).all())
    assert 0.3 < float(found[18].mean()) < 0.7


def test_orders_are_independent_of_the_numbers_that_choose_tokens() -> None:
    numbers, orders = draw_numbers(range(200), 50), draw_orders(range(200), 50)
    both = torch.stack([numbers.flatten(), orders.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.04
    assert torch.equal(draw_orders([3, 4], 5)[1], draw_orders([4], 5)[0])
    assert ranks(torch.tensor([[0.5, 0.1, 0.9]])).tolist() == [[1, 0, 2]]


def test_the_chain_estimate_is_unbiased() -> None:
    """Of tokens whose loss depends on what is revealed: hidden ones cost 1 / (1 + revealed)."""
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 2, 1), (3, 2, 1)))
    totals, draws = torch.zeros(300, schedule.length), 3
    for revealed, weights in chain_draws(schedule, range(300), draws):
        assert not (weights[revealed] != 0).any()
        for part, weight in zip(schedule.split(revealed), schedule.split(weights), strict=True):
            assert part.shape[1] == pytest.approx(float(weight.sum(1).mean()))
            assert bool((part.sum(1) < part.shape[1]).all())
        seen = [part.sum(1, keepdim=True).expand_as(part) for part in schedule.split(revealed)]
        totals += weights / (1 + torch.cat(seen, dim=1))
    found = [float(part.mean()) for part in schedule.split(totals / draws)]
    expected = [sum(1 / (1 + r) for r in range(t)) / t for t in schedule.tokens]
    assert found == pytest.approx(expected, abs=0.02)


def test_the_chain_of_a_model_that_sees_nothing_is_its_cross_entropy(
    make_model: MakeModel, tokens: Tensor, condition: Condition
) -> None:
    model = make_model()
    with torch.no_grad():
        model.known.weight.zero_()
        plain = token_losses(model(tokens, condition), tokens)
        (revealed, weights), *_ = chain_draws(SCHEDULE, range(3), 1)
        masked = token_losses(model(tokens, condition, revealed), tokens)
    torch.testing.assert_close(plain, masked)
    first = SCHEDULE.split(weights)[0]
    assert bool((first == 1).all())  # a scale of one token has nothing to reveal


def test_a_model_that_was_not_trained_for_passes_refuses_them(
    make_model: MakeModel, condition: Condition
) -> None:
    model = make_model(refinement=False)
    plain = sample(model, condition, [1, 2, 3], SamplingSettings()).tokens
    assert torch.equal(
        plain, sample(model, condition, [1, 2, 3], SamplingSettings(passes=1)).tokens
    )
    with pytest.raises(MedarError, match=r"must be 1 or auto, got 4: .* refinement_fraction 0"):
        sample(model, condition, [1, 2, 3], SamplingSettings(passes=4))


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (0, "passes must be at least 1, got 0"),
        ("all", "passes must be 'auto' or an integer or a list, got 'all'"),
        ((1, 0), "passes.1 must be at least 1, got 0"),
        (1.5, "passes must be 'auto' or an integer or a list, got 1.5"),
    ],
)
def test_invalid_passes_are_refused(passes: object, message: str) -> None:
    with pytest.raises(MedarError, match=message) as refused:
        SamplingSettings(passes=passes)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    with pytest.raises(MedarError, match="passes has 2 values, the model 3 scales"):
        SamplingSettings(passes=(1, 2)).check(SCHEDULE)

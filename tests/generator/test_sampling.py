"""Sampling tokens: seeds, filters, guidance."""

import math

import numpy as np
import pytest
import torch

from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.generator import sampling
from medar.generator.conditions import Condition
from medar.generator.generator import SamplingState
from medar.generator.known import KnownTokens
from medar.generator.sampling import (
    bytes_per_volume,
    choose,
    draw_numbers,
    filtered,
    fitting_batch_size,
    sample,
    sample_and_decode,
    token_precision,
)
from medar.generator.settings import SamplingSettings
from medar.tokenizer.inference import decoded_arrays

from ..synthesis.tiny import tiny_model, tiny_tokenizer
from .conftest import SCHEDULE, MakeModel


def test_same_seed_same_tokens_in_any_batch(make_model: MakeModel, condition: Condition) -> None:
    model = make_model(mixer="mamba")
    settings = SamplingSettings(guidance_scale=1.5, top_k=5)
    whole = sample(model, condition, [7, 8, 9], settings).tokens
    assert torch.equal(whole, sample(model, condition, [7, 8, 9], settings).tokens)
    for i, seed in enumerate([7, 8, 9]):
        assert torch.equal(
            whole[i : i + 1], sample(model, condition[i : i + 1], [seed], settings).tokens
        )
    assert not torch.equal(whole, sample(model, condition, [1, 2, 3], settings).tokens)


@pytest.mark.parametrize("mixer", ["none", "attention", "mamba", "scale_ssm"])
def test_precision_of_logits(make_model: MakeModel, condition: Condition, mixer: str) -> None:
    model, seen = make_model(mixer=mixer), []
    model.head.register_forward_hook(lambda _, __, logits: seen.append(logits))

    def draw(precision: InferencePrecision) -> SamplingState:
        seen.clear()
        settings = SamplingSettings(precision=precision, passes=1, guidance_scale=1.0)
        return sample(model, condition, [1, 2, 3], settings)

    plain = draw("auto")
    assert {one.dtype for one in seen} == {torch.float32}
    first = seen[0]
    with torch.autocast("cpu", torch.bfloat16):  # as around a training's evaluation
        assert torch.equal(draw("auto").tokens, plain.tokens)
    half = draw("bf16")
    assert {one.dtype for one in seen} == {torch.bfloat16}
    assert 0 < (seen[0].float() - first).abs().max() < 0.1 * first.abs().max()
    torch.testing.assert_close(half.latent, model.quantiser.decode(half.scales))


def test_tokens_are_drawn_in_bf16_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medar.devices.has_bf16", lambda device: True)
    assert token_precision(torch.device("cpu")) == "fp32"
    assert token_precision(torch.device("cuda")) == "bf16"
    assert token_precision(torch.device("cuda"), "fp32") == "fp32"
    monkeypatch.setattr("medar.devices.has_bf16", lambda device: False)
    assert token_precision(torch.device("cuda")) == "fp32"


def test_guidance_0_is_the_model_itself(make_model: MakeModel, condition: Condition) -> None:
    model = make_model()
    plain = sample(model, condition, [1, 2, 3], SamplingSettings()).tokens
    unused = SamplingSettings(guidance_scale=0.0, guidance_from=1, guidance_to=2)
    assert torch.equal(plain, sample(model, condition, [1, 2, 3], unused).tokens)
    guided = sample(model, condition, [1, 2, 3], SamplingSettings(guidance_scale=8.0)).tokens
    assert not torch.equal(plain, guided)
    assert torch.equal(plain[2], guided[2])  # it had no condition to be guided by


def test_guidance_without_a_condition_costs_nothing(
    make_model: MakeModel, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    start, started = model.start, []
    monkeypatch.setattr(model, "start", lambda *given: started.append(given) or start(*given))
    free = Condition(attributes=torch.full_like(condition.attributes, torch.nan))
    plain = sample(model, free, [1, 2, 3], SamplingSettings()).tokens
    assert torch.equal(
        plain, sample(model, free, [1, 2, 3], SamplingSettings(guidance_scale=8.0)).tokens
    )
    assert len(started) == 2


@pytest.mark.parametrize("mixer", ["none", "attention", "mamba", "scale_ssm"])
def test_guidance_is_one_pass_over_both_halves(
    make_model: MakeModel, condition: Condition, mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With known tokens, as long as a scale is guided; its tokens: tests of refinement."""
    model = make_model(mixer=mixer)
    plain, rows = model.next_logits, []

    def counted(state: SamplingState, *given: torch.Tensor | None, advance: bool) -> torch.Tensor:
        rows.append(len(state.latent))
        return plain(state, *given, advance=advance)

    monkeypatch.setattr(model, "next_logits", counted)
    mask = torch.zeros(3, SCHEDULE.length, dtype=torch.bool)
    mask[:, -4:] = True
    known = KnownTokens(mask=mask, latent=torch.randn(3, 4, *SCHEDULE.latent))
    settings = SamplingSettings(guidance_scale=1.5, guidance_to=2, passes=1)
    seen: list[int] = []
    state = sample(
        model,
        condition,
        [1, 2, 3],
        settings,
        known=known,
        after_scale=lambda state: seen.append(len(state.latent)),
    )
    assert rows == [6, 6, 3]
    assert seen == [3, 3, 3]
    assert state.tokens.shape == (3, SCHEDULE.length)
    for i, seed in enumerate([1, 2, 3]):
        one = slice(i, i + 1)
        alone = sample(model, condition[one], [seed], settings, known=known[one])
        assert torch.equal(alone.tokens, state.tokens[one])


def test_guidance_increases_within_its_window() -> None:
    settings = SamplingSettings(guidance_scale=2.0, guidance_from=1, guidance_to=4)
    assert [settings.guidance_at(k, 5) for k in range(5)] == [0.0, 0.5, 1.0, 1.5, 0.0]


def test_automatic_temperatures_are_below_1_at_the_last_two_of_four_or_more_scales() -> None:
    settings = SamplingSettings()
    assert [settings.temperature_at(k, 5) for k in range(5)] == [1.0, 1.0, 1.0, 0.7, 0.3]
    assert [settings.temperature_at(k, 3) for k in range(3)] == [1.0, 1.0, 1.0]
    each = SamplingSettings(temperature=(1.0, 0.9, 0.8, 0.7))
    assert [each.temperature_at(k, 4) for k in range(4)] == [1.0, 0.9, 0.8, 0.7]


def test_samples_follow_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 20_000, 4)
    numbers = torch.rand(1, 20_000)
    chosen = choose(logits, numbers, SamplingSettings(), 0, 2)[0]
    found = torch.bincount(chosen, minlength=4) / 20_000
    torch.testing.assert_close(found, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)
    cold = choose(logits, numbers, SamplingSettings(temperature=0.01), 0, 2)
    assert (cold == 3).all()
    last = torch.bincount(choose(logits, numbers, SamplingSettings(), 3, 4)[0], minlength=4)
    expected = (logits[0, 0] / 0.3).softmax(0)
    torch.testing.assert_close(last / 20_000, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.65}, {2, 3}),
        ({"top_p": 0.3}, {3}),
        ({"top_k": (4, 1)}, {3}),
        ({"temperature": (1.0, 1.0)}, {0, 1, 2, 3}),
    ],
)
def test_filters_keep_the_most_likely_tokens(settings: dict[str, float], left: set[int]) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 2_000, 4)
    chosen = SamplingSettings(**settings)  # type: ignore[arg-type]
    made = choose(logits, torch.rand(1, 2_000), chosen, 1, 2)
    assert set(made.unique().tolist()) == left


def test_tokens_chosen_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, numbers = torch.randn(2, 13, 8), torch.rand(2, 13)
    settings = SamplingSettings(top_p=0.8, top_k=5)
    whole = choose(logits, numbers, settings, 0, 2)
    monkeypatch.setattr(sampling, "CHOSEN", 2 * 8 * 3)
    assert torch.equal(choose(logits, numbers, settings, 0, 2), whole)


def test_the_ends_of_the_unit_interval_give_valid_tokens() -> None:
    logits = torch.tensor([[[-torch.inf, 0.0, 0.0, -torch.inf]]]).expand(1, 2, 4)
    numbers = torch.tensor([[0.0, 1 - 2**-24]])
    assert choose(logits, numbers, SamplingSettings(), 0, 2).tolist() == [[1, 2]]


def test_top_p_keeps_at_least_one() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0]])
    assert filtered(logits, 0, 1e-6).isfinite().sum() == 1


def test_each_seed_has_its_own_random_numbers() -> None:
    assert torch.equal(draw_numbers([3, 4], 5)[1], draw_numbers([4], 5)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"top_p": 1.5}, "top_p must be at most 1, got 1.5"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1.0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"temperature": math.inf}, "temperature must be finite"),
        ({"temperature": (1.0, math.nan)}, r"temperature\.1 must be finite"),
        ({"temperature": (1.0, math.inf)}, r"temperature\.1 must be finite"),
        ({"top_p": math.nan}, "top_p must be finite"),
        ({"guidance_scale": math.nan}, "guidance_scale must be finite"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite"),
        ({"guidance_from": -1}, "guidance_from must be at least 0, got -1"),
        ({"guidance_to": -1}, "guidance_to must be at least 0, got -1"),
        ({"guidance": 1.5}, "key 'guidance' has a new name: guidance_scale"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        SamplingSettings(**values)  # type: ignore[arg-type]


def test_per_scale_values_must_match_the_scales(
    make_model: MakeModel, condition: Condition
) -> None:
    for settings, number in (
        (SamplingSettings(temperature=(1.0, 0.9)), 2),
        (SamplingSettings(top_k=()), 0),
    ):
        with pytest.raises(MedarError, match=f"{number} values, the model 3 scales"):
            sample(make_model(), condition, [1, 2, 3], settings)


@pytest.mark.parametrize("scales", [{"guidance_from": 3}, {"guidance_to": 1}])
def test_guidance_must_act_on_a_scale(scales: dict[str, int]) -> None:
    with pytest.raises(MedarError, match="affects no scale; the model has scales 0 to 2"):
        SamplingSettings(guidance_scale=1.5, **scales).check(SCHEDULE)
    SamplingSettings(**scales).check(SCHEDULE)


def test_the_callback_runs_after_each_scale(make_model: MakeModel, condition: Condition) -> None:
    model, seen = make_model(), []

    def note(state: SamplingState) -> None:
        seen.append((len(state.scales), state.tokens.shape[1]))
        torch.testing.assert_close(state.latent, model.quantiser.decode(state.scales))

    sample(model, condition, [1, 2, 3], SamplingSettings(), after_scale=note)
    assert seen == [(1, 1), (2, 9), (3, SCHEDULE.length)]


@pytest.mark.parametrize("mixer", ["none", "mamba"])
def test_the_sampled_latent_equals_the_decoded_tokens(mixer: str) -> None:
    """Volumes are decoded from this latent, without embedding the tokens again."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, mixer=mixer)
    condition = Condition(attributes=torch.full((1, 3), torch.nan)).expand(3)
    known = KnownTokens(
        mask=torch.rand(1, model.schedule.length) < 0.3, latent=torch.randn(1, 4, 4, 4, 4)
    ).expand(3)
    for given in (None, known):
        made = sample_and_decode(
            model, tokenizer, condition, [1, 2, 3], SamplingSettings(), known=given, batch_size=2
        )
        for pyramid, image, label in made:
            volume, expected = decoded_arrays(
                tokenizer.decode_map(pyramid), tokenizer.require_plan()
            )
            assert np.array_equal(image, volume.clip(-1, 1))
            assert label is not None
            assert np.array_equal(label, expected)


def test_batches_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_model(tiny_tokenizer()), SamplingSettings()
    size_per_volume = bytes_per_volume(model, plain)
    assert size_per_volume > 4 * (model.state_size + 64 * model.codebook_size)
    assert bytes_per_volume(model, SamplingSettings(guidance_scale=1.0)) > size_per_volume
    for free, size in ((0, 1), (7 * size_per_volume, 3), (10**6 * size_per_volume, 64)):
        monkeypatch.setattr("medar.generator.sampling.free_memory", lambda _, free=free: free)
        assert fitting_batch_size(model, plain) == size


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_give_no_tokens(
    make_model: MakeModel, condition: Condition, value: float
) -> None:
    model = make_model()
    with torch.no_grad():
        model.head.bias[3] = value
    with pytest.raises(MedarError, match=r"logits are NaN or infinite.*train again"):
        sample(model, condition, [1, 2, 3], SamplingSettings())

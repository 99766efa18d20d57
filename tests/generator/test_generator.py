"""The next-scale transformer: causality, and sampling equal to teacher forcing."""

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.known import KnownTokens
from medar.generator.sampling import sample
from medar.generator.settings import SamplingSettings

from .conftest import CODES, SCHEDULE, MakeModel

MIXERS = ("none", "attention", "mamba", "scale_ssm", "attention/2", "scale_ssm/2", "none+2")


def stepped(
    model: Generator, tokens: Tensor, condition: Condition, known: KnownTokens | None
) -> Tensor:
    """The logits of the sampler when exactly these tokens are selected."""
    state = model.start(condition, known)
    logits = []
    for scale in model.schedule.split(tokens):
        logits.append(model.next_logits(state))
        assert torch.equal(model.append(state, scale), scale)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("windows", [{}, {"window_size": 2, "window_min_side": 3}])
@torch.no_grad()
def test_steps_equal_teacher_forcing(
    make_model: MakeModel,
    tokens: Tensor,
    condition: Condition,
    mixer: str,
    windows: dict[str, int],
) -> None:
    model = make_model(mixer=mixer, **windows)
    whole = model(tokens, condition)
    torch.testing.assert_close(stepped(model, tokens, condition, None), whole, rtol=1e-4, atol=1e-4)
    assert whole.std() > 0.1


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("scale", range(len(SCHEDULE)))
@torch.no_grad()
def test_a_scale_changes_only_finer_ones(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str, scale: int
) -> None:
    model = make_model(mixer=mixer)
    start, number = SCHEDULE.offsets[scale], SCHEDULE.tokens[scale]
    other = tokens.clone()
    other[:, start : start + number] = (other[:, start : start + number] + 1) % CODES
    before, after = model(tokens, condition), model(other, condition)
    end = start + number
    assert torch.equal(before[:, :end], after[:, :end])
    assert scale == len(SCHEDULE) - 1 or not torch.allclose(before[:, end:], after[:, end:])


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_volumes_in_a_batch_are_independent(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    model = make_model(mixer=mixer)
    whole = model(tokens, condition)
    for i in range(len(tokens)):
        alone = model(tokens[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens, condition.nothing())[0], whole[0])


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_weight_gets_a_gradient(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    model = make_model(mixer=mixer, map_channels=3).train()
    image = torch.rand(3, 3, 6, 4, 6)
    known = torch.rand(tokens.shape) < 0.5
    given = Condition(attributes=condition.attributes, map=image)
    model(tokens, given, known).square().mean().backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("quantiser.")
        assert parameter.requires_grad != frozen, name
        assert frozen or (parameter.grad is not None and parameter.grad.abs().sum() > 0), name


@torch.no_grad()
def test_known_tokens_are_visible_to_the_others(
    make_model: MakeModel, tokens: Tensor, condition: Condition
) -> None:
    model = make_model()
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, -4:] = True  # a part of the last scale
    other = tokens.clone()
    other[:, -4:] = (other[:, -4:] + 1) % CODES
    free = SCHEDULE.offsets[-1]
    seen, changed = model(tokens, condition, known), model(other, condition, known)
    assert torch.equal(seen[:, :free], changed[:, :free])
    assert not torch.allclose(seen[:, free:-4], changed[:, free:-4])


@torch.no_grad()
def test_known_tokens_are_kept_and_steps_agree(
    make_model: MakeModel, tokens: Tensor, condition: Condition
) -> None:
    model = make_model(mixer="attention")
    latent = model.quantiser.decode(SCHEDULE.split(tokens))
    mask = torch.rand(tokens.shape) < 0.5
    known = KnownTokens(mask=mask, latent=latent)
    made = sample(model, condition, [1, 2, 3], SamplingSettings(), known=known).tokens
    total = torch.zeros_like(latent)
    for k, (own, given) in enumerate(zip(SCHEDULE.split(made), SCHEDULE.split(mask), strict=True)):
        nearest = model.quantiser.encode_scale(k, latent - total)
        assert torch.equal(own[given], nearest[given])
        total = total + model.quantiser.contribution(k, own)
    torch.testing.assert_close(
        stepped(model, made, condition, known), model(made, condition, mask), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_the_quantiser_is_not_trained(make_model: MakeModel) -> None:
    model = make_model().train()
    assert model.training
    assert not model.quantiser.training


def test_maps_need_a_model_with_map_conditioning(
    make_model: MakeModel, tokens: Tensor, condition: Condition
) -> None:
    given = Condition(attributes=condition.attributes, map=torch.zeros(3, 3, 6, 4, 6))
    with pytest.raises(MedarError, match="without maps"):
        make_model()(tokens, given)


def test_the_size_of_the_state_is_stated(make_model: MakeModel) -> None:
    sites = SCHEDULE.tokens[-1] * 4
    assert make_model().state_size == sites
    for mixer in ("attention", "mamba", "scale_ssm"):
        assert make_model(mixer=mixer).state_size > sites


@torch.no_grad()
def test_windows_affect_only_large_grids(
    make_model: MakeModel, tokens: Tensor, condition: Condition
) -> None:
    whole = make_model()(tokens, condition)
    cut = make_model(window_size=2, window_min_side=3)(tokens, condition)
    start = SCHEDULE.offsets[-1]
    assert torch.equal(whole[:, :start], cut[:, :start])
    assert not torch.allclose(whole[:, start:], cut[:, start:])
    wide = make_model(window_size=4, window_min_side=3, depth=1)(tokens, condition)
    alone = make_model(depth=1)(tokens, condition)
    torch.testing.assert_close(wide, alone, rtol=1e-4, atol=1e-5)

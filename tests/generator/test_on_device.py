"""Every mixer on the CPU and, marked `gpu`, on CUDA: parity, gradients, steps, seeds, bf16."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.sampling import sample
from medar.generator.settings import SamplingSettings

MakeModel = Callable[..., Generator]
mixers = pytest.mark.parametrize("mixer", ["none", "attention", "mamba", "scale_ssm"])


@mixers
def test_logits_and_gradients_are_those_of_the_cpu(
    device: torch.device, make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    found = []
    reference = make_model(mixer=mixer)
    for where in (torch.device("cpu"), device):
        model = deepcopy(reference).to(where)
        logits = model(tokens.to(where), condition.to(where))
        logits.square().mean().backward()
        trained = [one for one in model.parameters() if one.requires_grad]
        gradients = [one.grad for one in trained if one.grad is not None]
        found.append([one.detach().cpu() for one in (logits, *gradients)])
    assert len(found[1]) > 10
    for mine, expected in zip(*reversed(found), strict=True):
        atol = 2e-3 * float(expected.abs().max()) + 1e-7
        torch.testing.assert_close(mine, expected, rtol=1e-2, atol=atol)


@mixers
def test_steps_give_the_logits_of_one_pass(
    device: torch.device, make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    model, given = make_model(mixer=mixer).to(device), tokens.to(device)
    with torch.no_grad():
        expected = model(given, condition.to(device))
        state, found = model.start(condition.to(device)), []
        for scale in model.schedule.split(given):
            found.append(model.next_logits(state))
            model.append(state, scale)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-3, atol=2e-3)


@mixers
def test_a_seed_gives_the_same_tokens_again(
    device: torch.device, make_model: MakeModel, condition: Condition, mixer: str
) -> None:
    model = make_model(mixer=mixer).to(device)
    settings = SamplingSettings(guidance_scale=1.0)
    draws = [
        sample(model, condition.to(device), seeds, settings).tokens
        for seeds in ([0, 1, 2], [0, 1, 2], [3, 4, 5])
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@mixers
def test_bf16_autocast_stays_near_fp32(
    device: torch.device, make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    model, given = make_model(mixer=mixer).to(device), tokens.to(device)
    with torch.no_grad():
        expected = model(given, condition.to(device))
        with torch.autocast(device.type, torch.bfloat16):
            mine = model(given, condition.to(device)).float()
    assert 0 < (mine - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.gpu
@mixers
def test_compiled_logits_are_those_of_eager_ones(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, given = make_model(mixer=mixer).cuda(), tokens.cuda()
    with torch.no_grad():
        expected = model(given, condition.to("cuda"))
        mine = torch.compile(model)(given, condition.to("cuda"))
    torch.testing.assert_close(mine, expected, rtol=1e-2, atol=5e-3)

"""The raster model: causality, cached steps, known tokens, and errors."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peers.raster import RasterModel, RasterState, make_raster_task, sample_tokens
from peers.voxel import voxel_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.known import KnownTokens
from medar.generator.mixers.base import MixerSettings
from medar.generator.settings import Attribute, ConditionConfig, GeneratorConfig, ModelSettings
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule
from medar.training import fit

from ..generator.toy_tokens import CODES, settings, write_tokens
from ..synthesis.tiny import tiny_tokenizer

torch.set_num_threads(1)

PYRAMID = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
RASTER = ScaleSchedule(grids=((3, 2, 3),))
ATTRIBUTES = (
    Attribute(name="site", values=("a", "b", "c")),
    Attribute(name="age", mean=50.0, deviation=10.0),
)
CONFIG = GeneratorConfig(
    model=ModelSettings(depth=2, head_width=8, mlp_ratio=2.0),
    condition=ConditionConfig(attributes=ATTRIBUTES),
)


def make_model(schedule: ScaleSchedule = PYRAMID, config: GeneratorConfig = CONFIG) -> RasterModel:
    """A model of 11 codes without zero weights."""
    torch.manual_seed(0)
    codebook = make_codebook(CodebookSettings(size=11, width=4))
    model = RasterModel(config, MultiScaleQuantiser(codebook, schedule))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def draw(model: RasterModel, batch: int = 3) -> tuple[Tensor, Condition]:
    """Random tokens and conditions, some of them unknown."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.codebook_size, (batch, model.schedule.length), generator=generator)
    attributes = torch.tensor([[0.0, 40.0], [torch.nan, 70.0], [2.0, torch.nan]])[:batch]
    return tokens, Condition(attributes=attributes)


def steps(model: RasterModel, tokens: Tensor, state: RasterState) -> tuple[Tensor, Tensor]:
    """Logits and tokens when `tokens` are selected step by step."""
    logits, taken = [], []
    for index in range(model.schedule.length):
        logits.append(model.next_logits(state))
        taken.append(model.append(state, tokens[:, index : index + 1]))
    return torch.cat(logits, dim=1), torch.cat(taken, dim=1)


@pytest.mark.parametrize("schedule", [PYRAMID, RASTER], ids=["pyramid", "raster"])
def test_cached_steps_equal_teacher_forcing(schedule: ScaleSchedule) -> None:
    model = make_model(schedule)
    tokens, condition = draw(model)
    with torch.no_grad():
        forced = model(tokens, condition)
    stepped, taken = steps(model, tokens, model.begin(condition))
    assert forced.shape == (3, schedule.length, 11)
    torch.testing.assert_close(stepped, forced, atol=1e-4, rtol=0)
    assert torch.equal(taken, tokens)


def test_next_logits_can_be_called_twice() -> None:
    model = make_model()
    tokens, condition = draw(model)
    state = model.begin(condition)
    model.next_logits(state)
    model.append(state, tokens[:, :1])
    assert torch.equal(model.next_logits(state), model.next_logits(state))


def test_steps_under_autocast_are_close_to_teacher_forcing() -> None:
    model = make_model()
    tokens, condition = draw(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        forced = model(tokens, condition)
        state = model.begin(condition)
        stepped, _ = steps(model, tokens, state)
    assert state.keys.dtype == torch.bfloat16
    torch.testing.assert_close(stepped.float(), forced.float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("index", [0, 1, 8, 9, 25])
def test_a_token_affects_only_later_tokens(index: int) -> None:
    model = make_model()
    tokens, condition = draw(model)
    other = tokens.clone()
    other[:, index] = (other[:, index] + 1) % model.codebook_size
    with torch.no_grad():
        change = (model(tokens, condition) - model(other, condition)).abs().amax((0, 2))
    assert change[: index + 1].max() == 0
    assert change[index + 1 :].min() > 0


def test_the_condition_affects_every_token_and_unknown_is_a_value() -> None:
    model = make_model()
    tokens, condition = draw(model)
    with torch.no_grad():
        logits = model(tokens, condition)
        unknown = model(tokens, condition.without_attributes())
    assert (logits - unknown).abs().amax(2).min() > 0


def test_an_item_does_not_depend_on_its_batch() -> None:
    model = make_model()
    tokens, condition = draw(model)
    together, _ = steps(model, tokens, model.begin(condition))
    for item in range(3):
        single = slice(item, item + 1)
        alone, _ = steps(model, tokens[single], model.begin(condition[single]))
        torch.testing.assert_close(alone, together[single], atol=1e-5, rtol=1e-5)


def test_every_trained_weight_gets_a_gradient_and_the_codes_do_not() -> None:
    model = make_model().train()
    tokens, condition = draw(model)
    cross_entropy(model(tokens, condition).flatten(0, 1), tokens.flatten()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    assert not any(name.startswith("quantiser") for name in trained)


def test_initial_logits_are_uniform_and_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    codebook = make_codebook(CodebookSettings(size=11, width=4))
    model = RasterModel(CONFIG, MultiScaleQuantiser(codebook, PYRAMID))
    tokens, condition = draw(model)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        loss = cross_entropy(model(tokens, condition).flatten(0, 1), tokens.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(11), abs=0.1)
    assert losses[-1] < 0.5 * losses[0]


def test_known_tokens_replace_the_chosen_ones() -> None:
    model = make_model()
    tokens, condition = draw(model)
    latent = torch.randn(3, 4, 3, 2, 3)
    mask = torch.zeros(3, model.schedule.length, dtype=torch.bool)
    mask[1] = True
    _, taken = steps(model, tokens, model.begin(condition, KnownTokens(mask=mask, latent=latent)))
    encoded = torch.cat(model.quantiser.encode(latent), dim=1)
    assert torch.equal(taken[1], encoded[1])
    assert torch.equal(taken[[0, 2]], tokens[[0, 2]])


def test_known_tokens_compensate_for_coarser_scales() -> None:
    model = make_model()
    tokens, condition = draw(model)
    latent = torch.randn(3, 4, 3, 2, 3)
    fine = model.schedule.offsets[-1]
    mask = torch.zeros(3, model.schedule.length, dtype=torch.bool)
    mask[:, fine:] = True
    logits, taken = steps(
        model, tokens, model.begin(condition, KnownTokens(mask=mask, latent=latent))
    )
    coarse = model.quantiser.decode(model.schedule.split(tokens)[:-1])
    assert torch.equal(taken[:, :fine], tokens[:, :fine])
    assert torch.equal(taken[:, fine:], model.quantiser.encode_scale(2, latent - coarse))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(taken, condition), atol=1e-4, rtol=0)


def test_the_state_size_equals_the_caches() -> None:
    model = make_model()
    _, condition = draw(model)
    state = model.begin(condition)
    assert model.state_size == (state.keys.numel() + state.values.numel()) // 3


def test_state_dict_round_trip() -> None:
    model = make_model()
    tokens, condition = draw(model)
    other = make_model()
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(tokens, condition), other(tokens, condition))


def test_maps_and_mixers_are_refused() -> None:
    mapped = replace(CONFIG, condition=ConditionConfig(map="label", map_channels=2))
    with pytest.raises(MedarError, match=r"condition\.map must be none .* got 'label'"):
        make_model(config=mapped)
    with pytest.raises(MedarError, match=r"mixer\.kind must be none .* got 'mamba'"):
        make_model(config=GeneratorConfig(model=ModelSettings(mixer=MixerSettings(kind="mamba"))))


@pytest.mark.parametrize("voxels", [False, True])
def test_training_learns_the_classes(voxels: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    if voxels:
        plan = Plan(
            spacing=(1.0, 1.0, 1.0),
            mode="volume",
            size=(8, 8, 8),
            downsampling=(1, 1, 1),
            intensity={"CT": IntensityRule(kind="window", low=0.0, high=1.0)},
        )
        tokenizer = voxel_tokenizer(plan, (2, 2, 4), levels=12)
    tokens = write_tokens(tmp_path / "tokens", tokenizer, noise=0.1)
    chosen = settings(
        training__steps=50, training__evaluate_every=50, training__save_every=50,
        objective={"known_box_fraction": 0.5, "known_scale_fraction": 0.5},
    )  # fmt: skip
    task = make_raster_task(chosen, tokens)
    assert not task._draw_known(64, torch.Generator().manual_seed(0)).any()
    outcome = fit(task, chosen.training, tmp_path / "run")
    assert outcome.metrics["cross_entropy"] < outcome.metrics["marginal"] - 0.5
    classes = Condition(attributes=torch.tensor([[0.0], [1.0]]))
    found = sample_tokens(task.model.eval(), classes, range(2))
    right = found == torch.tensor(list(CODES.values()))[:, None]
    assert float(right.float().mean(1).min()) > 0.75

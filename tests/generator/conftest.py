"""A tiny quantiser, models of its tokens, and valid tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.mixers.base import MixerSettings
from medar.generator.settings import Attribute, ConditionConfig, GeneratorConfig, ModelSettings
from medar.settings import from_dict
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
CODES = 11
ATTRIBUTES = (
    Attribute(name="modality", values=("CT", "MR")),
    Attribute(name="age", mean=50.0, deviation=10.0),
)

MakeModel = Callable[..., Generator]


@pytest.fixture
def quantiser() -> MultiScaleQuantiser:
    """Three scales and 11 codes of width 4, with nontrivial gains and phis."""
    torch.manual_seed(0)
    codebook = make_codebook(CodebookSettings(size=CODES, width=4))
    quantiser = MultiScaleQuantiser(codebook, SCHEDULE)
    for _ in range(3):
        quantiser(torch.randn(8, 4, *SCHEDULE.latent))
    with torch.no_grad():
        for phi in quantiser.phis:
            phi.conv.weight += 0.1 * torch.randn_like(phi.conv.weight)
    return quantiser.eval()


@pytest.fixture
def make_model(quantiser: MultiScaleQuantiser) -> MakeModel:
    """A generator of its tokens with random weights; keywords change its configuration.

    The mixer "mamba/2" is one of every second block; "none+2" has two blocks of convolutions.
    """

    def make(
        *, mixer: str = "none", map_channels: int = 0, refinement: bool = True, **changes: Any
    ) -> Generator:
        condition = ConditionConfig(
            attributes=ATTRIBUTES,
            map="label" if map_channels else "none",
            map_channels=map_channels,
            map_width=4,
        )
        values: dict[str, Any] = {"depth": 2, "head_width": 8, **changes}
        mixer, _, convolutions = mixer.partition("+")
        kind, _, every = mixer.partition("/")
        given = {"kind": kind, "state_dim": 4, "every": int(every or 1)}
        settings = from_dict(MixerSettings, given, "mixer")
        torch.manual_seed(1)
        sizes = ModelSettings(mixer=settings, convolutions=int(convolutions or 0), **values)
        config = GeneratorConfig(model=sizes, condition=condition, refinement=refinement)
        model = Generator(config, quantiser, (2, 2, 2))
        return shaken(model).eval()

    return make


def shaken(model: Generator) -> Generator:
    """Set random weights, because zero-initialised ones would cut off parts of the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    assert isinstance(model, nn.Module)
    return model


@pytest.fixture
def tokens() -> Tensor:
    """Tokens (3, L)."""
    torch.manual_seed(2)
    return torch.randint(CODES, (3, SCHEDULE.length))


@pytest.fixture
def condition() -> Condition:
    """Conditions of three volumes: known, partly known, unknown."""
    nan = torch.nan
    return Condition(attributes=torch.tensor([[0.0, 61.0], [1.0, nan], [nan, nan]]))

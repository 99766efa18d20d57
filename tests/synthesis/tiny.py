"""A tiny tokenizer with a label head, and a generator of its tokens with random weights."""

from typing import Any, Literal

import torch

from medar.data.plan import IntensityRule, Plan
from medar.data.source import Source
from medar.generator.generator import Generator
from medar.generator.maps import SOURCE_CHANNELS
from medar.generator.mixers import MixerSettings
from medar.generator.settings import Attribute, ConditionConfig, GeneratorConfig, ModelSettings
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig

torch.set_num_threads(1)  # the networks here are too small for two

ATTRIBUTES = (
    Attribute(name="organ", values=("liver", "spleen", "none")),
    Attribute(name="lesion", values=("cyst", "none")),
    Attribute(name="age", mean=50.0, deviation=10.0),
)


def tiny_tokenizer(**changes: Any) -> Tokenizer:
    """Volumes of 16 x 16 x 8 voxels of 1 x 1 x 2 mm, CT from -100 to 300 HU, two labels.

    Keywords change its plan.
    """
    values: dict[str, Any] = {
        "spacing": (1.0, 1.0, 2.0),
        "mode": "volume",
        "size": (16, 16, 8),
        "downsampling": (4, 4, 2),
        "intensity": {"CT": IntensityRule(kind="window", low=-100.0, high=300.0)},
        "labels": {1: "organ", 4: "lesion"},
    }
    plan = Plan(**{**values, **changes})
    torch.manual_seed(0)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (4, 4, 4))),
        network=NetworkConfig(
            width=4,
            width_multipliers=(1,),
            code_width=4,
            downsampling=(4, 4, 2),
            labels=len(plan.labels),
        ),
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )
    tokenizer = Tokenizer(config, plan).eval()
    with torch.no_grad():
        tokenizer.decoder.head.weight *= 3.0  # so that volumes reach beyond the window
    return tokenizer


def tiny_model(
    tokenizer: Tokenizer, *, maps: bool = True, mixer: str = "none", source: Source | None = None
) -> Generator:
    """A generator without zero weights, so that every condition has an effect.

    With a source, it takes that in place of label maps.
    """
    channels = {"label": 3, "source": SOURCE_CHANNELS, "none": 0}
    kind: Literal["label", "source", "none"] = "label" if maps else "none"
    kind = kind if source is None else "source"
    condition = ConditionConfig(
        attributes=ATTRIBUTES,
        map=kind,
        map_channels=channels[kind],
        map_width=4,
        source=source,
    )
    config = GeneratorConfig(
        model=ModelSettings(depth=2, head_width=8, mixer=MixerSettings(kind=mixer)),
        condition=condition,
        refinement=True,
    )
    torch.manual_seed(1)
    model = Generator.for_tokenizer(config, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("quantiser."):
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def tiny_detail(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a detail decoder of random weights."""
    torch.manual_seed(2)
    decoder = DetailDecoder(DetailConfig.for_network(tokenizer.config.network, (4, 4), 2))
    torch.nn.init.normal_(decoder.head.weight, std=0.2)
    return tokenizer.with_detail(decoder.eval())


def tiny_synthesizer(**changes: Any) -> Synthesizer:
    """A synthesizer of both; keywords change the plan."""
    tokenizer = tiny_tokenizer(**changes)
    return Synthesizer(tiny_model(tokenizer), tokenizer)

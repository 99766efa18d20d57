"""The cost model against bytes that were measured on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.generator.conditions import Condition
from medar.generator.crops import draw_crop
from medar.generator.generator import Generator
from medar.generator.objective import token_losses
from medar.generator.settings import GeneratorConfig, GeneratorSettings
from medar.recipes.cost import (
    StepCost,
    detail_cost,
    fixed_bytes,
    generator_cost,
    kept_by,
    segmentation_cost,
    tokenizer_cost,
)
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.settings import from_dict
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.energy_score import energy_score
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.settings import DetailSettings, TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.training.settings import TrainingSettings

CLOSE = 0.15
"""Largest relative difference between estimate and measurement."""

precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def measured(model: nn.Module, run: Callable[[], Tensor], precision: str) -> int:
    """Bytes of all tensors that autograd keeps, without the weights and their copies in bf16."""
    held: dict[int, Tensor] = {}
    for one in (*model.parameters(), *model.buffers()):
        held[one.untyped_storage().data_ptr()] = one
    own = set(held)

    def keep(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        run()
    kept = sum(v.untyped_storage().nbytes() for k, v in held.items() if k not in own)
    copies = sum(2 * one.numel() for one in model.parameters() if one.ndim > 1)
    return kept - (copies if precision == "bf16" else 0)


def training(precision: str) -> dict[str, Any]:
    return {"steps": 1, "precision": precision}


@precisions
@pytest.mark.parametrize(
    ("sizes", "grid"),
    [
        ({"depth": 2, "head_width": 32}, 6),
        ({"depth": 4, "head_width": 48, "mlp_ratio": 2.0, "dropout": 0.1}, 7),
        ({"depth": 4, "head_width": 32, "mixer": {"kind": "attention"}}, 5),
        ({"depth": 2, "head_width": 32, "convolutions": 2, "dropout": 0.1}, 6),
        ({"depth": 2, "head_width": 64, "mixer": {"kind": "mamba"}}, 5),
        ({"depth": 2, "head_width": 64, "mixer": {"kind": "scale_ssm"}}, 5),
        ({"depth": 4, "head_width": 32, "mixer": {"kind": "scale_ssm", "every": 2}}, 5),
        ({"depth": 2, "head_width": 32, "window_size": 2, "window_min_side": 2, "crop_side": 4}, 6),
    ],
)
def test_activations_of_a_generator(sizes: dict[str, Any], grid: int, precision: str) -> None:
    values = {"model": sizes, "training": training(precision)}
    settings = from_dict(GeneratorSettings, values, "tiny")
    codebook = CodebookSettings(size=128, width=8)
    schedule = ScaleSchedule.from_latent((grid,) * 3, 5)
    quantiser = MultiScaleQuantiser(make_codebook(codebook), schedule)
    model = Generator(GeneratorConfig(model=settings.model), quantiser).train()
    tokens, condition = (
        torch.randint(128, (2, schedule.length)),
        Condition(attributes=torch.zeros(2, 0)),
    )
    indices = None
    if side := settings.model.crop_side:
        indices = draw_crop(schedule, side, 2, torch.Generator()).indices

    def run() -> Tensor:
        logits = model(tokens, condition, None, indices)
        return token_losses(logits, tokens if indices is None else tokens[:, indices])

    kept = measured(model, run, precision)
    cost = generator_cost(settings, schedule, codebook, "cpu")
    assert 2 * cost.kept == pytest.approx(kept, rel=CLOSE)
    parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert cost.fixed == pytest.approx(
        fixed_bytes(parameters, settings.training, 2 if precision == "bf16" else 4), rel=CLOSE
    )


@precisions
@pytest.mark.parametrize(
    ("sizes", "side"),
    [({"width": 8, "scales": 2}, 32), ({"width": 32, "blocks_per_level": 2, "scales": 4}, 32)],
)
def test_activations_of_a_tokenizer(sizes: dict[str, Any], side: int, precision: str) -> None:
    values = {"model": {**sizes, "codebook": {"size": 64, "width": 16}}}
    settings = from_dict(TokenizerSettings, {**values, "training": training(precision)}, "tiny")
    plan = Plan(spacing=(1, 1, 1), mode="volume", size=(side,) * 3, downsampling=(8, 8, 8))
    model = Tokenizer(settings.model.config(plan)).train()
    layout: Any = torch.channels_last_3d
    model = model.to(memory_format=layout)
    given = torch.rand(2, 1, side, side, side).contiguous(memory_format=layout)

    def run() -> Tensor:
        made = model(given)
        return (made.volume.float() - given).abs().mean() + made.quantisation.loss

    kept = measured(model, run, precision)
    assert 2 * tokenizer_cost(settings, plan, "cpu").kept == pytest.approx(kept, rel=CLOSE)


@precisions
def test_activations_of_a_detail_decoder(precision: str) -> None:
    settings = from_dict(DetailSettings, {"training": training(precision)}, "tiny")
    plan = Plan(spacing=(1, 1, 1), mode="volume", size=(16, 16, 16), downsampling=(8, 8, 8))
    network = from_dict(TokenizerSettings, {"training": training(precision)}, "tiny").model
    config = network.config(plan).network
    model = DetailDecoder(
        DetailConfig.for_network(config, settings.model.widths, settings.model.steps)
    ).train()
    decoded, volume, noise = (torch.rand(2, 1, 16, 16, 16) for _ in range(3))

    def run() -> Tensor:
        predicted = model.log_size(decoded)
        size = predicted.detach()
        drawn = [decoded + size.exp() * model.in_one_step(noise, decoded, size) for _ in range(2)]
        loss = energy_score(volume, drawn[0], drawn[1], [0, 0, 0])
        return loss.mean() + (predicted - volume).square().mean()

    kept = measured(model, run, precision)
    assert 2 * detail_cost(settings, config, plan, "cpu").kept == pytest.approx(kept, rel=CLOSE)


def test_activations_of_a_segmenter() -> None:
    values = {"backbone": {"width": 8}, "training": training("fp32")}
    settings = from_dict(SegmentationSettings, values, "tiny")
    plan = Plan(
        spacing=(1, 1, 1), mode="volume", size=(32, 32, 16), downsampling=(8, 8, 8),
        labels={1: "organ"},
    )  # fmt: skip
    model = Segmenter(settings.backbone, plan).train()
    kept = measured(model, lambda: model(torch.rand(1, 1, 32, 32, 16)).float().sum(), "fp32")
    classes = 4 * 4 * 2 * 32 * 32 * 16
    cost = segmentation_cost(settings, plan, "cpu")
    assert cost.kept - classes == pytest.approx(kept, rel=CLOSE)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_weights_gradients_optimiser_and_average(decay: float) -> None:
    model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 50))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100)).sum().backward()
    optimiser.step()
    weights = list(model.parameters())
    held = [*weights, *(one.grad for one in weights if one.grad is not None)]
    held += [v for state in optimiser.state.values() for v in state.values() if v.ndim]
    if decay:
        held += [one.detach().clone() for one in weights]
    count = sum(one.numel() for one in weights)
    settings = TrainingSettings(steps=1, ema_decay=decay)
    assert fixed_bytes(count, settings, 4) == sum(4 * one.numel() for one in held)


def test_checkpointing_keeps_the_inputs_of_blocks_alone() -> None:
    schedule, codebook = ScaleSchedule.from_latent((8, 8, 8), 8), CodebookSettings()

    def kept(checkpointing: bool, depth: int) -> int:
        model = {"depth": depth, "activation_checkpointing": checkpointing, "head_width": 32}
        settings = from_dict(
            GeneratorSettings, {"model": model, "training": training("bf16")}, "tiny"
        )
        return generator_cost(settings, schedule, codebook).kept

    assert kept(True, 12) < kept(False, 12) / 4
    values = {"width": 16, "activation_checkpointing": True}
    plan = Plan(spacing=(1, 1, 1), mode="volume", size=(32, 32, 32), downsampling=(8, 8, 8))
    costs = [
        tokenizer_cost(
            from_dict(TokenizerSettings, {"model": model, "training": training("bf16")}, "t"), plan
        ).kept
        for model in (values, {"width": 16})
    ]
    assert costs[0] < 0.6 * costs[1]


def test_tensors_that_share_memory_count_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    given = torch.ones(8, 4, requires_grad=True)
    found = kept_by(lambda: (layer(given) * given[:, :1]).sum(), layer)
    assert (found.bytes, found.largest, found.normed) == (2 * 8 * 4 * 4, 8 * 4 * 4, 0)


def test_the_largest_batch_fits() -> None:
    cost = StepCost(fixed=100, kept=30, passing=10)
    assert [cost.largest_batch(room) for room in (90, 139, 140, 1000)] == [0, 0, 1, 22]
    assert cost.bytes(22) <= 1000 < cost.bytes(23)
